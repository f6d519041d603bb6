"""The few questions that `deploy.up` has for the server, without waiting for Prefect's import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

UNFINISHED = ["PENDING", "RUNNING", "CANCELLING"]


def get(url: str) -> Any:
    """The JSON that a server answers; None while there is no answer, or an error."""
    return _answer(lambda: httpx.get(url, timeout=5, trust_env=False))


def post(url: str, body: dict[str, Any]) -> Any:
    """As `get`, for a request with a JSON body."""
    return _answer(lambda: httpx.post(url, json=body, timeout=5, trust_env=False))


def _answer(ask: Callable[[], httpx.Response]) -> Any:
    try:
        response = ask()
    except httpx.HTTPError:
        return None
    return response.json() if response.is_success else None


def settle_orphans(api_url: str, pool: str, worker: str) -> list[str]:
    """Sets Crashed what a worker that is down had left unfinished; returns the runs' names.

    Such a run holds its deployment's one slot, so that no other would ever start. A run that had
    time for a heartbeat is also found by the automation (`flows.deploying`), one minute later.
    """
    url = f"{api_url}/flow_runs/filter"
    unfinished = {"state": {"type": {"any_": UNFINISHED}}}
    runs = post(url, {"flow_runs": unfinished, "work_pools": {"name": {"any_": [pool]}}}) or []
    level = [run for run in runs if run["labels"].get("prefect.worker.name") == worker]
    orphans: list[dict[str, Any]] = []
    while level:
        orphans += level
        parents = {"parent_flow_run_id": {"any_": [run["id"] for run in level]}}
        level = post(url, {"flow_runs": unfinished | parents}) or []
    state = {"type": "CRASHED", "message": "Its worker was stopped. Run it again: it resumes."}
    for run in orphans:
        post(f"{api_url}/flow_runs/{run['id']}/set_state", {"state": state})
    return [run["name"] for run in orphans]
