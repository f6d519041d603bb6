"""A run that is killed at random moments and started again ends with the same bytes (no peer)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from llm.config_train import TrainSpec
from llm.train import train
from tests.bench.harness import Result
from tests.llm.small_runs import MODEL, small_spec, told
from tests.s3_server import BUCKET, running_server

SETTINGS: dict[str, Any] = {
    "steps": 30, "accumulation_steps": 2, "micro_batch_size": 2, "checkpoint_every": 7
}  # fmt: skip
"""Four micro-batches in a step; an epoch ends in step 23."""
MOMENTS = {"micro_batch": 4 * (3 + SETTINGS["steps"]), "put": 20, "create": 5, "delete": 12}
"""What may be under way at a kill, and about how often that happens in a run: a forward pass, of
which preflight takes three steps' more, or what is done to a file of a checkpoint."""
TRIALS = {"eager": 12, "s3": 6, "compiled": 4}
QUICK_TRIALS = {"eager": 2, "s3": 1}
ROOT = Path(__file__).parents[2]


def run(quick: bool) -> Result:
    """With dropout, in float32. Each trial is SIGKILLed up to three times in a row, in the middle
    of an accumulation or of a checkpoint, then left to end; there is no ratio.

    Quality: in how many trials the sha256 of weights, optimizers, guards and generators, the
    position in the data and every logged loss are those of the run that was never killed: eager,
    with the run's folder on S3, and compiled (not `--quick`).
    """
    drawn, trials = random.Random(1337), QUICK_TRIALS if quick else TRIALS
    equal: dict[str, int] = {}
    kills: list[str] = []
    with tempfile.TemporaryDirectory() as name, running_server(Path(name)) as server:
        os.environ |= server.environment()
        for mode, n_trials in trials.items():
            undisturbed = _spec(Path(name) / mode, mode)
            train(undisturbed)
            expected, equal[mode] = told(undisturbed), 0
            for trial in range(n_trials):
                spec = _spec(Path(name) / f"{mode}-{trial}", mode)
                for _ in range(1 if quick else drawn.randint(1, 3)):
                    kills += _killed(spec, Path(name) / f"{mode}-{trial}.json", drawn)
                torch.compiler.reset()
                train(spec)
                equal[mode] += told(spec) == expected
    return Result(
        ratio=None,
        target=None,
        ok=equal == trials,
        quality={"trials": trials, "equal": equal, "kills": len(kills), "killed_in": kills},
    )


def _spec(folder: Path, mode: str) -> TrainSpec:
    spec = small_spec(folder, compile=mode == "compiled", **SETTINGS)
    model = MODEL.model_copy(update={"dropout": 0.1})
    url = f"s3://{BUCKET}/{folder.name}" if mode == "s3" else spec.run_url
    return spec.model_copy(update={"model": model, "run_url": url})


def _killed(spec: TrainSpec, path: Path, drawn: random.Random) -> list[str]:
    """What a kill came into, or nothing where the run had ended before."""
    path.write_text(spec.model_dump_json())
    what = drawn.choice(["micro_batch", "micro_batch", "put", "create", "delete"])
    number = drawn.randint(1, MOMENTS[what])
    done = subprocess.run(
        [sys.executable, "-m", "tests.llm.killed_run", str(path), what, str(number)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(done.stderr)
    return [f"{what} {number}"] if done.returncode == -signal.SIGKILL else []
