"""The Prefect flows: corpus, model, and the pipeline that is both and a report.

Each can be scheduled or triggered alone. Planning goes through the same recipes (`flows/corpus.py`,
`flows/model.py`) without importing this module, and so without Prefect.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.cache_policies import NO_CACHE
from prefect.tasks import task

from flows.config import PipelineConfig
from flows.corpus import grow_corpus
from flows.model import current_corpus, grow_model
from flows.reporting import report_on
from flows.running import RunOptions, open_run
from tasks.store.run import Visit


@flow(name="corpus")
def corpus(config: PipelineConfig, options: RunOptions = RunOptions()) -> list[Visit]:
    """Sources to a corpus: crawl or import, clean, deduplicate, scrub, decontaminate, split."""
    with open_run(config, options) as run:
        grow_corpus(run, config)
        return run.visits


@flow(name="model")
def model(config: PipelineConfig, options: RunOptions = RunOptions()) -> list[Visit]:
    """The pipeline's corpus to a trained, evaluated and registered model."""
    with open_run(config, options) as run:
        grow_model(run, config, current_corpus(run))
        return run.visits


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report(config: PipelineConfig, options: RunOptions, visits: list[Visit]) -> Path:
    """One self-contained HTML file about the run."""
    return report_on(config, options, visits)


@flow(name="pipeline")
def pipeline(config: PipelineConfig, options: RunOptions = RunOptions()) -> Path:
    """Corpus, model and report. Returns the place of the report."""
    visits = corpus(config, options)
    if config.model is not None:
        visits = visits + model(config, options)
    return report(config, options, visits)
