"""Training, as one process: `python -m llm.train SPEC.json`.

The loop is: batch, forward, backward, clip, step, log, evaluate, sample, checkpoint. Whatever
decides the rest of a run is in its checkpoint, so a run that is killed at any moment and started
again with the same command ends with the same weights and the same logged losses, bit for bit, as
long as the environment class stays the same.

    {run}/run.json             the spec, its data and the environment, written once
         /preflight.json       what was looked at before the first step
         /metrics/*.jsonl      the log (llm.metrics)
         /samples/<step>.json  texts drawn along the way
         /checkpoints/<step>/  the state (llm.checkpoint)
         /weights/model.safetensors
         /result.json          written last: the run is complete

SIGTERM and SIGINT end the run after the step at hand, with a checkpoint and exit code 75.

Under torchrun several of these processes train together (`llm.parallel`): each on its rows of every
micro-batch, all of them deciding alike, the first writing for all but its checkpoints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from llm import checkpoint, files, parallel
from llm.config_model import ModelConfig, n_parameters
from llm.config_train import TrainConfig, TrainSpec
from llm.data import Prepared, prepare
from llm.decoder import IGNORED_TARGET, Decoder
from llm.environment import Environment, begin, rng_state, set_rng_state
from llm.errors import ConfigError, LoamError
from llm.evaluate import evaluate
from llm.families import build_model
from llm.generate import generate
from llm.metrics import Display, MetricsLog, Row
from llm.optim import build_optimizers, learning_rate_scale, set_schedule
from llm.parallel import World, Wrapped
from llm.resharding import like_parameters
from llm.tokenizer import Tokenizer

EX_TEMPFAIL = 75
"""Exit code of a run that stopped on request and can be continued (sysexits.h)."""

SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 0.8, 200
"""nanoGPT's defaults in `sample.py`."""

_log = logging.getLogger(__name__)


class Interrupted(LoamError):
    """The run was asked to stop; it left a checkpoint to continue from."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads: opened once, never changed by it."""

    tokenizer: Tokenizer
    tokenizer_sha256: str
    train: Prepared
    validation: Prepared
    loader: Loader
    model_config: ModelConfig


@dataclass
class Run:
    """Everything that decides the rest of a run."""

    wrapped: Wrapped
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    """Updates made so far; also the loader's position, as the loader is a function of it."""
    tokens: int = 0
    """Targets learnt from so far."""
    validation: dict[str, Any] | None = None
    """The last look at the validation split."""
    best_validation: dict[str, Any] | None = None
    environments: list[dict[str, Any]] = field(default_factory=list)
    """The environment classes it has run in, in order."""

    @property
    def model(self) -> Decoder:
        return self.wrapped.model

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": rng_state(),
            "progress": {name: getattr(self, name) for name in _PROGRESS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        set_rng_state(state["rng"])
        for name in _PROGRESS:
            setattr(self, name, state["progress"][name])


_PROGRESS = ("step", "tokens", "validation", "best_validation", "environments")


def open_inputs(spec: TrainSpec) -> Inputs:
    """Tokenizer, prepared splits and loader; the model's vocabulary size is settled here.

    Raises DataError or ConfigError when they cannot be used or do not fit together.
    """
    for name in ("tokenizer_url", "dataset_url"):
        if not files.exists(getattr(spec, name)):
            raise ConfigError(f"{name}: there is no {getattr(spec, name)}")
    body = files.read_bytes(spec.tokenizer_url)
    tokenizer = Tokenizer.from_bytes(body)
    model_config = spec.model
    if not model_config.vocab_size:
        model_config = model_config.model_copy(update={"vocab_size": tokenizer.vocab_size})
    if model_config.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {model_config.vocab_size}, but the tokenizer has "
            f"{tokenizer.vocab_size} tokens: use 0 to take it from the tokenizer"
        )
    train, validation = (
        prepare(
            spec.dataset_url,
            split,
            Path(spec.cache_dir),
            spec.base_url,
            eot_id=tokenizer.eot_id,
        )
        for split in ("train", "validation")
    )
    config = spec.train
    loader = Loader(
        train, model_config.context_length, config.batch_size, config.seed, config.data
    )
    sha256 = hashlib.sha256(body).hexdigest()
    return Inputs(tokenizer, sha256, train, validation, loader, model_config)


