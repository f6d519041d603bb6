"""A checkpoint's state taken apart: its tensors by name, and the rest as JSON. Both come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

Tree = Any
"""None, bool, int, float, str or a tensor; a list, tuple or dict (str or int keys) of trees."""


def split(tree: Tree, path: str, tensors: dict[str, torch.Tensor]) -> Tree:
    """`tree` as JSON; its tensors move into `tensors`, under their path with slashes.

    Lists stay lists; tensors, tuples and dicts become one-key objects that name their kind, so
    that a tuple of betas or an integer key comes back as what it was. Raises TypeError for what
    JSON would not give back exactly, ValueError for two tensors of one path.
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
            items.append([key, split(value, _below(path, key), tensors)])
        return {"dict": items}
    if isinstance(tree, list | tuple):
        items = [split(value, _below(path, i), tensors) for i, value in enumerate(tree)]
        return items if isinstance(tree, list) else {"tuple": items}
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    raise TypeError(f"a checkpoint cannot hold {type(tree).__name__} at {path!r}")


def _below(path: str, key: str | int) -> str:
    return f"{path}/{key}" if path else str(key)


def join(tree: Tree, tensors: Mapping[str, torch.Tensor]) -> Tree:
    """The inverse of `split`."""
    if isinstance(tree, list):
        return [join(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(join(value, tensors) for value in content)
    return {key: join(value, tensors) for key, value in content}


def safetensors_bytes(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> bytes:
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
    return safetensors.torch.save(ready, metadata={"format": "pt", **(metadata or {})})
