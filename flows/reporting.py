"""The report of a pipeline: where it goes and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flows.config import PipelineConfig
from flows.running import RunOptions, run_name
from tasks.card import write_card
from tasks.inspecting import line_of
from tasks.report import write_report
from tasks.store.run import Visit
from tasks.store.store import Store


def report_on(config: PipelineConfig, options: RunOptions, visits: Sequence[Visit]) -> Path:
    """Writes the report of a run that came through `visits`, and the card of its corpus into a
    folder beside it. Returns the report's place."""
    store, name = Store.at(config.store.root), run_name(config, options.sample)
    write_card(store, line_of(visits), f"{config.store.reports}/{name}", _wanted_tokens(config))
    return write_report(
        store,
        name,
        visits,
        config.model_dump(mode="json", exclude_none=True),
        config.store.reports,
    )


def _wanted_tokens(config: PipelineConfig) -> int | None:
    """How many tokens the training goes through; None where there is none."""
    if config.model is None:
        return None
    train = config.train
    windows = train.steps * train.batch_size * train.accumulation_steps
    return windows * config.model.context_length