def fresh(inputs: Inputs, config: TrainConfig, environment: Environment) -> Run:
    """A run before its first step: weights from the seed, optimizers without memory."""
    model = build_model(inputs.model_config, config.seed).to(environment.device)
    kind = parallel.kind_of(config.parallel, environment.world_size)
    wrapped = parallel.wrap(model, kind, config.reshard_after_forward)
    if config.compile:
        wrapped = replace(wrapped, loss=torch.compile(wrapped.loss))
    return Run(wrapped, build_optimizers(model, config.optim))


def micro_batches(inputs: Inputs, config: TrainConfig, step: int, world: World) -> list[Batch]:
    """This rank's rows of the batches whose gradients make the update after `step` updates."""
    first = step * config.accumulation_steps
    steps = range(first, first + config.accumulation_steps)
    return [inputs.loader.batch(i, world.rank, world.world_size) for i in steps]


def update(
    run: Run,
    batches: list[Batch],
    environment: Environment,
    config: TrainConfig,
) -> tuple[Tensor, Tensor]:
    """One step of training. Returns the loss before it (nats per token) and the gradient's norm.

    Each target weighs the same, whichever micro-batch it is in and however padded that is, so
    that accumulation and the number of ranks change memory and not the mathematics.
    """
    set_schedule(run.optimizers, run.step, config.steps, config.optim)
    counted = sum(batch.n_targets for batch in batches)
    n_targets = int(parallel.sum_over_ranks(torch.tensor(counted)))
    total = torch.zeros((), device=environment.device)
    for i, here in enumerate(batches):
        batch = here.to(environment.device)
        with run.wrapped.micro_batch(last=i == len(batches) - 1):
            with environment.autocast():
                inputs_BT, targets_BT = batch.inputs_BT, batch.targets_BT
                loss = run.wrapped.loss(inputs_BT, targets_BT, "sum", batch.documents_BT)
                loss = loss / n_targets
            loss.backward()
        total += loss.detach()
    limit = config.optim.grad_clip or math.inf
    norm = parallel.clip_grad_norm(run.model.parameters(), limit)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.tokens += n_targets
    return parallel.sum_over_ranks(total), norm


