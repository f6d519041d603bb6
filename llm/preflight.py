"""What is looked at before a long run starts: does it fit, and does it learn at all.

Numbers come first and the rehearsal last, so that a run that cannot fit says so before it takes
the machine down: vocabulary, data, memory, disk, then a few real steps on a copy that is thrown
away, which also tell how long the run will take.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from typing import Literal

import psutil
import torch

from llm import files
from llm.config_model import ModelConfig, n_parameters
from llm.config_train import TrainSpec
from llm.environment import Environment, begin
from llm.errors import ConfigError
from llm.inputs import Inputs, micro_batches, open_inputs
from llm.parallel import World, check_share, kind_of
from llm.run_state import fresh
from llm.settling import expected_memory, largest, settle
from llm.sizing import FLOAT32, USABLE, embedding_parameters
from llm.train import update

MIB = 1 << 20

REHEARSED_STEPS = 3
"""The first pays for allocation (and compiling), so that the pace is taken from the others."""

FIRST_LOSS_TOLERANCE = 1.0
"""Nats that the first loss may lie from ln(vocabulary), the cost of a uniform guess."""

MANY_EPOCHS = 4
"""Up to four passes over the data are about as good as fresh data (Muennighoff et al. 2023)."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at, with its numbers."""

    about: str
    level: Literal["ok", "warn", "error"]
    message: str

    def __str__(self) -> str:
        return f"{self.level:5} {self.about}: {self.message}"


@dataclass(frozen=True)
class Preflight:
    """What was found, and what the run will cost."""

    findings: tuple[Finding, ...]
    n_parameters: int
    memory_bytes: int
    checkpoint_bytes: int
    seconds_per_step: float | None
    """None without a rehearsal."""
    minutes: float | None


def preflight(spec: TrainSpec, n_processes: int = 1) -> Preflight:
    """Looks at everything a run of so many processes needs, and takes a few steps on a copy: those
    of the first process, with its share of the windows.

    Writes `preflight.json` beside the run. Raises ConfigError with every finding that is an error.
    The rehearsal is left out when there is one already, and where no process holds the whole model.
    """
    environment = begin(spec.train)
    world = World(0, n_processes, torch.device(environment.device))
    check_share(spec.train.batch_size, n_processes)
    inputs = open_inputs(spec)
    state_bytes = _state_bytes(spec, inputs.model_config)
    memory_bytes, memory = _memory(spec, inputs, environment, world)
    findings = [
        _vocabulary(inputs),
        *_data(spec, inputs),
        memory,
        _disk(spec, state_bytes),
    ]
    _refuse_errors(findings)
    seconds = None
    if kind_of(spec.train.parallel, n_processes) == "fsdp2":
        findings.append(Finding("rehearsal", "ok", "none: no process holds the whole model"))
    else:
        losses, seconds = rehearse(spec, inputs, environment, world)
        findings += [_first_loss(losses, inputs.model_config), _pace(spec, seconds)]
    found = Preflight(
        findings=tuple(findings),
        n_parameters=n_parameters(inputs.model_config),
        memory_bytes=memory_bytes,
        checkpoint_bytes=state_bytes,
        seconds_per_step=seconds,
        minutes=None if seconds is None else seconds * spec.train.steps / 60,
    )
    body = json.dumps(asdict(found), indent=1) + "\n"
    files.put(f"{spec.run_url}/preflight.json", body.encode())
    _refuse_errors(findings)
    return found


def rehearse(
    spec: TrainSpec, inputs: Inputs, environment: Environment, world: World
) -> tuple[list[float], float]:
    """Losses of the first steps on this process's windows, and the seconds that a later one takes;
    without the other processes."""
    run = fresh(inputs.model_config, spec.train, environment)
    size, environment = settle(run, spec, inputs, environment, world)
    losses, seconds = [], []
    for step in range(REHEARSED_STEPS):
        begun = time.monotonic()
        batches = micro_batches(inputs, spec.train, step, world, size)
        losses.append(update(run, batches, environment, spec.train).loss)
        seconds.append(time.monotonic() - begun)
    return losses, min(seconds[1:])


def _state_bytes(spec: TrainSpec, config: ModelConfig) -> int:
    """Weights and optimizer state: what lies in memory for good, and in a checkpoint.

    AdamW keeps two numbers for each weight (Kingma and Ba 2015), Muon one (Jordan et al. 2024).
    """
    total = n_parameters(config)
    with_muon = total - embedding_parameters(config) if spec.train.optim.optimizer == "muon" else 0
    return (total + 2 * (total - with_muon) + with_muon) * FLOAT32


