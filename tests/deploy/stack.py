"""A real server, worker and deployments in a folder of their own, for the tests of this room."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from deploy import processes
from deploy.api import get, post
from deploy.places import HOST, Places
from tests.flows.grown import CONFIG, REPOSITORY, documents

Found = TypeVar("Found")
PATIENCE_S = 240.0
STEPS = 2000


@dataclass(frozen=True)
class Stack:
    """What is up, and the questions that tests have for it."""

    places: Places

    def run(self, module: str, *arguments: str) -> str:
        """`python -m MODULE`, which must succeed. Returns what it printed."""
        ended = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.places.root,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "LOAM_PREFECT_PORT": str(self.places.port),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def up(self, *arguments: str) -> str:
        return self.run("deploy.up", "tiny.toml", *arguments)

    def down(self) -> str:
        return self.run("deploy.down")

    def pids(self) -> dict[str, int]:
        records = {name: processes.recorded(self.places.run, name) for name in ("server", "worker")}
        return {name: record.pid for name, record in records.items() if record}

    def get(self, path: str) -> Any:
        return get(f"{self.places.api_url}/{path}")

    def post(self, path: str, **body: Any) -> Any:
        return post(f"{self.places.api_url}/{path}", body)

    def start_run(self, name: str, store: str) -> str:
        """Starts a run of a deployment, `flow/name`, over another store. Returns its id."""
        deployment = until(lambda: self.get(f"deployments/name/{name}"))
        config = deployment["parameters"]["config"]
        config["store"]["root"] = store
        path = f"deployments/{deployment['id']}/create_flow_run"
        # A busy SQLite answers 503 at times; the key makes asking again start nothing twice.
        once = {"parameters": {"config": config}, "idempotency_key": uuid.uuid4().hex}
        return str(until(lambda: self.post(path, **once))["id"])

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = until(lambda: (self.get(f"flow_runs/{run}") or {}).get("state"))
        return found

    def wait_for_end(self, run: str) -> dict[str, Any]:
        ends = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
        return until(lambda: state if (state := self.state(run))["type"] in ends else None)

    def training(self) -> list[psutil.Process]:
        """Processes that train over a store in this folder."""
        return [
            process
            for process in psutil.process_iter(["cmdline", "cwd", "status"])
            if "llm.launch" in (process.info["cmdline"] or ())
            and process.info["cwd"] == str(self.places.root)
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def wait_for_training(self, store: str) -> None:
        """Returns once a training over this store has logged its first steps."""
        until(lambda: list((self.places.root / store).glob("runs/*/metrics/*.jsonl")))

    def checkpoints(self, store: str) -> list[str]:
        """Steps of the checkpoints there are, as folder names."""
        found = (self.places.root / store).glob("runs/*/checkpoints/*")
        return sorted(path.name for path in found)

    def weights(self, store: str) -> str:
        """The sha256 of the weights that the finished training came to."""
        (result,) = (self.places.root / store).glob("runs/*/result.json")
        return str(json.loads(result.read_text())["weights"]["sha256"])


def until(look: Callable[[], Found | None]) -> Found:
    """Waits for something to be found; fails when it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
    return found


@contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """Everything up over the tiny pipeline, trained for long enough to be interrupted."""
    config = CONFIG.replace("steps = 4", f"steps = {STEPS}\ncheckpoint_every = 100000")
    config = config.replace("threads = 1", 'threads = 1\ndevice = "cpu"\neval_every = 100000')
    (folder / "tiny.toml").write_text(config)
    lines = [json.dumps(row) for row in documents()]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n")
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    stack = Stack(Places(folder, port))
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
