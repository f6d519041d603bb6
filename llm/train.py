"""Training, as one process: `python -m llm.train SPEC.json`.

The loop is: batch, forward, backward, clip, guard, step, log, evaluate, sample, checkpoint.
Whatever decides the rest of a run is in its checkpoint, so a run that is killed at any moment and
started again with the same command ends with the same weights and the same logged losses, bit for
bit, as long as the environment class stays the same.

    {run}/run.json             the spec, its data and the environment, written once
         /preflight.json       what was looked at before the first step
         /micro_batch.json     how many windows at a time were found to fit
         /metrics/*.jsonl      the log (llm.metrics)
         /samples/<step>.json  texts drawn along the way
         /checkpoints/<step>/  the state (llm.checkpoint)
         /weights/model.safetensors
         /result.json          written last: the run is complete

SIGTERM and SIGINT end the run after the step at hand, with a checkpoint and exit code 75.

Under torchrun several of these processes train together (`llm.parallel`): each on its rows of every
batch, all of them deciding alike, the first writing for all but its checkpoints.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from llm import checkpoint, files, parallel
from llm.config_train import TrainConfig, TrainSpec
from llm.environment import Environment, begin
from llm.errors import LoamError
from llm.guards import Diverged
from llm.inputs import micro_batches, open_inputs
from llm.loader import Batch
from llm.log import Log
from llm.looking import sample, validate, worth_saving
from llm.optim import set_schedule
from llm.process import EX_TEMPFAIL, Interrupted, parse_arguments, read_spec, stop_when_asked
from llm.resharding import like_parameters
from llm.run_folder import declare, enter, last_good_checkpoint, write_result
from llm.run_state import Run, fresh
from llm.settling import settle
from llm.setup import Setup


@dataclass(frozen=True)
class Step:
    """What came of one step."""

    loss: float
    """Before the update, in nats per token."""
    norm: float
    """Of the whole gradient, before clipping."""
    taken: bool
    """Whether the update was made."""


def update(run: Run, batches: list[Batch], environment: Environment, config: TrainConfig) -> Step:
    """One step of training on this rank's share of an update's windows.

    Each target weighs the same, whichever micro-batch it is in and however padded that is, so
    that accumulation and the number of ranks change memory and not the mathematics.
    """
    set_schedule(run.optimizers, run.step, config.steps, config.optim)
    n_targets = int(parallel.sum_over_ranks(torch.tensor(sum(b.n_targets for b in batches))))
    total, scale = torch.zeros((), device=environment.device), run.loss_scale
    for i, batch in enumerate(batches):
        here = batch.to(environment.device)
        with run.wrapped.micro_batch(last=i == len(batches) - 1):
            with environment.autocast():
                loss = run.wrapped.loss(here.inputs_BT, here.targets_BT, "sum", here.documents_BT)
                loss = loss / n_targets
            (loss * scale.factor).backward()
        total += loss.detach()
    limit = (config.optim.grad_clip or math.inf) * scale.factor
    norm = parallel.clip_grad_norm(run.model.parameters(), limit) / scale.factor
    # Both with one wait for the device.
    found, norm_found = torch.stack([parallel.sum_over_ranks(total), norm]).tolist()
    scale.unscale(run.model.parameters())

    run.step += 1
    run.tokens += n_targets
    taken = not scale.overflowed(math.isfinite(norm_found)) and run.guard.allows(
        run.step, found, norm_found
    )
    for optimizer in run.optimizers:
        if taken:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Step(found, norm_found, taken)


def train(spec: TrainSpec, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Trains to the end, from the newest checkpoint if there is one, and returns the result.

    Raises Interrupted, after a checkpoint, once `stopped()` is true; ConfigError when the run's
    folder belongs to another training; Diverged when it learns no longer.
    """
    config, environment = spec.train, begin(spec.train)
    world = parallel.begin(environment.device)
    environment = replace(environment, world_size=world.world_size)
    parallel.check_share(config.batch_size, world.world_size)
    with parallel.first_on_each_machine(world):
        inputs = open_inputs(spec)
    declare(spec, inputs, environment)
    if files.exists(f"{spec.run_url}/result.json"):
        return json.loads(files.read_bytes(f"{spec.run_url}/result.json"))

    run = fresh(inputs.model_config, config, environment)
    found = checkpoint.latest(spec.run_url, like_parameters(run.model, run.optimizers))
    if found:
        run.restore(found.state)
    if world.is_main:
        checkpoint.rewind(spec.run_url, run.step)
    parallel.barrier()
    size, environment = settle(run, spec, inputs, environment, world)
    setup = Setup(spec, inputs, environment, world, size)
    enter(run, setup)

    keep_best = config.keep_best or config.guards.patience > 0
    keep = checkpoint.Keep(config.keep_checkpoints, keep_best, config.keep_every)
    with Log(run, setup) as log, checkpoint.Writer(spec.run_url, keep, world) as writer:
        if found:
            log.say(f"resumed at step {run.step}")
        _learn(run, setup, log, writer, stopped)
    if run.step < config.steps:
        _take_the_best(run, setup)
    return write_result(run, setup)


