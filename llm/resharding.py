"""Which rows of a tensor lie where, and how shards of one world become those of another.

FSDP2 cuts a tensor along its first dimension into one run of rows per rank (`torch.chunk`'s rule),
so that where a row lies follows from three numbers: rows, ranks, rank. That is all resharding
needs, and all that a checkpoint has to remember beside its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

Like = Callable[[str, str, Sequence[int]], DTensor | None]
"""Part, path and shape of a checkpoint's tensor to the tensor it is to be sharded like, if any."""

_OF_PARAMETER = re.compile(r"(\d+)/state/(\d+)/")


@dataclass(frozen=True)
class Piece:
    """Rows that move: `rows` of what a rank wants are the `stored` ones of rank `rank`'s shard."""

    rank: int
    stored: slice
    rows: slice


def rows_of(n_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First row and end of a rank's shard of `n_rows` rows, which may be empty."""
    each = -(-n_rows // world_size)
    return min(n_rows, rank * each), min(n_rows, (rank + 1) * each)


def pieces(n_rows: int, first: int, end: int, world_size: int) -> list[Piece]:
    """Where rows `first` to `end` lie among the shards of `world_size` ranks, in order."""
    found = []
    for rank in range(world_size):
        start, stop = rows_of(n_rows, rank, world_size)
        low, high = max(first, start), min(end, stop)
        if low < high:
            stored, rows = slice(low - start, high - start), slice(low - first, high - first)
            found.append(Piece(rank, stored, rows))
    return found


def check_sharding(name: str, tensor: DTensor) -> None:
    """Raises TypeError unless `tensor` is cut along its first dimension over one row of ranks."""
    if tuple(tensor.placements) != (Shard(0),):
        raise TypeError(
            f"{name} is placed as {tensor.placements}: expected Shard(0) on a mesh of one dimension"
        )


def sharded_like(local: Tensor, like: DTensor) -> DTensor:
    """The tensor whose rows on this rank are `local`, placed as `like` is."""
    return DTensor.from_local(
        local.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def like_parameters(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> Like:
    """How the parts "model" and "optimizers" of a run's state are sharded on this rank.

    What an optimizer remembers of a parameter, in the parameter's shape, lies as that does. A list
    of optimizers' state dicts names parameters by their number in the groups.
    """
    weights = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
    numbered = {
        (str(k), str(i)): parameter
        for k, optimizer in enumerate(optimizers)
        for i, parameter in enumerate(
            p for group in optimizer.param_groups for p in group["params"]
        )
        if isinstance(parameter, DTensor)
    }

    def like(part: str, path: str, shape: Sequence[int]) -> DTensor | None:
        found: DTensor | None = None
        if part == "model":
            found = weights.get(path)
        elif part == "optimizers" and (match := _OF_PARAMETER.match(path)):
            found = numbered.get((match[1], match[2]))
        return found if found is not None and list(found.shape) == list(shape) else None

    return like
