"""`loam run` in the test's own process: the real command line and recipes, Prefect left out.

Prefect starts a server, which takes longer than all that these tests look at. One test of
`test_cli.py` goes through it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import cli, corpus, model
from flows.config import PipelineConfig
from flows.running import RunOptions, open_run

Loam = Callable[..., tuple[int, str, str]]


def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run as the plain functions they are, for as long as the test lasts."""
    monkeypatch.setattr("tasks.as_task.in_prefect", lambda name, function: function)
    flow = types.ModuleType("flows.pipeline")
    flow.pipeline = _grow  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flows.pipeline", flow)
    monkeypatch.setattr(cli, "prepare_prefect", lambda _: None)


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Loam:
    """Calls `loam` with arguments: its exit code, standard output and standard error."""
    without_prefect(monkeypatch)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return call


def _grow(config: PipelineConfig, options: RunOptions) -> Path:
    with open_run(config, options) as run:
        grown = corpus.grow_corpus(run, config)
        if config.model is not None:
            model.grow_model(run, config, grown)
    return Path("report.html")
