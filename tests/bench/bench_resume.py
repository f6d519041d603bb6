"""A run that is killed at a random step and started again ends with the same bytes (no peer)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from llm.config_train import TrainSpec
from llm.train import train
from tests.bench.harness import Result
from tests.llm.small_runs import small_spec, told

REHEARSED = 3
"""Forward passes that a run's preflight takes before its first step."""
ROOT = Path(__file__).parents[2]


def run(quick: bool) -> Result:
    """Eager, float32. Each trial is SIGKILLed in a forward pass of a random step, up to three times
    in a row, then left to end; there is no ratio.

    Quality: in how many trials the sha256 of weights, optimizers, guards and generators, the
    position in the data and every logged loss are those of the run that was never killed.
    """
    drawn, n_trials = random.Random(1337), 2 if quick else 12
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = small_spec(folder / "undisturbed")
        train(undisturbed)
        expected = told(undisturbed)
        equal, passes = 0, []
        for trial in range(n_trials):
            spec = small_spec(folder / str(trial))
            for _ in range(1 if quick else drawn.randint(1, 3)):
                passes.append(drawn.randint(1, undisturbed.train.steps))
                if not _killed(spec, folder / f"{trial}.json", passes[-1]):
                    break
            train(spec)
            equal += told(spec) == expected
    return Result(
        ratio=None,
        target=None,
        ok=equal == n_trials,
        quality={"trials": n_trials, "equal": equal, "killed_after_passes": passes},
    )


def _killed(spec: TrainSpec, path: Path, passes: int) -> bool:
    """Whether the run was killed in its forward pass of that number, and had not ended before."""
    path.write_text(spec.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "tests.llm.killed_run", str(path), "micro_batch",
         str(REHEARSED + passes)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(done.stderr)
    return done.returncode == -signal.SIGKILL
