"""What stays up, on a real server with a real worker: starting, cancelling, crashing, stopping."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import psutil
import pytest

from deploy import processes
from tests.deploy.stack import STEPS, Stack, running_stack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NAMES = ["corpus/tiny", "model/tiny", "pipeline/tiny"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("up")) as running:
        yield running


def test_each_deployment_has_a_scheduled_run(stack: Stack) -> None:
    for name in NAMES:
        deployment = stack.get(f"deployments/name/{name}")
        runs = stack.post(
            "flow_runs/filter",
            deployments={"id": {"any_": [deployment["id"]]}},
            flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
        )
        assert runs, name
        assert all(run["auto_scheduled"] for run in runs)


def test_a_second_up_says_it_is_up_and_leaves_it_be(stack: Stack) -> None:
    before, scheduled = stack.pids(), stack.post("flow_runs/count")
    said = stack.up()
    assert "Loam was up already" in said
    assert f"http://127.0.0.1:{stack.places.port}" in said
    assert stack.pids() == before
    assert stack.post("deployments/count") == len(NAMES)
    assert stack.post("automations/count") == 1
    assert stack.post("flow_runs/count") == scheduled


def test_nothing_listens_beyond_loopback(stack: Stack) -> None:
    for pid in stack.pids().values():
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            for connection in process.net_connections("inet"):
                assert connection.laddr.ip in {"127.0.0.1", "::1"}, connection


def test_the_ui_may_talk_to_its_own_server_only(stack: Stack) -> None:
    policy = httpx.get(stack.places.ui_url).headers["Content-Security-Policy"]
    here = f"127.0.0.1:{stack.places.port}"
    assert f"connect-src 'self' http://{here} ws://{here};" in policy


def test_a_cancelled_training_resumes_and_ends_as_an_undisturbed_one(stack: Stack) -> None:
    run = stack.start_run("pipeline/tiny", "disturbed")
    stack.wait_for_training("disturbed")
    assert stack.training()
    stack.post(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    assert stack.wait_for_end(run)["type"] == "CANCELLED"
    assert not stack.training()
    (stopped_at,) = stack.checkpoints("disturbed")
    assert 0 < int(stopped_at) < STEPS

    again = stack.start_run("pipeline/tiny", "disturbed")
    assert stack.wait_for_end(again)["type"] == "COMPLETED"
    assert f"resumed at step {int(stopped_at)}" in (stack.places.logs / "worker.log").read_text()
    whole = stack.start_run("pipeline/tiny", "undisturbed")
    assert stack.wait_for_end(whole)["type"] == "COMPLETED"
    assert stack.weights("disturbed") == stack.weights("undisturbed")


def test_stopping_everything_ends_a_training_with_a_checkpoint(stack: Stack) -> None:
    run = stack.start_run("pipeline/tiny", "stopped")
    stack.wait_for_training("stopped")
    assert stack.down() == "stopped: worker, server\n"
    assert not stack.training()
    assert len(stack.checkpoints("stopped")) == 1
    stack.up()
    assert stack.state(run)["type"] == "CRASHED"


def kill_worker_and_run(stack: Stack) -> None:
    worker = psutil.Process(stack.pids()["worker"])
    for process in [worker, *worker.children()]:
        os.kill(process.pid, signal.SIGKILL)


def test_up_after_a_crash_settles_what_was_running_and_starts_a_worker(stack: Stack) -> None:
    run = stack.start_run("pipeline/tiny", "crashed")
    stack.wait_for_training("crashed")
    before = stack.pids()
    kill_worker_and_run(stack)
    until(lambda: not stack.training())
    assert len(stack.checkpoints("crashed")) == 1
    assert "had lost its process" in stack.up()
    assert stack.state(run)["type"] == "CRASHED"
    assert stack.pids()["server"] == before["server"]
    assert stack.pids()["worker"] != before["worker"]
    # The slot of the dead run is free again: another one starts.
    again = stack.start_run("pipeline/tiny", "crashed")
    assert stack.wait_for_end(again)["type"] == "COMPLETED"


def test_a_run_whose_worker_died_too_is_set_crashed_by_its_missing_heartbeat(stack: Stack) -> None:
    run = stack.start_run("pipeline/tiny", "silent")
    stack.wait_for_training("silent")
    kill_worker_and_run(stack)
    assert "heartbeat" in stack.wait_for_end(run)["message"]
    stack.up()


def test_down_leaves_nothing_behind_and_can_be_repeated(stack: Stack) -> None:
    records = [processes.recorded(stack.places.run, name) for name in ("server", "worker")]
    assert all(processes.alive(record) for record in records)
    assert stack.down() == "stopped: worker, server\n"
    assert not any(processes.alive(record) for record in records)
    assert stack.down() == "nothing was up\n"
    assert not list(stack.places.run.glob("*.json"))
