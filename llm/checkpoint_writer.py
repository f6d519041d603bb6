"""Saves checkpoints while training goes on.

`save` copies the state to host memory, which is all the loop waits for; a thread then encodes,
hashes, uploads and commits it. One save is in flight at a time. Where several ranks train, each
writes the rows it holds and the first rank writes the rest and commits once all have written;
their threads talk over a gloo group of their own, apart from the training's collectives.

A kill at any moment leaves the checkpoint before. The log agrees with whichever that is as long as
the loop closes the log's segment before each save: rows up to a step are then durable before its
checkpoint can be, later rows lie in segments that a resume from that checkpoint takes away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from llm import files
from llm.checkpoint_layout import FORMAT, INDEX, VALUES, Keep, file_of, folder_of, prune
from llm.checkpoint_tree import Tree, safetensors_bytes, split
from llm.errors import StorageError
from llm.parallel import World
from llm.resharding import check_sharding, rows_of

OFFSETS_KEY = "DCP_SHARDING_INFO"
"""Where torch's HuggingFaceStorageWriter puts the offsets of a shard, in a file's header."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Part:
    """What one rank saves of one part of the state: copies on the host."""

    values: Tree
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    """This rank's rows of sharded tensors."""
    shapes: dict[str, list[int]] = field(default_factory=dict)
    """Whole shapes of the sharded tensors."""


class Writer:
    """Saves the checkpoints of a run; after each, those go that `keep` does not name, if given.

    Every rank makes one and calls the same methods in the same order. An error of a save, whoever's
    it was, is raised by the next call on every rank. Used as a context, it waits at the end.
    """

    def __init__(self, run_url: str, keep: Keep | None = None, world: World | None = None) -> None:
        self._run_url, self._keep = run_url, keep
        self._world = world or World.single()
        self._group = dist.new_group(backend="gloo") if self._world.world_size > 1 else None
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()

    def save(self, step: int, state: Mapping[str, Tree], score: float | None = None) -> None:
        """Begins to save the state after `step` updates, which may change once this returns.

        Each key of `state` is a part. `score` is what `Keep.best` compares, the lower the better.
        Raises what the save before it raised, and TypeError for a state that cannot be saved.
        """
        self.wait()
        parts = {part: self._copy(part, tree) for part, tree in state.items()}
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            torch.cuda.synchronize()
        self._saving = self._thread.submit(self._write, step, parts, score)

    def wait(self) -> None:
        """Returns once the last save is committed. Raises what it raised."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _copy(self, part: str, tree: Tree) -> _Part:
        tensors: dict[str, torch.Tensor] = {}
        copied = _Part(split(tree, "", tensors))
        for path, tensor in tensors.items():
            if isinstance(tensor, DTensor):
                check_sharding(f"{part}/{path}", tensor)
                copied.rows[path] = self._on_host(part, path, tensor.to_local())
                copied.shapes[path] = list(tensor.shape)
            elif self._world.is_main:
                copied.whole[path] = self._on_host(part, path, tensor)
        return copied

    def _on_host(self, part: str, path: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in the buffer that the last save used for it; still under way from a device."""
        buffer = self._buffers.get((part, path))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[part, path] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=True)

    def _write(self, step: int, parts: dict[str, _Part], score: float | None) -> None:
        """Runs in the thread: this rank's files, then the commit of all of them."""
        folder = folder_of(self._run_url, step)
        # One that failed its hashes may lie here: withdraw it before its files go.
        self._on_main(lambda: files.delete(f"{folder}/{INDEX}"))
        written = self._on_all_ranks(lambda: self._put_tensors(folder, parts))
        self._on_main(lambda: self._commit(step, parts, written, score))

    def _put_tensors(self, folder: str, parts: dict[str, _Part]) -> dict[str, dict[str, Any]]:
        """Writes this rank's files; their entries in the index."""
        rank, world_size = self._world.rank, self._world.world_size
        entries = {}
        for name, part in parts.items():
            if part.whole:
                body = safetensors_bytes(part.whole)
                entries[file_of(name)] = _put(f"{folder}/{file_of(name)}", body)
            if part.rows:
                offsets = {
                    path: {
                        "saved_offsets": [
                            rows_of(shape[0], rank, world_size)[0],
                            *[0] * (len(shape) - 1),
                        ]
                    }
                    for path, shape in part.shapes.items()
                }
                body = safetensors_bytes(part.rows, {OFFSETS_KEY: json.dumps(offsets)})
                shard = file_of(name, rank, world_size)
                entries[shard] = _put(f"{folder}/{shard}", body)
        return entries

    def _commit(
        self,
        step: int,
        parts: dict[str, _Part],
        written: list[dict[str, dict[str, Any]]],
        score: float | None,
    ) -> None:
        """The values, then the index that makes it a checkpoint, then older ones go."""
        folder = folder_of(self._run_url, step)
        values = {
            "values": {name: part.values for name, part in parts.items()},
            "shards": {name: part.shapes for name, part in parts.items()},
        }
        entries = {VALUES: _put(f"{folder}/{VALUES}", _json_bytes(values))}
        for theirs in written:
            entries |= theirs
        index = {
            "format": FORMAT,
            "step": step,
            "score": score,
            "world_size": self._world.world_size,
            "files": dict(sorted(entries.items())),
        }
        files.create(f"{folder}/{INDEX}", _json_bytes(index))
        if self._keep is not None:
            prune(self._run_url, self._keep)

    def _on_main(self, work: Callable[[], None]) -> None:
        """Does `work` on the first rank; returns, or fails, on all."""
        self._on_all_ranks(work if self._world.is_main else lambda: None)

    def _on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives on each rank, once it is done on all; if one fails, all do."""
        if self._group is None:
            return [work()]
        mine, error = None, None
        try:
            mine = work()
        except BaseException as caught:
            error = caught
        found: list[Any] = [None] * self._world.world_size
        dist.all_gather_object(found, (error is None, mine), group=self._group)
        if error is not None:
            raise error
        failed = [rank for rank, (done, _) in enumerate(found) if not done]
        if failed:
            raise StorageError(
                f"rank {failed[0]} could not save its part of a checkpoint, so there is none of "
                "this step: that rank's own message says why"
            )
        return [theirs for _, theirs in found]


def save(run_url: str, step: int, state: Mapping[str, Tree], score: float | None = None) -> str:
    """Writes and commits the state after `step` updates, and waits. The checkpoint's URL."""
    with Writer(run_url) as writer:
        writer.save(step, state, score)
    return folder_of(run_url, step)


def _put(url: str, body: bytes) -> dict[str, Any]:
    files.put(url, body)
    return {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":")) + "\n").encode()
