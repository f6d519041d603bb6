"""Deployments: a config's flows, registered with a Prefect server under a schedule each."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import Flow
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.types.entrypoint import EntrypointType

from flows import pipeline as flows
from flows.config import PipelineConfig
from llm.errors import ConfigError

WORK_POOL = "loam"

HEARTBEAT_S = 30
"""Prefect's least interval between two heartbeats of a flow run."""

SILENCE_S = 90
"""Three heartbeats missed: the run's process, and the worker that would have said so, are gone."""

CRASH_AUTOMATION = "loam: a run whose heartbeat stops has crashed"

ENDED = ("Completed", "Failed", "Cancelled", "Crashed")


@dataclass(frozen=True)
class Scheduled:
    """A flow and when it runs by itself."""

    flow: Flow[..., Any]
    cron: str
    """Minute, hour, day of month, month, day of week; in UTC."""


CORPUS = Scheduled(flows.corpus, "0 1 * * *")
"""Nightly. The hours are ours: one flow ends, as a rule, before the next begins."""
MODEL = Scheduled(flows.model, "0 4 * * *")
"""Nightly, on what the corpus has become."""
PIPELINE = Scheduled(flows.pipeline, "0 8 * * 0")
"""On Sundays, with a report."""


def deploy(config_path: Path, config: PipelineConfig, cron: str | None = None) -> list[str]:
    """Registers the config's flows, or updates them, and returns their names, `flow/name`.

    Runs start with this interpreter in the current folder, to which the config's paths are
    relative. A deployment runs once at a time; what comes meanwhile waits. `cron` replaces the
    pipeline's schedule. A config without a model has no `model` deployment, and loses one it had.

    Raises ConfigError when no server answers, or for a `cron` that is none.
    """
    wanted = [CORPUS, Scheduled(flows.pipeline, cron or PIPELINE.cron)]
    if config.model is not None:
        wanted.insert(1, MODEL)
    with temporary_settings({PREFECT_API_URL: api_url()}):
        deployments = [_deployment(each, config_path, config) for each in wanted]
        with get_client(sync_client=True) as client:
            _require_server(client)
            _ensure_work_pool(client)
            _ensure_crash_automation(client)
            if config.model is None:
                _remove(client, f"{flows.model.name}/{config.name}")
        for deployment in deployments:
            deployment.apply()
    return [deployment.full_name for deployment in deployments]


def api_url() -> str:
    """The server's API: PREFECT_API_URL, or where `make up` starts it."""
    port = os.environ.get("LOAM_PREFECT_PORT", "4200")
    return PREFECT_API_URL.value() or f"http://127.0.0.1:{port}/api"


def _deployment(
    scheduled: Scheduled, config_path: Path, config: PipelineConfig
) -> RunnerDeployment:
    try:
        schedule = Cron(scheduled.cron, timezone="UTC", slug="schedule")
        return RunnerDeployment.from_flow(
            scheduled.flow,
            name=config.name,
            schedule=schedule,
            concurrency_limit=ConcurrencyLimitConfig(limit=1),
            parameters={
                "config": config.model_dump(mode="json", exclude_unset=True),
                "options": {},
            },
            description=f"{_first_line(scheduled.flow)} Deployed from `{config_path}`.",
            tags=["loam", config.name],
            work_pool_name=WORK_POOL,
            job_variables={
                "command": shlex.join([sys.executable, "-m", "prefect.engine"]),
                "working_dir": str(Path.cwd()),
                "env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)},
            },
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
    except ValueError as error:
        raise ConfigError(
            f"cron {scheduled.cron!r} is no schedule: expected five fields, as in '0 8 * * 0' for "
            f"Sundays at 8 ({error})"
        ) from None


def _first_line(flow: Flow[..., Any]) -> str:
    return (flow.description or "").strip().split("\n")[0]


def _require_server(client: SyncPrefectClient) -> None:
    try:
        client.hello().raise_for_status()
    except httpx.HTTPError as error:
        raise ConfigError(
            f"no Prefect server answers at {client.api_url} ({type(error).__name__}): start one "
            "with `make up`, or set PREFECT_API_URL to one that is up"
        ) from None


def _ensure_work_pool(client: SyncPrefectClient) -> None:
    try:
        client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
    except ObjectAlreadyExists:
        return


def _ensure_crash_automation(client: SyncPrefectClient) -> None:
    """Sets a run CRASHED whose heartbeats stop before it has ended.

    A worker sees the death of a flow's process by itself; this is for the case in which the
    worker, or its whole machine, died too. Looked up by name first, as creating it twice makes
    two; and left alone where it is the same, as an update forgets the runs it is waiting for.
    """
    automation = AutomationCore(
        name=CRASH_AUTOMATION,
        description=f"No heartbeat for {SILENCE_S} s: the process and its worker are gone.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                *(f"prefect.flow-run.{state}" for state in ENDED),
            },
            threshold=1,
            within=timedelta(seconds=SILENCE_S),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {SILENCE_S} s. Run it again: it resumes.",
            )
        ],
    )
    known = client.read_automations_by_name(CRASH_AUTOMATION)
    if not known:
        client.create_automation(automation)
    elif _decides(known[0]) != _decides(automation):
        client.update_automation(known[0].id, automation)


def _decides(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does, without the ids that the server gives it."""
    fields = {"description": True, "trigger": True, "actions": True}
    decisive = automation.model_dump(include=fields)
    decisive["trigger"].pop("id", None)
    return decisive


def _remove(client: SyncPrefectClient, name: str) -> None:
    try:
        client.delete_deployment(client.read_deployment_by_name(name).id)
    except ObjectNotFound:
        return
