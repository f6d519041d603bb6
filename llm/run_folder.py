"""What a run's folder says of it: `run.json` at first, `result.json` at last.

A run that is taken up again must be the same: the same settings, or it is another run and needs a
folder of its own; and the same data, tokenizer and environment class, or its bits would not be
those of an undisturbed run, which is refused unless `train.resume_anyway` says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from typing import Any

from llm import checkpoint, files
from llm.checkpoint_layout import folder_of
from llm.config_model import n_parameters
from llm.config_train import TrainSpec
from llm.environment import Environment
from llm.errors import ConfigError
from llm.inputs import Inputs
from llm.parallel import barrier, whole_state
from llm.run_state import Run
from llm.setup import Setup

ELASTIC = frozenset({"world_size"})
"""What an environment may change without being told: checkpoints are made for it."""
ANYWAY = "set train.resume_anyway = true to go on from here all the same"

_log = logging.getLogger(__name__)


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def declare(spec: TrainSpec, inputs: Inputs, environment: Environment) -> None:
    """Writes `run.json`, or checks that the one that is there belongs to the same training.

    Raises ConfigError naming what differs.
    """
    url = f"{spec.run_url}/run.json"
    read = {
        "data": {"train": inputs.train.digest, "validation": inputs.validation.digest},
        "tokenizer": inputs.tokenizer_sha256,
    }
    settings = spec.decisive() | {"model": inputs.model_config.model_dump(mode="json")}
    body = {
        "identity": settings | read,
        "spec": spec.model_dump(mode="json"),
        "environment": asdict(environment),
    }
    if not files.exists(url):
        files.create(url, json_bytes(body))
    known = json.loads(files.read_bytes(url))["identity"]
    if changed := _changes(known, settings):
        raise ConfigError(
            f"{spec.run_url} holds another training ({changed}): give this one a run_url of its own"
        )
    _refuse(_changes(known, read), "the run has learnt from other data", spec)


def enter(run: Run, setup: Setup) -> None:
    """Remembers the environment class; a run that comes from another is refused, or warned of."""
    here = asdict(setup.environment)
    if run.environments and run.environments[-1] != here:
        before = run.environments[-1]
        changed = _changes(before, {name: here[name] for name in here.keys() - ELASTIC})
        _refuse(changed, "the run comes from another environment class", setup.spec)
        if elastic := _changes(before, {name: here[name] for name in here.keys() & ELASTIC}):
            _log.warning("%s: losses will differ in their last digits", elastic)
    if not run.environments or run.environments[-1] != here:
        run.environments.append(here)


def _refuse(changed: str, what: str, spec: TrainSpec) -> None:
    if not changed:
        return
    if not spec.train.resume_anyway:
        raise ConfigError(
            f"{what} ({changed}), and would no longer be what an undisturbed run is: undo that, "
            f"or {ANYWAY}"
        )
    _log.warning("%s (%s); it goes on, as train.resume_anyway says", what, changed)


def _changes(known: dict[str, Any], now: dict[str, Any]) -> str:
    before = _flat(known)
    return "; ".join(
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in sorted(_flat(now).items())
        if before.get(name) != value
    )


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves by dotted name."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        leaves |= _flat(value, f"{path}{key}.") if nested else {f"{path}{key}": value}
    return leaves


def last_good_checkpoint(run_url: str, step: int) -> str:
    """Where to go back to from a run that was well after `step` updates, in words."""
    steps = [each for each in checkpoint.committed(run_url) if each <= step]
    if not steps:
        return "There is no checkpoint from before that"
    return f"The last good checkpoint is {folder_of(run_url, max(steps))}"


def write_result(run: Run, setup: Setup) -> dict[str, Any]:
    """Writes the weights and then `result.json`, which makes the run complete; the latter."""
    result_url = f"{setup.spec.run_url}/result.json"
    weights = whole_state(run.model, setup.world)
    if weights is not None:
        body = checkpoint.safetensors_bytes(weights)
        url = f"{setup.spec.run_url}/weights/model.safetensors"
        files.put(url, body)
        result = {
            "steps": run.step,
            "stopped_early": run.step < setup.config.steps,
            "skipped_steps": run.guard.skipped,
            "tokens": run.tokens,
            "n_parameters": n_parameters(run.model.config),
            "model": run.model.config.model_dump(mode="json"),
            "validation": run.validation,
            "best_validation": run.best_validation,
            "weights": {
                "url": url,
                "sha256": hashlib.sha256(body).hexdigest(),
                "bytes": len(body),
            },
            "environment": asdict(setup.environment),
            "environments": run.environments,
        }
        files.put(result_url, json_bytes(result))
    barrier()
    return json.loads(files.read_bytes(result_url))
