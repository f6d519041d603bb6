"""Checkpoints: a tree of tensors and plain values, committed by an index that is written last.

    {run}/checkpoints/<step>/<part>.safetensors   the tensors of one part of the state
                            /state.json           everything else
                            /index.json           sha256 and bytes of each file: the commit

Nothing is pickled: tensors lie in safetensors, the rest in JSON, and both come back exactly. A
reader trusts only what an index names and what hashes to it; anything less is skipped for the
checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from llm import files
from llm.errors import DataError

FORMAT = 1
INDEX, VALUES = "index.json", "state.json"
_STEP_OF = re.compile(r"/(\d{8,})/[^/]+$")
_log = logging.getLogger(__name__)

Tree = Any
"""None, bool, int, float, str or a tensor; a list, tuple or dict (str or int keys) of trees."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read whole and verified. `step` updates are behind it."""

    step: int
    url: str
    state: dict[str, Tree]


def save(run_url: str, step: int, state: dict[str, Tree]) -> str:
    """Writes and commits the state after `step` updates. Returns the checkpoint's URL.

    Each key of `state` is a part; the tensors of one part share a file, which for a module's
    state dict is an ordinary safetensors file of its weights.
    """
    folder = _folder(run_url, step)
    # One that failed its hashes may lie here under the same step: withdraw it before its files go.
    files.delete(f"{folder}/{INDEX}")
    bodies: dict[str, bytes] = {}
    values: dict[str, Tree] = {}
    for part, tree in state.items():
        tensors: dict[str, torch.Tensor] = {}
        values[part] = _split(tree, "", tensors)
        if tensors:
            bodies[f"{part}.safetensors"] = safetensors_bytes(tensors)
    bodies[VALUES] = _json_bytes(values)
    for name, body in bodies.items():
        files.put(f"{folder}/{name}", body)
    index = {
        "format": FORMAT,
        "step": step,
        "files": {
            name: {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            for name, body in sorted(bodies.items())
        },
    }
    files.create(f"{folder}/{INDEX}", _json_bytes(index))
    return folder


def load(run_url: str, step: int) -> Checkpoint:
    """The committed checkpoint of `step`, every file checked against the index.

    Raises DataError when it is not committed, incomplete or damaged, naming the file.
    """
    folder = _folder(run_url, step)
    index = _parse(f"{folder}/{INDEX}", _read(f"{folder}/{INDEX}"))
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{folder}/{INDEX}: expected a checkpoint index of format {FORMAT}")
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    values: dict[str, Tree] = {}
    for name, expected in index["files"].items():
        body = _read(f"{folder}/{name}")
        found = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        if found != expected:
            raise DataError(f"{folder}/{name}: expected {expected} by its index, found {found}")
        if name == VALUES:
            values = _parse(f"{folder}/{name}", body)
        else:
            tensors[name.removesuffix(".safetensors")] = safetensors.torch.load(body)
    state = {part: _join(tree, tensors.get(part, {})) for part, tree in values.items()}
    return Checkpoint(index["step"], folder, state)


def latest(run_url: str) -> Checkpoint | None:
    """The newest checkpoint that is committed and whole; None where there is none.

    A damaged one is passed over with a warning: the one before gives the same run again.
    """
    for step in sorted(_committed(run_url), reverse=True):
        try:
            return load(run_url, step)
        except DataError as error:
            _log.warning("skipping the checkpoint of step %d: %s", step, error)
    return None


def rewind(run_url: str, step: int) -> None:
    """Withdraws whatever is later than `step`, from which the run goes on: it was damaged.

    Left there, it would count among those that `prune` keeps.
    """
    for later in _committed(run_url):
        if later > step:
            files.delete(f"{_folder(run_url, later)}/{INDEX}")


def prune(run_url: str, keep: int) -> None:
    """Keeps the `keep` newest committed checkpoints and removes whatever is older than the last.

    That takes uncommitted leftovers of a kill along. An index goes before its files, so that a
    kill in between leaves no checkpoint that promises what is gone.
    """
    kept = sorted(_committed(run_url))[-keep:]
    if not kept:
        return
    doomed = [
        url
        for url in files.list_urls(_root(run_url))
        if (step := _step(url)) is not None and step < kept[-1] and step not in kept
    ]
    for url in sorted(doomed, key=lambda url: (not url.endswith(f"/{INDEX}"), url)):
        files.delete(url)


def safetensors_bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    """The safetensors file of `tensors`: equal tensors and names give equal bytes.

    Tensors that share memory (tied weights) are written once under each name.
    """
    taken: set[int] = set()
    ready: dict[str, torch.Tensor] = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        ready[name] = tensor
    return safetensors.torch.save(ready, metadata={"format": "pt"})


def _split(tree: Tree, path: str, tensors: dict[str, torch.Tensor]) -> Tree:
    """`tree` as JSON; its tensors move into `tensors`, under their path with slashes.

    Lists stay lists; tensors, tuples and dicts become one-key objects that name their kind, so
    that a tuple of betas or an integer key comes back as what it was.
    """
    if isinstance(tree, torch.Tensor):
        if path in tensors:
            raise ValueError(f"two tensors of a checkpoint are called {path!r}")
        tensors[path] = tree
        return {"tensor": path}
    if isinstance(tree, dict):
        items = []
        for key, value in tree.items():
            if type(key) not in (str, int):
                raise TypeError(f"a checkpoint's keys are str or int, found {key!r} at {path!r}")
            items.append([key, _split(value, f"{path}/{key}" if path else str(key), tensors)])
        return {"dict": items}
    if isinstance(tree, list | tuple):
        items = [_split(value, f"{path}/{i}", tensors) for i, value in enumerate(tree)]
        return items if isinstance(tree, list) else {"tuple": items}
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    raise TypeError(f"a checkpoint cannot hold {type(tree).__name__} at {path!r}")


def _join(tree: Tree, tensors: dict[str, torch.Tensor]) -> Tree:
    """The inverse of `_split`."""
    if isinstance(tree, list):
        return [_join(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_join(value, tensors) for value in content)
    return {key: _join(value, tensors) for key, value in content}


def _root(run_url: str) -> str:
    return f"{run_url}/checkpoints"


def _folder(run_url: str, step: int) -> str:
    return f"{_root(run_url)}/{step:08d}"


def _step(url: str) -> int | None:
    match = _STEP_OF.search(url)
    return int(match[1]) if match else None


def _committed(run_url: str) -> set[int]:
    indexes = (url for url in files.list_urls(_root(run_url)) if url.endswith(f"/{INDEX}"))
    return {step for url in indexes if (step := _step(url)) is not None}


def _read(url: str) -> bytes:
    try:
        return files.read_bytes(url)
    except FileNotFoundError as error:
        raise DataError(f"{url}: the checkpoint's file is not there") from error


def _parse(url: str, body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise DataError(f"{url}: not JSON ({error})") from error


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":")) + "\n").encode()
