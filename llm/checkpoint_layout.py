"""Where the checkpoints of a run lie, which of them are committed, and which may go."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from llm import files

FORMAT = 2
INDEX, VALUES = "index.json", "state.json"
_STEP_OF = re.compile(r"/(\d{8,})/[^/]+$")


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay when a new one is committed; what several rules name stays once."""

    last: int = 2
    """The newest ones, at least 1."""
    best: bool = True
    """The one with the lowest score, of those that have one; the earliest of equals."""
    every: int = 0
    """Those whose step is a multiple of it; 0: none for that reason."""


def rewind(run_url: str, step: int) -> None:
    """Removes whatever is later than `step`, from which the run goes on: damaged or half written.

    So a save finds no file of another attempt, or another world, in its folder.
    """
    _delete(url for url in files.list_urls(_root(run_url)) if (_step(url) or 0) > step)


def prune(run_url: str, keep: Keep) -> None:
    """Removes whatever is older than the newest committed checkpoint and not to be kept.

    That takes uncommitted leftovers of a kill along.
    """
    steps = sorted(committed(run_url))
    if not steps:
        return
    kept: set[int | None] = {
        *steps[-keep.last :],
        *(step for step in steps if keep.every and not step % keep.every),
    }
    if keep.best:
        kept.add(best(run_url))
    _delete(
        url
        for url in files.list_urls(_root(run_url))
        if (step := _step(url)) is not None and step < steps[-1] and step not in kept
    )


def best(run_url: str) -> int | None:
    """The step of the committed checkpoint with the lowest score; None where none has one."""
    steps = sorted(committed(run_url))
    bodies = files.read_many([f"{folder_of(run_url, step)}/{INDEX}" for step in steps])
    scores = [
        (score, step)
        for body, step in zip(bodies, steps, strict=True)
        if body and (score := _score(body)) is not None
    ]
    return min(scores)[1] if scores else None


def committed(run_url: str) -> set[int]:
    """The steps whose checkpoint has an index."""
    indexes = (url for url in files.list_urls(_root(run_url)) if url.endswith(f"/{INDEX}"))
    return {step for url in indexes if (step := _step(url)) is not None}


def folder_of(run_url: str, step: int) -> str:
    """Where the checkpoint after `step` updates lies."""
    return f"{_root(run_url)}/{step:08d}"


def file_of(part: str, rank: int | None = None, world_size: int = 1) -> str:
    """The name of the file of a part's whole tensors, or of a rank's rows of its sharded ones."""
    if rank is None:
        return f"{part}.safetensors"
    return f"{part}-{rank + 1:05d}-of-{world_size:05d}.safetensors"


def _delete(urls: Iterable[str]) -> None:
    """Indexes go before their files: a kill in between leaves none that promises what is gone."""
    gone = sorted(urls, key=lambda url: (not url.endswith(f"/{INDEX}"), url))
    for url in gone:
        files.delete(url)
    for folder in {url.rpartition("/")[0] for url in gone}:
        # A disk keeps a folder that is empty; a bucket has none.
        if not files.is_s3(folder):
            with contextlib.suppress(OSError):
                files.local_path(folder).rmdir()


def _root(run_url: str) -> str:
    return f"{run_url}/checkpoints"


def _step(url: str) -> int | None:
    match = _STEP_OF.search(url)
    return int(match[1]) if match else None


def _score(index: bytes) -> float | None:
    """The score in an index, if it can be read and has one."""
    try:
        found = json.loads(index)
    except ValueError:
        return None
    return found.get("score") if isinstance(found, dict) else None
