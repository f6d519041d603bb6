"""Checkpoints: a tree of tensors and plain values, committed by an index that is written last.

    {run}/checkpoints/<step>/<part>.safetensors           the tensors of one part of the state
                            /<part>-00001-of-00002.safetensors   of sharded tensors, rank 0's rows
                            /state.json                   everything else
                            /index.json                   sha256 and bytes of each file: the commit

Nothing is pickled: tensors lie in safetensors, the rest in JSON, and both come back exactly. A
reader trusts only what an index names and what hashes to it; anything less is skipped for the
checkpoint before.

Why the sharded files are not written by `torch.distributed.checkpoint` itself (torch 2.13): its
`FileSystemWriter` and `FsspecWriter` commit by a pickle, `.metadata`, and pickle any value that is
no tensor; its `HuggingFaceStorageWriter` pickles nothing, but its reader takes local paths only
and trusts whatever lies in the folder. So the files here are laid out as that one lays them out,
offsets in the header under its key, and torch's own `HuggingFaceStorageReader` loads them from a
local folder, resharding as it does (a test holds it to that); hashing, S3 and the commit are ours.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch.distributed.tensor import DTensor

from llm import files, parallel
from llm.checkpoint_layout import (
    FORMAT,
    INDEX,
    VALUES,
    Keep,
    best,
    committed,
    file_of,
    folder_of,
    prune,
    rewind,
)
from llm.checkpoint_tree import Tree, join, safetensors_bytes
from llm.checkpoint_writer import Writer, save
from llm.errors import DataError
from llm.resharding import Like, Piece, pieces, rows_of, sharded_like

__all__ = [
    "Checkpoint",
    "Keep",
    "Tree",
    "Writer",
    "best",
    "committed",
    "latest",
    "load",
    "prune",
    "rewind",
    "safetensors_bytes",
    "save",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read whole and verified. `step` updates are behind it."""

    step: int
    url: str
    state: dict[str, Tree]


def load(run_url: str, step: int, like: Like | None = None) -> Checkpoint:
    """The committed checkpoint of `step`, every file that is read checked against the index.

    Tensors are whole and on the CPU, whatever world wrote them; where `like` gives a DTensor, a
    tensor is sharded as that is, and only files that hold this rank's rows are read.
    Raises DataError when it is not committed, incomplete or damaged, naming the file.
    """
    folder = folder_of(run_url, step)
    index = _parse(f"{folder}/{INDEX}", _read(f"{folder}/{INDEX}"))
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{folder}/{INDEX}: expected a checkpoint index of format {FORMAT}")
    reader = _Reader(folder, index["files"], index["world_size"])
    recorded = _parse(f"{folder}/{VALUES}", reader.body(VALUES))
    state = {}
    for part, tree in recorded["values"].items():
        tensors = reader.whole(part, like) | reader.sharded(part, recorded["shards"][part], like)
        state[part] = join(tree, tensors)
    return Checkpoint(index["step"], folder, state)


def latest(run_url: str, like: Like | None = None) -> Checkpoint | None:
    """The newest checkpoint that is committed and whole; None where there is none.

    A damaged one is passed over with a warning: the one before gives the same run again. Where
    several ranks load, what is damaged for one is passed over by all.
    """
    for step in sorted(committed(run_url), reverse=True):
        found = None
        try:
            found = load(run_url, step, like)
        except DataError as error:
            _log.warning("skipping the checkpoint of step %d: %s", step, error)
        if not parallel.any_rank(found is None):
            return found
    return None


class _Reader:
    """The files of one checkpoint, each read whole and compared with the index."""

    def __init__(self, folder: str, expected: dict[str, Any], world_size: int) -> None:
        self._folder, self._expected, self._world_size = folder, expected, world_size

    def body(self, name: str) -> bytes:
        url = f"{self._folder}/{name}"
        if name not in self._expected:
            raise DataError(f"{url}: expected by the checkpoint, but its index has no such file")
        body = _read(url)
        found = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        if found != self._expected[name]:
            raise DataError(f"{url}: expected {self._expected[name]} by its index, found {found}")
        return body

    def whole(self, part: str, like: Like | None) -> dict[str, torch.Tensor]:
        """The tensors of a part that were saved whole."""
        if file_of(part) not in self._expected:
            return {}
        tensors = safetensors.torch.load(self.body(file_of(part)))
        for path, tensor in tensors.items():
            target = like(part, path, tensor.shape) if like else None
            if target is not None:
                first, end = _rows_here(tensor.shape, target)
                tensors[path] = sharded_like(tensor[first:end].clone(), target)
        return tensors

    def sharded(
        self, part: str, shapes: dict[str, list[int]], like: Like | None
    ) -> dict[str, torch.Tensor]:
        """The tensors of a part that were saved in shards, put together from those needed."""
        targets = {
            path: like(part, path, shape) if like else None for path, shape in shapes.items()
        }
        rows = {path: _rows_here(shape, targets[path]) for path, shape in shapes.items()}
        wanted: dict[int, list[tuple[str, Piece]]] = {}
        for path, shape in shapes.items():
            for piece in pieces(shape[0], *rows[path], self._world_size):
                wanted.setdefault(piece.rank, []).append((path, piece))
        found: dict[str, torch.Tensor] = {}
        for rank in sorted(wanted):
            stored = safetensors.torch.load(self.body(file_of(part, rank, self._world_size)))
            for path, piece in wanted[rank]:
                if path not in found:
                    n_rows = rows[path][1] - rows[path][0]
                    found[path] = stored[path].new_empty((n_rows, *shapes[path][1:]))
                found[path][piece.rows] = stored[path][piece.stored]
        for path, target in targets.items():
            if target is not None:
                local = found.get(path, target.new_empty(0, *target.shape[1:]))
                found[path] = sharded_like(local, target)
        return found


def _rows_here(shape: Sequence[int], target: DTensor | None) -> tuple[int, int]:
    """The rows of a tensor that this rank is to hold."""
    if target is None:
        return 0, shape[0]
    return rows_of(shape[0], target.device_mesh.get_local_rank(), target.device_mesh.size())


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
