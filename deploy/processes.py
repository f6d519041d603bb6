"""Processes that outlive the command that starts them, each known by a file in `.loam/run`.

A process id alone may by now belong to another program, so the file holds the start time too. Each
process leads a session of its own, so that what it has started can be found and ended with it,
even when it is gone itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from llm.errors import DataError

START_TOLERANCE_S = 2.0
"""The start time is counted from the boot time, which moves when the clock is set."""


@dataclass(frozen=True)
class Record:
    """What the file of a process says."""

    pid: int
    started: float
    """Seconds since the epoch."""
    port: int
    """The server's port, which the worker talks to."""


def start(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
) -> Record:
    """Starts a command in the background, its output appended to `log`, and records it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    record = Record(process.pid, psutil.Process(process.pid).create_time(), port)
    temporary = folder / f".{name}.json"
    temporary.write_text(json.dumps(asdict(record)))
    temporary.replace(folder / f"{name}.json")
    return record


def recorded(folder: Path, name: str) -> Record | None:
    """What the file says, whether or not the process lives. Raises DataError if it is damaged."""
    path = folder / f"{name}.json"
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it") from None


def alive(record: Record | None) -> bool:
    """Whether the very process that was recorded still runs."""
    if record is None:
        return False
    process = _process(record.pid)
    return process is not None and _is(process, record)


def stop(folder: Path, name: str, *, grace_s: float) -> bool:
    """Ends a recorded process and all of its session; returns whether there was any to end.

    What the process has started is asked to end first, so that the process is still there to see
    and to report it. Each step has `grace_s`; what is left after that is killed. Safe after a
    crash: what survived its leader is ended, another program with its id is left alone.
    """
    record = recorded(folder, name)
    if record is None:
        return False
    members = _session(record)
    leaders = [process for process in members if process.pid == record.pid]
    _end([process for process in members if process.pid != record.pid], signal.SIGTERM, grace_s)
    _end(leaders, signal.SIGTERM, grace_s)
    _end(_session(record), signal.SIGKILL, grace_s)
    (folder / f"{name}.json").unlink(missing_ok=True)
    return bool(members)


def _session(record: Record) -> list[psutil.Process]:
    """The living processes of the session that the recorded process leads, or led."""
    leader = _process(record.pid)
    if leader is not None and not _is(leader, record):
        return []
    return [
        process
        for process in psutil.process_iter()
        if _session_id(process.pid) == record.pid and _lives(process)
    ]


def _session_id(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _process(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    return process if _lives(process) else None


def _is(process: psutil.Process, record: Record) -> bool:
    try:
        return abs(process.create_time() - record.started) < START_TOLERANCE_S
    except psutil.NoSuchProcess:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(processes: list[psutil.Process], how: signal.Signals, within_s: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    deadline = time.monotonic() + within_s
    while any(_lives(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