def _vocabulary(inputs: Inputs) -> Finding:
    model, tokenizer = inputs.model_config.vocab_size, inputs.tokenizer.vocab_size
    level: Literal["ok", "warn"] = "ok" if model == tokenizer else "warn"
    unused = "" if level == "ok" else f": {model - tokenizer} rows will never be used"
    return Finding("vocabulary", level, f"model {model:,}, tokenizer {tokenizer:,}{unused}")


def _data(spec: TrainSpec, inputs: Inputs) -> list[Finding]:
    train = spec.train
    windows, needed = inputs.loader.n_windows(0), train.batch_size * train.accumulation_steps
    epochs = train.steps * needed / windows
    facts = (
        f"{inputs.train.n_documents:,} documents, {inputs.train.n_tokens:,} tokens, "
        f"{windows:,} windows of {inputs.model_config.context_length}"
    )
    if windows < needed:
        return [
            Finding(
                "data",
                "error",
                f"{facts}, but one step takes {needed} (train.batch_size x accumulation_steps): "
                "lower them or model.context_length, or add documents",
            )
        ]
    level: Literal["ok", "warn"] = "ok" if epochs <= MANY_EPOCHS else "warn"
    advice = "" if level == "ok" else f": over {MANY_EPOCHS} passes add little; lower train.steps"
    return [
        Finding("data", "ok", facts),
        Finding("epochs", level, f"{epochs:.2f} passes over the data{advice}"),
    ]


def _memory(
    spec: TrainSpec, inputs: Inputs, environment: Environment, world: World
) -> tuple[int, Finding]:
    """Bytes that a process takes, with the micro-batches it would choose, and whether they are
    there."""
    environment = replace(environment, world_size=world.world_size)
    if environment.device == "cuda":
        available, _ = torch.cuda.mem_get_info()
    else:
        available = psutil.virtual_memory().available

    def needed(size: int) -> float:
        return expected_memory(spec.train, inputs.model_config, environment, size).total

    size, auto = spec.train.micro_batch_size, spec.train.micro_batch_size == "auto"
    if size == "auto":
        share = spec.train.batch_size // world.world_size
        size = largest(share, lambda size: needed(size) <= USABLE * available)
    bytes_ = round(needed(size))
    facts = (
        f"about {bytes_ / MIB:,.0f} MiB needed for {size} windows at a time, "
        f"{available / MIB:,.0f} MiB available"
    )
    if bytes_ > available:
        advice = "set train.checkpoint_activations = true, or lower the model's shape"
        if not auto and size > 1:
            advice = "lower train.micro_batch_size"
        return bytes_, Finding("memory", "error", f"{facts}: {advice}")
    return bytes_, Finding("memory", "ok" if bytes_ <= USABLE * available else "warn", facts)


def _disk(spec: TrainSpec, checkpoint_bytes: int) -> Finding:
    # One more than is kept: the newest is whole before the oldest goes.
    needed = (spec.train.keep_checkpoints + 1) * checkpoint_bytes
    if files.is_s3(spec.run_url):
        return Finding("disk", "ok", f"checkpoints take {needed / MIB:,.0f} MiB of the bucket")
    folder = files.local_path(spec.run_url).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    facts = (
        f"checkpoints take {needed / MIB:,.0f} MiB, {free / MIB:,.0f} MiB are free at {existing}"
    )
    if needed > free:
        return Finding("disk", "error", f"{facts}: free some, or lower train.keep_checkpoints")
    return Finding("disk", "ok" if needed < 0.8 * free else "warn", facts)


def _first_loss(losses: list[float], config: ModelConfig) -> Finding:
    uniform = math.log(config.vocab_size)
    facts = (
        f"losses {', '.join(f'{loss:.3f}' for loss in losses)}; a uniform guess costs {uniform:.3f}"
    )
    if not all(map(math.isfinite, losses)):
        advice = 'lower the rates of train.optim, or use train.dtype = "float32"'
        return Finding("rehearsal", "error", f"{facts}: {advice}")
    near = abs(losses[0] - uniform) <= FIRST_LOSS_TOLERANCE
    return Finding("rehearsal", "ok" if near else "warn", facts)


def _pace(spec: TrainSpec, seconds: float) -> Finding:
    minutes = seconds * spec.train.steps / 60
    return Finding(
        "time", "ok", f"{seconds:.3f} s a step, {spec.train.steps:,} steps: {minutes:.1f} minutes"
    )


def _refuse_errors(findings: list[Finding]) -> None:
    errors = [
        f"{finding.about}: {finding.message}" for finding in findings if finding.level == "error"
    ]
    if errors:
        raise ConfigError("the run would fail: " + "; ".join(errors))
