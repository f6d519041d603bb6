"""The report of a pipeline: where it goes and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.config import PipelineConfig
from flows.running import RunOptions, run_name
from tasks.report import write_report
from tasks.store.run import Visit
from tasks.store.store import Store


def report_on(config: PipelineConfig, options: RunOptions, visits: Sequence[Visit]) -> Path:
    """Writes the report of a run that came through `visits`. Returns its place."""
    return write_report(
        Store.at(config.store.root),
        run_name(config, options.sample),
        visits,
        config.model_dump(mode="json", exclude_none=True),
        config.store.reports,
    )