def train(spec: TrainSpec, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Trains to the end, from the newest checkpoint if there is one, and returns the result.

    Raises Interrupted, after a checkpoint, once `stopped()` is true; ConfigError when the run's
    folder belongs to another training; LoamError when the loss is no longer finite.
    """
    environment = begin(spec.train)
    world = parallel.begin(environment.device)
    environment = replace(environment, world_size=world.world_size)
    parallel.check_share(spec.train.batch_size, world)
    with parallel.first_on_each_machine(world):
        inputs = open_inputs(spec)
    _declare(spec, inputs, environment)
    if files.exists(f"{spec.run_url}/result.json"):
        return json.loads(files.read_bytes(f"{spec.run_url}/result.json"))
    run = fresh(inputs, spec.train, environment)
    found = checkpoint.latest(spec.run_url, like_parameters(run.model, run.optimizers))
    if found:
        run.restore(found.state)
    if world.is_main:
        checkpoint.rewind(spec.run_url, run.step)
    parallel.barrier()
    _enter(run, environment)
    keep = checkpoint.Keep(spec.train.keep_checkpoints, spec.train.keep_best, spec.train.keep_every)
    with (
        Display(spec.train.steps, run.step, quiet=not world.is_main) as display,
        checkpoint.Writer(spec.run_url, keep, world) as writer,
    ):
        if found:
            display.say(f"resumed at step {run.step}")
        _learn(run, inputs, environment, world, spec, display, writer, stopped)
    return _finish(run, inputs, environment, world, spec)


def _learn(
    run: Run,
    inputs: Inputs,
    environment: Environment,
    world: World,
    spec: TrainSpec,
    display: Display,
    writer: checkpoint.Writer,
    stopped: Callable[[], bool],
) -> None:
    """The steps that are left, with everything that happens between them."""
    config = spec.train
    log = MetricsLog(spec.run_url, run.step) if world.is_main else None
    since, counted = time.monotonic(), run.tokens
    while run.step < config.steps:
        parallel.seed_step(config.seed, run.step, world)
        batches = micro_batches(inputs, config, run.step, world)
        loss, norm = update(run, batches, environment, config)

        stop, last = parallel.any_rank(stopped()), run.step == config.steps
        look = last or run.step % config.eval_every == 0
        draw = last or run.step % config.sample_every == 0
        save = last or run.step % config.checkpoint_every == 0 or stop
        note = look or run.step % config.log_every == 0
        if not (draw or save or note):
            continue
        row = _row(run, loss, norm, config)
        row["tokens_per_second"] = round((run.tokens - counted) / (time.monotonic() - since), 1)
        if look:
            row |= _validate(run, inputs, environment, world, config)
        if note and log:
            log.append(row)
            display.update(row)
        if draw:
            _sample(run, inputs, world, spec)
        if save:
            # Before the save: rows up to a step are never missing beside its checkpoint.
            if log:
                log.close_segment(run.step)
            writer.save(run.step, run.state(), row.get("validation_loss"))
        if stop and not last:
            writer.wait()
            raise Interrupted(
                f"stopped at step {run.step} of {config.steps}, which is saved: start the same "
                "command again to continue from there"
            )
        since, counted = time.monotonic(), run.tokens


def _declare(spec: TrainSpec, inputs: Inputs, environment: Environment) -> None:
    """Writes `run.json`, or checks that the one that is there belongs to the same training."""
    url = f"{spec.run_url}/run.json"
    identity = spec.decisive() | {
        "model": inputs.model_config.model_dump(mode="json"),
        "data": {"train": inputs.train.digest, "validation": inputs.validation.digest},
        "tokenizer": inputs.tokenizer_sha256,
    }
    body = {
        "identity": identity,
        "spec": spec.model_dump(mode="json"),
        "environment": asdict(environment),
    }
    if not files.exists(url):
        files.create(url, _json_bytes(body))
    known = _flat(json.loads(files.read_bytes(url))["identity"])
    changed = [
        f"{name} was {known.get(name)!r} and is {value!r}"
        for name, value in _flat(identity).items()
        if known.get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"{spec.run_url} holds another training ({'; '.join(changed)}): "
            "give this one a run_url of its own"
        )


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves by dotted name."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        leaves |= _flat(value, f"{path}{key}.") if nested else {f"{path}{key}": value}
    return leaves


def _enter(run: Run, environment: Environment) -> None:
    """Remembers the environment class, and says when it is not the one the run came from."""
    here = asdict(environment)
    if run.environments and run.environments[-1] != here:
        _log.warning(
            "this environment (%s) is not the one the run came from (%s): "
            "losses will differ in their last digits",
            here,
            run.environments[-1],
        )
    if not run.environments or run.environments[-1] != here:
        run.environments.append(here)


def _row(run: Run, loss: Tensor, norm: Tensor, config: TrainConfig) -> Row:
    """The log's row of the update just made. Raises LoamError when its loss is not finite."""
    row = {
        "step": run.step,
        "loss": loss.item(),
        "lr": config.optim.learning_rate
        * learning_rate_scale(run.step - 1, config.steps, config.optim),
        "grad_norm": norm.item(),
        "tokens": run.tokens,
    }
    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
        raise LoamError(
            f"the loss is {row['loss']} and the gradient's norm {row['grad_norm']} at step "
            f"{run.step}: lower train.optim's rates, lengthen its warmup_steps, or use "
            'train.dtype = "float32"'
        )
    return row


def _validate(
    run: Run, inputs: Inputs, environment: Environment, world: World, config: TrainConfig
) -> Row:
    """Looks at the validation split, in the numbers training uses; all of it at the last step."""
    with environment.autocast():
        found = evaluate(
            run.model,
            inputs.validation,
            context_length=inputs.model_config.context_length,
            batch_size=config.batch_size,
            max_windows=None if run.step == config.steps else config.eval_windows or None,
            device=environment.device,
            world=world,
        )
    run.validation = {"step": run.step} | asdict(found)
    best = run.best_validation
    if best is None or found.nats_per_token < best["nats_per_token"]:
        run.best_validation = run.validation
    return {"validation_loss": found.nats_per_token, "bits_per_byte": found.bits_per_byte}


def _sample(run: Run, inputs: Inputs, world: World, spec: TrainSpec) -> None:
    """Writes what the model makes of each prompt now, drawn under the run's seed."""
    model = parallel.whole_model(run.model, world, build_model)
    if model is None:
        return
    prompts = spec.train.sample_prompts
    starts = [
        [inputs.tokenizer.eot_id, *map(int, ids)] for ids in inputs.tokenizer.encode_batch(prompts)
    ]
    made = generate(
        model,
        starts,
        max_new_tokens=spec.train.sample_tokens,
        temperature=SAMPLE_TEMPERATURE,
        top_k=SAMPLE_TOP_K,
        top_p=1.0,
        seed=spec.train.seed,
        stop_tokens=[inputs.tokenizer.eot_id],
    )
    samples = [
        {"prompt": prompt, "text": inputs.tokenizer.decode(tokens)}
        for prompt, tokens in zip(prompts, made, strict=True)
    ]
    body = _json_bytes({"step": run.step, "samples": samples})
    files.put(f"{spec.run_url}/samples/{run.step:08d}.json", body)


def _finish(
    run: Run, inputs: Inputs, environment: Environment, world: World, spec: TrainSpec
) -> dict[str, Any]:
    """Writes the weights and then `result.json`, which makes the run complete."""
    weights = parallel.whole_state(run.model, world)
    if weights is not None:
        _write_result(run, inputs, environment, spec, checkpoint.safetensors_bytes(weights))
    parallel.barrier()
    return json.loads(files.read_bytes(f"{spec.run_url}/result.json"))


def _write_result(
    run: Run, inputs: Inputs, environment: Environment, spec: TrainSpec, body: bytes
) -> None:
    weights_url = f"{spec.run_url}/weights/model.safetensors"
    files.put(weights_url, body)
    result = {
        "steps": run.step,
        "tokens": run.tokens,
        "n_parameters": n_parameters(inputs.model_config),
        "model": inputs.model_config.model_dump(mode="json"),
        "validation": run.validation,
        "best_validation": run.best_validation,
        "weights": {
            "url": weights_url,
            "sha256": hashlib.sha256(body).hexdigest(),
            "bytes": len(body),
        },
        "environment": asdict(environment),
        "environments": run.environments,
    }
    files.put(f"{spec.run_url}/result.json", _json_bytes(result))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llm.train", description="Trains a model.")
    parser.add_argument("spec", help="path or URL of the run's spec, a JSON file")
    parser.add_argument(
        "--stop-at-eof",
        action="store_true",
        help="stop, with a checkpoint, when standard input closes: whoever held it is gone",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The training process. Exit code 0 when complete, 75 when stopped, 2 when it cannot run."""
    from llm.preflight import preflight

    options = parse_arguments(arguments)
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(levelname)s: %(message)s")
    stop = threading.Event()

    def ask_to_stop(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # A second one ends the process at once.

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    if options.stop_at_eof:
        threading.Thread(target=_stop_at_eof, args=(stop,), daemon=True).start()
    code = 0
    try:
        spec = read_spec(options.spec)
        if is_main and not files.exists(f"{spec.run_url}/run.json"):
            for finding in preflight(spec).findings:
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


def _stop_at_eof(stop: threading.Event) -> None:
    # Not through sys.stdin: its lock, held here, would break the interpreter's end.
    while os.read(0, 1 << 16):
        pass
    stop.set()


def read_spec(url: str) -> TrainSpec:
    try:
        return TrainSpec.model_validate_json(files.read_bytes(url))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no spec at {url}") from error
    except pydantic.ValidationError as error:
        raise ConfigError(f"{url}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
