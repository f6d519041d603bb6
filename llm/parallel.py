"""Several devices: one process each, the same training as one device has.

    World       who this process is among those of the run
    begin, end  meet the others, as torchrun's environment says; and part
    wrap        a model whose gradients are summed over the processes: DDP or FSDP2

What is summed over ranks is summed, never averaged: the loss of a micro-batch is already divided
by the number of targets in the global batch, so the gradient is that of one process, whatever the
world size. Every collective here must be called by all ranks, in the same order.

DDP (Li et al. 2020) holds everything on each device and sums gradients while they are computed.
FSDP2 (`fully_shard`; Zhao et al. 2023, and ZeRO: Rajbhandari et al. 2020) holds 1/N of each
weight, gradient and optimizer state, cut along its first dimension, and gathers one block's
weights at a time. Weights are gathered in float32 and cast by autocast as on one device, so that
the numbers do not depend on how they are held; gradients are summed in float32.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from llm.config_model import ModelConfig
from llm.decoder import Decoder
from llm.errors import ConfigError

Kind = Literal["none", "ddp", "fsdp2"]


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device
    local_rank: int = 0
    """Its number on its own machine, which picks its device."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that logs, samples and writes for all."""
        return self.rank == 0

    @classmethod
    def single(cls, device: str | torch.device = "cpu") -> World:
        """A process that trains alone."""
        return cls(0, 1, torch.device(device))


def begin(device: str) -> World:
    """Joins the run that torchrun's environment tells of; a process without one trains alone.

    `device` is "cpu" (over gloo) or "cuda" (over NCCL, with gloo for what lies on the host).
    Raises ConfigError when this machine has fewer devices than processes.
    """
    if "WORLD_SIZE" not in os.environ:
        return World.single(device)
    rank, world_size, local_rank = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local_rank} of this machine has no device: torch finds "
                f"{torch.cuda.device_count()}; start as many processes as there are devices"
            )
        torch.cuda.set_device(local_rank)
        own = torch.device("cuda", local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=own)
    else:
        own = torch.device("cpu")
        dist.init_process_group("gloo")
    return World(rank, world_size, own, local_rank)


def end() -> None:
    """Parts from the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor, on every rank, as a new tensor.

    A tensor on the CPU goes over gloo and waits for no device.
    """
    total = tensor.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of every rank's tensor, through which gradients flow back to each.

    Where no gradient is recorded it is the rank's own: it may then be running alone.
    """
    if not dist.is_initialized() or not torch.is_grad_enabled():
        return tensor
    return _Sum.apply(tensor) / dist.get_world_size()


class _Sum(torch.autograd.Function):
    """A sum over ranks: what each rank makes of it depends on every rank's tensor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank: how all of them stop at the same step."""
    return bool(sum_over_ranks(torch.tensor(int(flag))))


def barrier() -> None:
    """Waits until every rank is here."""
    if dist.is_initialized():
        any_rank(False)


def check_share(batch_size: int, n: int) -> None:
    """Raises ConfigError unless n ranks can share the windows of a micro-batch evenly."""
    if batch_size % n:
        raise ConfigError(
            f"train.batch_size is {batch_size}, which {n} processes cannot share evenly: the next "
            f"that they can is {-(-batch_size // n) * n}"
        )


def seed_step(seed: int, step: int, world: World) -> None:
    """Seeds what dropout draws in the step after `step` updates, on this rank.

    So that it depends on nothing that happened before, and ranks draw different numbers.
    """
    body = f"{seed} {step} {world.rank}".encode()
    torch.manual_seed(int.from_bytes(hashlib.sha256(body).digest()[:8], "big") >> 1)


@contextmanager
def first_on_each_machine(world: World) -> Iterator[None]:
    """The body runs on each machine's first process, and only then on the others.

    For what the first leaves on the disk and the others only find there.
    """
    if world.local_rank:
        barrier()
    yield
    if not world.local_rank:
        barrier()


@dataclass(frozen=True)
class Wrapped:
    """A model and how its loss is computed together with the other ranks'."""

    model: Decoder
    """The model itself: under FSDP2 its parameters are DTensors, sharded on dimension 0."""
    loss: Callable[..., Tensor]
    """`model.loss`, whose backward pass sums gradients over ranks; or that, compiled."""
    apart: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around a backward pass that is to leave the sum over ranks to a later one."""

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """To be around the forward and backward pass of one micro-batch of an update.

        DDP sums gradients only in the last. FSDP2 sums in each: whole gradients are what it
        exists not to keep.
        """
        return nullcontext() if last else self.apart()


def kind_of(parallel: Literal["auto", "ddp", "fsdp2"], world_size: int) -> Kind:
    """How a model is held, by the setting and the number of processes."""
    if world_size == 1:
        return "none"
    return "ddp" if parallel == "auto" else parallel


def wrap(model: Decoder, kind: Kind, reshard_after_forward: bool = True) -> Wrapped:
    """The model, made to train with the other ranks; to be done before optimizers are built.

    Every rank brings the same weights. With `reshard_after_forward` FSDP2 lets go of a block's
    gathered weights after its forward pass (ZeRO-3); without, after its backward pass (ZeRO-2).
    """
    if kind == "ddp":
        wrapped = DistributedDataParallel(_Loss(model), gradient_as_bucket_view=True)
        wrapped.register_comm_hook(None, _sum_bucket)
        return Wrapped(model, wrapped, wrapped.no_sync)
    if kind == "fsdp2":
        _shard(model, reshard_after_forward)
    return Wrapped(model, model.loss)


class _Loss(nn.Module):
    """DDP wraps the forward pass of a module, and training calls `loss`."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        return self.model.loss(*arguments, **named)


# Without annotations: DDP compares them with types, and here they would be strings.
def _sum_bucket(_, bucket):
    """DDP's own reduction divides by the number of ranks."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _shard(model: Decoder, reshard_after_forward: bool) -> None:
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in model.layers:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def clip_grad_norm(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scales the whole gradient down to a norm of `limit`; returns the norm it had, on each rank.

    The norm is that of all ranks' shards together (Pascanu et al. 2013).
    """
    return full(torch.nn.utils.clip_grad_norm_(parameters, limit))


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, of which a rank may hold a shard: a collective under FSDP2."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: Decoder, world: World) -> dict[str, Tensor] | None:
    """The model's whole tensors by name on the CPU, on the first rank; None on others.

    A collective under FSDP2, in which every rank holds one whole tensor at a time.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        gathered = full(tensor.detach())
        if world.is_main:
            state[name] = gathered.cpu()
    return state if world.is_main else None


def whole_model(
    model: Decoder, world: World, build: Callable[[ModelConfig], Decoder]
) -> Decoder | None:
    """A model that the first rank may call alone: the same, or under FSDP2 a whole copy.

    None on other ranks, which must call this too.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model if world.is_main else None
    state = whole_state(model, world)
    if state is None:
        return None
    whole = build(model.config).to(world.device)
    whole.load_state_dict(state)
    return whole.train(model.training)
