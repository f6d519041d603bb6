"""Processes that outlive the command that started them, on real processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deploy import processes
from deploy.processes import Record
from llm.errors import DataError

SLEEP = "import time; time.sleep(60)"
WITH_A_CHILD = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
pathlib.Path("child").write_text(str(child.pid))
time.sleep(60)
"""
DEAF = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("deaf").touch()
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "run"
    processes.stop(tmp_path / "run", "it", grace_s=1)


def start(folder: Path, code: str) -> Record:
    return processes.start(
        "it",
        [sys.executable, "-c", code],
        port=4200,
        folder=folder,
        log=folder / "it.log",
        environment=os.environ,
    )


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not path.exists() or (path.name == "child" and not path.read_text()):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)
    return path.read_text()


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_process_is_known_from_its_file_until_it_is_stopped(folder: Path) -> None:
    record = start(folder, SLEEP)
    assert processes.recorded(folder, "it") == record
    assert processes.alive(record)
    assert processes.stop(folder, "it", grace_s=5)
    assert not processes.alive(record)
    assert processes.recorded(folder, "it") is None
    assert not processes.stop(folder, "it", grace_s=5)


def test_its_output_goes_to_its_log(folder: Path) -> None:
    start(folder, "print('here', flush=True)")
    deadline = time.monotonic() + 30
    while (folder / "it.log").read_text() != "here\n":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_process_has_started_ends_with_it(folder: Path) -> None:
    start(folder, WITH_A_CHILD)
    child = int(wait_for(Path("child")))
    assert processes.stop(folder, "it", grace_s=5)
    assert not lives(child)


def test_what_outlived_a_killed_process_is_stopped_too(folder: Path) -> None:
    record = start(folder, WITH_A_CHILD)
    child = int(wait_for(Path("child")))
    os.kill(record.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(record.pid)], timeout=5)
    assert not processes.alive(record)
    assert lives(child)
    assert processes.stop(folder, "it", grace_s=5)
    assert not lives(child)


def test_a_process_that_does_not_heed_is_killed(folder: Path) -> None:
    record = start(folder, DEAF)
    wait_for(Path("deaf"))
    assert processes.stop(folder, "it", grace_s=0.5)
    assert not lives(record.pid)


def test_another_program_with_the_recorded_id_is_left_alone(folder: Path) -> None:
    record = start(folder, SLEEP)
    earlier = replace(record, started=record.started - 3600)
    path = folder / "it.json"
    text = path.read_text()
    path.write_text(text.replace(str(record.started), str(earlier.started)))
    assert processes.recorded(folder, "it") == earlier
    assert not processes.alive(earlier)
    assert not processes.stop(folder, "it", grace_s=1)
    assert lives(record.pid)
    path.write_text(text)


def test_a_damaged_file_says_what_to_do(folder: Path) -> None:
    folder.mkdir()
    (folder / "it.json").write_text("{")
    with pytest.raises(DataError, match=r"it\.json is damaged .*: delete it"):
        processes.recorded(folder, "it")
    (folder / "it.json").unlink()
