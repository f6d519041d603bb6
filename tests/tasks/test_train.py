from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from llm import checkpoint
from llm.metrics import read_metrics
from tasks.train import TrainingFailed, run_child
from tests.llm.small_runs import small_spec


def processes_that_name(text: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if text in line]


@pytest.mark.slow
def test_a_training_of_two_processes_that_loses_its_lease_saves_and_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # So that its processes name it.
    endless = 1_000_000
    spec = small_spec(
        tmp_path / "run", processes=2, steps=endless, checkpoint_every=endless, eval_every=endless
    )
    lost = threading.Event()

    def lose_it() -> None:
        while not read_metrics(spec.run_url):
            time.sleep(0.1)
        lost.set()

    threading.Thread(target=lose_it, daemon=True).start()
    with pytest.raises(TrainingFailed, match="taken this training over"):
        run_child(spec, lost)
    assert processes_that_name(str(tmp_path)) == []
    found = checkpoint.latest(spec.run_url)
    assert found is not None
    assert found.state["progress"]["step"] == read_metrics(spec.run_url)[-1]["step"]
