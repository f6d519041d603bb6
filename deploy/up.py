"""Starts what stays up: Prefect's server with its UI, a worker, and a config's deployments.

`python -m deploy.up [CONFIG] [--cron CRON]`. Everything listens on loopback only. Safe to repeat:
what is up stays up, what has died is started again, and the deployments are brought up to date.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

from filelock import FileLock

from deploy import processes
from deploy.api import get, post, settle_orphans
from deploy.places import HOST, Places
from flows.config import PipelineConfig, read_config
from llm.errors import ConfigError, LoamError

DEFAULT_CONFIG = Path("flows/configs/quickstart.toml")
PATIENCE_S = 180.0
"""A first start makes the database: 16 CPU-seconds, and more where the machine is busy."""


class NotUp(LoamError):
    """Something that should be up did not come up; the message names its log."""


def bring_up(places: Places, config_path: Path, cron: str | None = None) -> None:
    """Starts server and worker where they are not up, deploys, and returns once a run is scheduled.

    Raises ConfigError for a taken port, or a server of this project on another one; NotUp when
    something does not come up.
    """
    config = read_config(config_path)
    places.run.mkdir(parents=True, exist_ok=True)
    with FileLock(places.run / "up.lock"):
        was_up = _ensure_server(places)
        names = _deploy(places, config_path, config, cron)
        was_up = _ensure_worker(places) and was_up
    print("Loam was up already; its deployments are up to date." if was_up else "Loam is up.")
    print(_where(places, names))


def _ensure_server(places: Places) -> bool:
    """Returns whether it was up already."""
    record = processes.recorded(places.run, "server")
    if record and processes.alive(record):
        if record.port != places.port:
            raise ConfigError(
                f"this project's server is up on port {record.port}, not {places.port}: "
                f"use that one, or stop it first with `make down`"
            )
    else:
        _require_free(places.port)
        places.state.mkdir(parents=True, exist_ok=True)
        record = None
        _start(places, "server", [sys.executable, "-m", "deploy.server", str(places.port)])
    _wait(places, "server", lambda: get(f"{places.api_url}/health") is True)
    return record is not None


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {HOST} cannot be had ({error.strerror}); another program may use "
                f"it: stop that one, or choose another port with LOAM_PREFECT_PORT"
            ) from None


def _deploy(
    places: Places, config_path: Path, config: PipelineConfig, cron: str | None
) -> list[str]:
    os.environ.update(places.environment())
    from flows.deploying import deploy  # it imports Prefect, which reads the settings above

    names = deploy(config_path, config, cron)
    for name in names:
        _wait(places, "server", partial(_is_scheduled, places, name))
    return names


def _is_scheduled(places: Places, name: str) -> bool:
    """Whether the schedule of a deployment, `flow/name`, has made its first run."""
    flow, deployment = name.split("/")
    runs = post(
        f"{places.api_url}/flow_runs/count",
        {
            "flows": {"name": {"any_": [flow]}},
            "deployments": {"name": {"any_": [deployment]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        },
    )
    return bool(runs)


def _ensure_worker(places: Places) -> bool:
    """Returns whether it was up already."""
    from flows.deploying import WORK_POOL

    was_up = processes.alive(processes.recorded(places.run, "worker"))
    if not was_up:
        worker = f"loam-{socket.gethostname()}"
        for name in settle_orphans(places.api_url, WORK_POOL, worker):
            print(f"run {name} had lost its process: it is now Crashed, and can be run again")
        command = [sys.executable, "-m", "prefect", "worker", "start", "--name", worker]
        command += ["--pool", WORK_POOL, "--type", "process", "--install-policy", "never"]
        _start(places, "worker", command)
    _wait(places, "worker", partial(_polls, places, WORK_POOL))
    return was_up


def _polls(places: Places, pool: str) -> bool:
    """Whether the worker that is up has been heard of by the server."""
    record = processes.recorded(places.run, "worker")
    workers = post(f"{places.api_url}/work_pools/{pool}/workers/filter", {}) or []
    heard = [datetime.fromisoformat(worker["last_heartbeat_time"]) for worker in workers]
    return any(record and time.timestamp() > record.started for time in heard)


def _start(places: Places, name: str, command: list[str]) -> None:
    print(f"starting the {name} ...", flush=True)
    processes.start(
        name,
        command,
        port=places.port,
        folder=places.run,
        log=places.logs / f"{name}.log",
        environment={**os.environ, **places.environment()},
    )


def _wait(places: Places, name: str, ready: Callable[[], bool]) -> None:
    """Returns once `ready()`. Raises NotUp if the process dies first, or after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        log = places.logs / f"{name}.log"
        if not processes.alive(processes.recorded(places.run, name)):
            raise NotUp(f"the {name} ended at its start; the end of {log}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise NotUp(
                f"the {name} is not ready after {PATIENCE_S:g} s; the end of {log}:\n{_tail(log)}"
            )
        time.sleep(0.5)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _where(places: Places, names: list[str]) -> str:
    return "\n".join(
        [
            f"  look      {places.ui_url}/deployments",
            f"  run       prefect deployment run {names[-1]}   (or Run, in the UI)",
            f"  deployed  {', '.join(names)}",
            f"  logs      {places.logs}",
            f"  API       export PREFECT_API_URL={places.api_url}",
            "  stop      make down",
        ]
    )


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.up", description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--cron", help="when the pipeline runs by itself, in UTC")
    given = parser.parse_args()
    try:
        bring_up(Places.from_environment(), given.config, given.cron)
    except LoamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