def _learn(
    run: Run, setup: Setup, log: Log, writer: checkpoint.Writer, stopped: Callable[[], bool]
) -> None:
    """The steps that are left, with everything that happens between them."""
    config, world, size = setup.config, setup.world, setup.micro_batch_size
    while run.step < config.steps and not run.stopped_early(config):
        parallel.seed_step(config.seed, run.step, world)
        batches = micro_batches(setup.inputs, config, run.step, world, size)
        made = update(run, batches, setup.environment, config)
        _refuse_divergence(run, made, writer, setup.spec)

        stop, last = parallel.any_rank(stopped()), run.step == config.steps
        look = last or run.step % config.eval_every == 0
        draw = last or run.step % config.sample_every == 0
        save = last or run.step % config.checkpoint_every == 0 or stop
        note = look or run.step % config.log_every == 0 or not made.taken
        row = log.row(run, made.loss, made.norm) if note else {}
        if look:
            row |= validate(run, setup, None if last else config.eval_windows or None)
            save |= worth_saving(run, config)
        if note:
            log.append(row)
        if not made.taken:
            log.say(f"step {run.step} skipped: loss {made.loss:.4g}, gradient norm {made.norm:.4g}")
        if draw:
            sample(run, setup)
        if save:
            # Before the save: rows up to a step are never missing beside its checkpoint.
            log.close_segment(run.step)
            writer.save(run.step, run.state(), row.get("validation_loss"))
        if stop and not last:
            writer.wait()
            raise Interrupted(
                f"stopped at step {run.step} of {config.steps}, which is saved: start the same "
                "command again to continue from there"
            )
        if note or draw or save:
            log.restart_clock(run)


def _refuse_divergence(run: Run, made: Step, writer: checkpoint.Writer, spec: TrainSpec) -> None:
    """Raises Diverged where the guard says so, naming the checkpoint to go back to."""
    found = run.guard.divergence(run.step, made.loss)
    if found is None:
        return
    reason, good_until = found
    writer.wait()
    raise Diverged(
        f"the run diverges at step {run.step}: {reason}. "
        f"{last_good_checkpoint(spec.run_url, good_until)}. Begin a run with a run_url of its own: "
        'lower train.optim\'s rates, lengthen its warmup_steps, or use train.dtype = "float32"'
    )


def _take_the_best(run: Run, setup: Setup) -> None:
    """After an early stop: the state of the best look, looked at in full."""
    assert run.best_validation is not None
    like = like_parameters(run.model, run.optimizers)
    best = checkpoint.load(setup.spec.run_url, run.best_validation["step"], like)
    run.restore(best.state)
    validate(run, setup, max_windows=None)
    sample(run, setup)


def main(arguments: list[str] | None = None) -> int:
    """The training process. Exit code 0 when complete, 75 when stopped, 2 when it cannot run."""
    from llm.preflight import preflight

    options = parse_arguments(arguments)
    is_main, code = os.environ.get("RANK", "0") == "0", 0
    logging.basicConfig(format="%(levelname)s: %(message)s")
    stop = stop_when_asked(options.stop_at_eof)
    try:
        spec = read_spec(options.spec)
        if is_main and not files.exists(f"{spec.run_url}/run.json"):
            n_processes = int(os.environ.get("WORLD_SIZE", "1"))
            for finding in preflight(spec, n_processes).findings:
                print(finding, file=sys.stderr)
        train(spec, stop.is_set)
    except Interrupted as pause:
        if is_main:
            print(pause, file=sys.stderr)
        code = EX_TEMPFAIL
    except LoamError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    parallel.end()
    return code


if __name__ == "__main__":
    sys.exit(main())
