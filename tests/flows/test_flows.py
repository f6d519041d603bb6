"""The flows on a real Prefect server, which a session starts once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from flows.config import PipelineConfig, parse_config
from llm.errors import ConfigError, DataError
from tests.flows.grown import documents

STAGES = [
    *("ingest", "extract", "annotate", "select", "takedown", "signatures", "dedup", "scrub"),
    *("matches", "decontaminate", "split", "census", "alarms", "card", "publish"),
    *("tokenise", "dataset", "publish", "train", "evaluate", "export", "register", "report"),
]


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    from prefect.settings import PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        temporary_settings({PREFECT_SERVER_ANALYTICS_ENABLED: False}),
        prefect_test_harness(server_startup_timeout=180),
    ):
        yield


def tiny(folder: Path, **changes: Any) -> PipelineConfig:
    """A pipeline of 20 steps over a few lines of text, all of it in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "docs.jsonl").exists():
        lines = [json.dumps(row) for row in documents()]
        (folder / "docs.jsonl").write_text("\n".join(lines) + "\n")
    data = {
        "name": "tiny",
        "store": {
            "root": f"{folder}/store",
            "workers": 1,
            "cache_dir": f"{folder}/cache",
            "reports": f"{folder}/reports",
        },
        "sources": [{"kind": "import", "name": "docs", "paths": [f"{folder}/docs.jsonl"]}],
        "select": {"gopher_repetition": False},
        "tokenizer": {"vocab_size": 400},
        "model": {"context_length": 32, "n_layers": 1, "d_model": 32, "n_heads": 2},
        "train": {"steps": 20, "batch_size": 2, "threads": 1, "device": "cpu", "sample_tokens": 8},
    }
    return parse_config(data | changes, "tiny")


@dataclass(frozen=True)
class Finished:
    """A pipeline run that ended well."""

    report: Path
    tasks: list[str]
    """The names of its tasks and of its subflows', as they started."""
    store: dict[str, bytes]
    """Every small file of the store that says what came of the run. (That a source was looked at
    again is noted in its snapshot's ref.)"""


def run_pipeline(config: PipelineConfig) -> Finished:
    from flows.pipeline import pipeline

    state = pipeline(config, return_state=True)
    root = Path(config.store.root)
    kept = {
        str(path.relative_to(root)): path.read_bytes()
        for kind in ("actions", "manifests", "refs/corpus", "refs/dataset", "refs/pin", "models")
        for path in sorted((root / kind).rglob("*"))
        if path.is_file()
    }
    return Finished(state.result(), task_names(state.state_details.flow_run_id), kept)


def task_names(flow_run: UUID | None) -> list[str]:
    """A run's tasks by name, in the order of their start. They reach the database by and by."""
    deadline = time.monotonic() + 60
    while len(names := _task_names(flow_run)) < len(STAGES) and time.monotonic() < deadline:
        time.sleep(0.2)
    return names


def _task_names(flow_run: UUID | None) -> list[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_task_runs(limit=200) if run.start_time]
        subflows = [run for run in client.read_flow_runs() if run.parent_task_run_id]
    # A subflow stands among the tasks of its parent as well.
    inside = {run.id: run for run in runs if run.flow_run_id == flow_run}
    flows = {flow_run} | {run.id for run in subflows if run.parent_task_run_id in inside}
    stand_ins = {run.parent_task_run_id for run in subflows}
    mine = [run for run in runs if run.flow_run_id in flows and run.id not in stand_ins]
    return [run.name.rsplit("-", 1)[0] for run in sorted(mine, key=lambda run: str(run.start_time))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flows")


@pytest.fixture(scope="module")
def first(server: None, folder: Path) -> Finished:
    return run_pipeline(tiny(folder))


def test_the_pipeline_s_tasks_are_named_as_its_stages(first: Finished) -> None:
    assert first.tasks == STAGES


def test_the_pipeline_ends_with_a_report(first: Finished) -> None:
    assert "tiny" in first.report.read_text()


def test_a_second_run_comes_through_every_stage_and_changes_nothing(
    first: Finished, folder: Path
) -> None:
    second = run_pipeline(tiny(folder))
    assert second.tasks == STAGES
    assert second.store == first.store


def test_the_model_flow_says_that_it_needs_a_corpus(server: None, tmp_path: Path) -> None:
    from flows.pipeline import model

    with pytest.raises(DataError, match="no corpus/tiny yet; run the corpus flow first"):
        model(tiny(tmp_path))


def deployments() -> dict[str, Any]:
    """What the server knows, by `flow/name`."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        flow_names = {flow.id: flow.name for flow in client.read_flows()}
        return {f"{flow_names[d.flow_id]}/{d.name}": d for d in client.read_deployments()}


def test_deploying_twice_updates_what_is_there(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    from flows.deploying import CRASH_AUTOMATION, deploy

    monkeypatch.chdir(tmp_path)
    names = deploy(Path("tiny.toml"), tiny(tmp_path))
    before = deployments()
    assert names == ["corpus/tiny", "model/tiny", "pipeline/tiny"]
    assert sorted(before) == names
    assert deploy(Path("tiny.toml"), tiny(tmp_path), "30 5 * * 1") == names
    after = deployments()
    assert {name: d.id for name, d in after.items()} == {name: d.id for name, d in before.items()}
    crons = {name: [s.schedule.cron for s in d.schedules] for name, d in after.items()}
    assert crons == {
        "corpus/tiny": ["0 1 * * *"],
        "model/tiny": ["0 4 * * *"],
        "pipeline/tiny": ["30 5 * * 1"],
    }
    with get_client(sync_client=True) as client:
        assert len(client.read_automations_by_name(CRASH_AUTOMATION)) == 1
    for deployment in after.values():
        assert deployment.global_concurrency_limit.limit == 1
        assert deployment.job_variables["working_dir"] == str(tmp_path)


def test_a_deployment_s_parameters_are_the_config(server: None, tmp_path: Path) -> None:
    """The UI makes its form of the schema, and a run the config of the parameters."""
    from flows.deploying import deploy

    config = tiny(tmp_path)
    deploy(Path("tiny.toml"), config)
    deployment = deployments()["pipeline/tiny"]
    assert PipelineConfig.model_validate(deployment.parameters["config"]) == config
    train = deployment.parameter_openapi_schema["definitions"]["TrainConfig"]["properties"]
    assert train["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert "Updates of the weights" in train["steps"]["description"]


def test_a_config_that_loses_its_model_loses_its_model_deployment(
    server: None, tmp_path: Path
) -> None:
    from flows.deploying import deploy

    deploy(Path("tiny.toml"), tiny(tmp_path))
    assert deploy(Path("tiny.toml"), tiny(tmp_path, model=None)) == ["corpus/tiny", "pipeline/tiny"]
    assert sorted(deployments()) == ["corpus/tiny", "pipeline/tiny"]


def test_a_cron_that_is_none_is_refused(server: None, tmp_path: Path) -> None:
    from flows.deploying import deploy

    with pytest.raises(ConfigError, match="'at noon' is no schedule: expected five fields"):
        deploy(Path("tiny.toml"), tiny(tmp_path), "at noon")


def test_deploying_without_a_server_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.deploying import deploy

    nowhere = "http://127.0.0.1:9/api"
    with pytest.raises(httpx.ConnectError):
        httpx.get(nowhere)
    with (
        temporary_settings({PREFECT_API_URL: nowhere}),
        pytest.raises(ConfigError, match=r"no Prefect server answers .* `make up`"),
    ):
        deploy(Path("tiny.toml"), tiny(tmp_path))
