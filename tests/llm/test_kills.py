"""SIGKILL at any moment, and the same command again: nothing tells that it happened.

What is compared is in `told`: the sha256 of weights, optimizers, guards and generators in the last
checkpoint, and every figure that was logged.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm import checkpoint
from llm.config_train import TrainSpec
from llm.train import train
from tests.llm.small_runs import MODEL, small_spec, told, torch_settings_kept

ROOT = Path(__file__).parents[2]

SETTINGS: dict[str, Any] = {
    "steps": 30, "accumulation_steps": 2, "micro_batch_size": 2, "checkpoint_every": 7,
    "eval_every": 15, "sample_every": 25,
}  # fmt: skip
"""Four micro-batches of two windows in a step; the 181 windows of an epoch end in step 23."""
MICRO_BATCHES = 4
LAST_STEP_OF_EPOCH = 23


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def with_dropout(folder: Path, **train: Any) -> TrainSpec:
    spec = small_spec(folder, **(SETTINGS | train))
    return spec.model_copy(update={"model": MODEL.model_copy(update={"dropout": 0.1})})


def killed(spec: TrainSpec, folder: Path, what: str, number: int) -> str:
    """Trains until it is killed there; what it said."""
    path = folder / "spec.json"
    path.write_text(spec.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "tests.llm.killed_run", str(path), what, str(number)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stderr


def in_step(step: int, micro_batch: int = 1) -> int:
    """Number of a micro-batch of a step of a run's first process.

    The rehearsal before it takes three steps.
    """
    return MICRO_BATCHES * (3 + step - 1) + micro_batch


def test_a_kill_in_the_middle_of_an_accumulation_and_at_an_epochs_end_changes_nothing(
    tmp_path: Path,
) -> None:
    expected, spec = with_dropout(tmp_path / "a"), with_dropout(tmp_path / "b")
    train(expected)
    killed(spec, tmp_path, "micro_batch", in_step(LAST_STEP_OF_EPOCH, 3))
    train(spec)
    assert told(spec) == told(expected)


AMONG_ITS_FILES, BEFORE_ITS_INDEX = ("put", 7), ("create", 2)
"""In the second checkpoint: each has four files and an index."""
AMONG_THOSE_THAT_GO = ("delete", 5)
"""The third checkpoint removes the first: its index, then its files. Before that, each of the three
has withdrawn what index might have been there."""


@pytest.mark.parametrize(
    "where, committed",
    [(AMONG_ITS_FILES, {7}), (BEFORE_ITS_INDEX, {7}), (AMONG_THOSE_THAT_GO, {14, 21})],
)
def test_a_kill_during_a_checkpoint_changes_nothing(
    tmp_path: Path, where: tuple[str, int], committed: set[int]
) -> None:
    expected, spec = with_dropout(tmp_path / "a"), with_dropout(tmp_path / "b")
    train(expected)
    killed(spec, tmp_path, *where)
    assert checkpoint.committed(spec.run_url) == committed
    train(spec)
    assert told(spec) == told(expected)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_kills_at_random_change_nothing(tmp_path: Path, optimizer: str, dtype: str) -> None:
    settings = {"dtype": dtype, "optim": {"optimizer": optimizer, "warmup_steps": 4}}
    expected, spec = (with_dropout(tmp_path / name, **settings) for name in "ab")
    train(expected)
    draw = random.Random(f"{optimizer} {dtype}")
    for i in range(5):
        first = i == 0
        number = draw.randrange(in_step(1) if first else 1, in_step(12) if first else 24)
        killed(spec, tmp_path, "micro_batch", number)
    killed(spec, tmp_path, "put", draw.randrange(1, 6))
    train(spec)
    assert told(spec) == told(expected)


# One more micro-batch in each process: whether it compiles is tried.
COMPILED = in_step(LAST_STEP_OF_EPOCH, 3) + 2


@pytest.mark.slow
@pytest.mark.parametrize("where", [("micro_batch", COMPILED), AMONG_ITS_FILES])
def test_a_kill_of_a_compiled_run_changes_nothing(tmp_path: Path, where: tuple[str, int]) -> None:
    expected, spec = (with_dropout(tmp_path / name, compile=True) for name in "ab")
    train(expected)
    killed(spec, tmp_path, *where)
    torch.compiler.reset()
    train(spec)
    assert told(spec) == told(expected)


@pytest.mark.parametrize(
    "where", [("micro_batch", in_step(LAST_STEP_OF_EPOCH, 3)), AMONG_ITS_FILES, BEFORE_ITS_INDEX]
)
def test_a_kill_of_a_run_in_a_bucket_changes_nothing(
    tmp_path: Path, s3_root: str, where: tuple[str, int]
) -> None:
    expected = with_dropout(tmp_path / "a")
    spec = with_dropout(tmp_path / "b").model_copy(update={"run_url": f"{s3_root}/run"})
    train(expected)
    killed(spec, tmp_path, *where)
    train(spec)
    assert told(spec) == told(expected)
