"""Whole runs in several processes: what they log, write and resume from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm import checkpoint, files, parallel
from llm.config_optim import OptimConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.errors import ConfigError
from llm.launch import main, processes
from llm.metrics import TIMINGS, read_metrics
from llm.train import EX_TEMPFAIL, train
from tests.llm.small_runs import small_spec, torch_settings_kept
from tests.llm.test_parallel import torchrun

ROOT = Path(__file__).parents[2]
KINDS = ("ddp", "fsdp2")
# Muon rounds to bfloat16, which makes more of the last digits in which worlds differ.
ADAMW = OptimConfig(optimizer="adamw", warmup_steps=4)
SETTINGS = {
    "steps": 24, "checkpoint_every": 8, "eval_every": 6, "sample_every": 12, "optim": ADAMW,
    "accumulation_steps": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def spec_of(folder: Path, kind: str, **train: Any) -> TrainSpec:
    return small_spec(folder, **(SETTINGS | {"processes": 2, "parallel": kind} | train))


def path_of(spec: TrainSpec) -> Path:
    return files.local_path(spec.run_url)


def start(spec: TrainSpec, *options: str) -> subprocess.Popen[str]:
    path = path_of(spec).parent / "spec.json"
    path.write_text(spec.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-m", "llm.launch", *options, str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(spec: TrainSpec) -> str:
    """Runs to the end; what was said on the way."""
    child = start(spec)
    _, said = child.communicate()
    assert child.returncode == 0, said
    return said


def rows(spec: TrainSpec) -> list[dict[str, Any]]:
    found = read_metrics(spec.run_url)
    return [{name: row[name] for name in row.keys() - TIMINGS} for row in found]


def told(spec: TrainSpec) -> dict[str, Any]:
    """All that a run says but its timings."""
    result = json.loads((path_of(spec) / "result.json").read_bytes())
    samples = {path.name: path.read_text() for path in (path_of(spec) / "samples").iterdir()}
    return {"rows": rows(spec), "weights": result["weights"]["sha256"], "samples": samples}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_two_processes_logs_samples_and_validates_what_one_does(
    tmp_path: Path, kind: str
) -> None:
    alone, together = spec_of(tmp_path / "a", kind), spec_of(tmp_path / "b", kind)
    train(alone)
    said = finish(together)
    assert said.count("step 24/24") == 1  # One process speaks for all.
    expected, found = rows(alone), rows(together)
    assert [row["step"] for row in found] == list(range(1, 25))
    for one, other in zip(found, expected, strict=True):
        for name in one.keys() - {"grad_norm"}:
            assert one[name] == pytest.approx(other[name], rel=1e-6), (one["step"], name)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    assert told(together)["samples"] == told(alone)["samples"]
    result = json.loads((path_of(together) / "result.json").read_bytes())
    assert result["environment"]["world_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [("1",), ("0", "1")])
@pytest.mark.parametrize("kind", KINDS)
def test_kill_9_of_one_or_all_processes_and_resume_end_where_an_undisturbed_run_ends(
    tmp_path: Path, kind: str, ranks: tuple[str, ...]
) -> None:
    muon = {"optim": OptimConfig(optimizer="muon", warmup_steps=4)}
    undisturbed, killed = (spec_of(tmp_path / name, kind, **muon) for name in "ab")
    finish(undisturbed)
    path = tmp_path / "spec.json"
    path.write_text(killed.model_dump_json())
    died = torchrun(2, "tests.llm.signalled_run", str(path), "21", "SIGKILL", *ranks)
    assert died.returncode != 0
    assert "resumed at step 16" in finish(killed)
    assert told(killed) == told(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "EOF", "SIGTERM to one rank"])
def test_a_stopped_run_saves_on_all_processes_and_another_world_goes_on(
    tmp_path: Path, how: str
) -> None:
    kind = "ddp" if how == "EOF" else "fsdp2"
    undisturbed = spec_of(tmp_path / "a", kind)
    stopped = spec_of(tmp_path / "b", kind, steps=24)
    train(undisturbed)
    if how == "SIGTERM to one rank":
        path = tmp_path / "spec.json"
        path.write_text(stopped.model_dump_json())
        done = torchrun(2, "tests.llm.signalled_run", str(path), "9", "SIGTERM", "1")
        assert done.stderr.count("stopped at step 10 of 24") == 1
    else:
        child = start(stopped, "--stop-at-eof")
        while not (path_of(stopped) / "checkpoints").exists() and child.poll() is None:
            time.sleep(0.01)
        if how == "EOF":
            assert child.stdin is not None
            child.stdin.close()
        else:
            os.killpg(child.pid, signal.SIGTERM)
        assert child.wait() == EX_TEMPFAIL
    found = checkpoint.latest(stopped.run_url)
    assert found is not None
    assert 8 <= found.step < 24
    assert [row["step"] for row in rows(stopped)] == list(range(1, found.step + 1))
    train(stopped)
    for one, other in zip(rows(stopped), rows(undisturbed), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    parallel.check_share(4, 2)
    said = "batch_size is 3, which 2 processes cannot share evenly: the next that they can is 4"
    with pytest.raises(ConfigError, match=said):
        parallel.check_share(3, 2)


def test_the_launcher_refuses_it_before_it_starts_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llm.launch.run", None)
    (tmp_path / "spec.json").write_text(spec_of(tmp_path, "ddp", processes=3).model_dump_json())
    assert main([str(tmp_path / "spec.json")]) == 2
    assert "which 3 processes cannot share evenly" in capsys.readouterr().err


def test_a_run_has_as_many_processes_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert processes(TrainConfig(batch_size=16)) == 8
    assert processes(TrainConfig(batch_size=12)) == 6
    assert processes(TrainConfig(batch_size=16, processes=3)) == 3
    assert processes(TrainConfig(batch_size=16, device="cpu")) == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert processes(TrainConfig(batch_size=16)) == 1
