"""What a run finds out about its machine before the first step: does it compile, what fits.

Both are tried on a real micro-batch, whose gradients are thrown away. What fits is written beside
the run, so that it goes on with the same micro-batches wherever it is taken up in its environment.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace

import psutil
import torch

from llm import files, parallel
from llm.config_model import ModelConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.environment import Environment
from llm.inputs import Inputs, micro_batches
from llm.loader import Batch
from llm.parallel import World, Wrapped
from llm.run_state import Run
from llm.sizing import USABLE, Memory, training_memory

_log = logging.getLogger(__name__)


def try_batch(wrapped: Wrapped, batch: Batch, environment: Environment) -> None:
    """A forward and a backward pass for nothing."""
    batch = batch.to(environment.device)
    try:
        with wrapped.micro_batch(last=True):
            with environment.autocast():
                loss = wrapped.loss(
                    batch.inputs_BT, batch.targets_BT, "sum", documents_BT=batch.documents_BT
                )
            loss.backward()
    finally:
        wrapped.model.zero_grad(set_to_none=True)


def compiled(
    wrapped: Wrapped, batch: Batch, environment: Environment
) -> tuple[Wrapped, Environment]:
    """The model with its loss compiled; as it was, with a line in the log, where torch cannot.

    All ranks go the same way.
    """
    tried, failure = replace(wrapped, loss=torch.compile(wrapped.loss)), ""
    try:
        try_batch(tried, batch, environment)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Whatever a compiler may say; without it the run can go on.
        failure = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if not parallel.any_rank(bool(failure)):
        return tried, environment
    _log.warning(
        "torch.compile failed, the run goes on without it: %s", failure or "on another rank"
    )
    return wrapped, replace(environment, mode="eager")


def settle(
    run: Run, spec: TrainSpec, inputs: Inputs, environment: Environment, world: World
) -> tuple[int, Environment]:
    """Makes the run ready for its machine: windows that each rank takes at a time, and the
    environment as it turned out to be."""
    size = micro_batch_size(run, spec, inputs, environment, world)
    if spec.train.compile:
        batch = micro_batches(inputs, spec.train, run.step, world, size)[0]
        run.wrapped, environment = compiled(run.wrapped, batch, environment)
    return size, environment


def micro_batch_size(
    run: Run, spec: TrainSpec, inputs: Inputs, environment: Environment, world: World
) -> int:
    """Windows that each rank learns from at a time: as set, or as first found for this run."""
    share = spec.train.batch_size // world.world_size
    if spec.train.micro_batch_size != "auto":
        return min(share, spec.train.micro_batch_size)
    url = f"{spec.run_url}/micro_batch.json"
    # Another kind of device, or number of them, has another memory.
    place = {"device": environment.device, "processor": environment.processor, "windows": share}
    found = json.loads(files.read_bytes(url)) if files.exists(url) else {}
    parallel.barrier()
    if {name: found.get(name) for name in place} == place:
        return found["micro_batch_size"]

    def fits(size: int) -> bool:
        expected = expected_memory(spec.train, inputs.model_config, environment, size)
        if environment.device == "cpu":
            return expected.total <= USABLE * psutil.virtual_memory().available
        batch = micro_batches(inputs, spec.train, run.step, world, size)[0]
        return _holds(run.wrapped, batch, environment, expected)

    size = largest(share, lambda size: not parallel.any_rank(not fits(size)))
    if world.is_main:
        body = json.dumps(place | {"micro_batch_size": size}, indent=1) + "\n"
        files.put(url, body.encode())
    return size


def largest(share: int, fits: Callable[[int], bool]) -> int:
    """The whole share of a batch, or the half, quarter, ... of it that fits; at least 1."""
    size = share
    while size > 1 and not fits(size):
        size = -(-size // 2)
    return size


def expected_memory(
    config: TrainConfig, model: ModelConfig, environment: Environment, size: int
) -> Memory:
    """What one process takes, by arithmetic, for `size` windows at a time."""
    return training_memory(
        model,
        size,
        optimizer=config.optim.optimizer,
        dtype="float32" if environment.dtype == "float32" else "bfloat16",
        checkpointing=config.checkpoint_activations,
        n_devices=environment.world_size if config.parallel == "fsdp2" else 1,
    )


def _holds(wrapped: Wrapped, batch: Batch, environment: Environment, expected: Memory) -> bool:
    """Whether the GPU can hold what the micro-batch takes, and the optimizers' state besides."""
    torch.cuda.reset_peak_memory_stats()
    try:
        try_batch(wrapped, batch, environment)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    # The optimizers will want theirs from the first update on.
    taken = torch.cuda.max_memory_allocated() + expected.optimizer
    free, _ = torch.cuda.mem_get_info()
    return taken <= USABLE * (free + torch.cuda.memory_reserved())
