"""What a run would do, found by walking the recipes themselves: without Prefect, without work.

The recipes stop at the first stage that has something to do; the stages after it follow, and are
run or reused depending on what it gives. How long that takes and how much it writes is told from
the last run of each stage, and where there is none from rates measured once.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from flows.config import PipelineConfig
from flows.corpus import grow_corpus
from flows.dial import model_to_count, trained_tokens
from flows.model import grow_model
from flows.running import RunOptions, open_run
from llm.config_model import n_parameters
from llm.errors import DataError
from llm.pace import measured_flops
from llm.sizing import training_flops_per_token
from tasks.importing.files import read_files
from tasks.ingest import ingest
from tasks.sources import CrawlSource, ImportSource, Source
from tasks.status import find_training
from tasks.store.records import Manifest
from tasks.store.run import Run, Visit, WouldRun
from tasks.store.schema import PAGES
from tasks.store.store import Store
from tasks.train import run_url_of, train_request

CORPUS_STAGES = (
    "extract", "annotate", "select", "takedown", "signatures", "dedup", "scrub", "matches",
    "decontaminate", "split", "census", "alarms", "canaries", "card", "publish corpus",
)  # fmt: skip
MODEL_STAGES = (
    "tokenise", "dataset", "publish dataset", "train", "evaluate", "export", "register"
)  # fmt: skip

Action = Literal["reuse", "run", "follows"]


@dataclass(frozen=True)
class Cost:
    """Seconds of one core and bytes written, both for a byte of text."""

    seconds: float
    written: float


# Measured by the benchmarks `chain` and `incremental` on a core of an x86-64 machine, compiled
# kernels loaded.
COSTS = {
    "extract": Cost(1.2e-7, 0.3),
    "annotate": Cost(4e-8, 0.05),
    "select": Cost(2e-9, 0.01),
    "takedown": Cost(0, 0),
    "signatures": Cost(1e-8, 0.06),
    "dedup": Cost(7e-9, 0.01),
    "scrub": Cost(1.7e-8, 0.3),
    "matches": Cost(2e-8, 0.01),
    "decontaminate": Cost(2e-9, 0.01),
    "split": Cost(2e-9, 0.01),
    "census": Cost(1.2e-8, 0.01),
    "tokenise": Cost(5e-8, 0.3),
    "dataset": Cost(1e-8, 0.03),
}

# Text in a byte of web page, bytes of prose left by zstd, and seconds to import a byte of file.
TEXT_IN_HTML, ZSTD_LEAVES, IMPORT_SECONDS = 0.25, 0.4, 5e-8

# A core in float32 trains 10.7 M parameters on 1,200 tokens a second, and each token takes
# 6 operations a parameter (Kaplan et al. 2020, Scaling Laws for Neural Language Models, table 1).
TRAINING_FLOPS = 6 * 10.7e6 * 1200


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the plan. `rows` come out of it, as of now or as of the last run; `seconds` of
    work and `bytes` written are estimates, None where nothing is known."""

    stage: str
    action: Action
    why: tuple[str, ...] = ()
    rows: int | None = None
    seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a run would do. `visits` are the stages it would only come through."""

    name: str
    store: str
    stages: tuple[PlannedStage, ...]
    visits: tuple[Visit, ...]

    @property
    def to_run(self) -> tuple[PlannedStage, ...]:
        """The stages that are not reused for certain."""
        return tuple(stage for stage in self.stages if stage.action != "reuse")

    @property
    def nothing_to_do(self) -> bool:
        return not self.to_run

    @property
    def seconds(self) -> float:
        """What is known of the time, summed over the stages: of one core."""
        return sum(stage.seconds or 0 for stage in self.to_run)

    @property
    def bytes(self) -> int:
        return sum(stage.bytes or 0 for stage in self.to_run)

    @property
    def complete(self) -> bool:
        """Whether the estimates cover every stage that may run."""
        return all(stage.seconds is not None for stage in self.to_run)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data, its totals with it."""
        return {
            "name": self.name,
            "store": self.store,
            "nothing_to_do": self.nothing_to_do,
            "stages": [asdict(stage) for stage in self.stages],
            "seconds": self.seconds,
            "bytes": self.bytes,
            "complete": self.complete,
        }


def make_plan(config: PipelineConfig, options: RunOptions) -> Plan:
    """What `loam run` would do with this config. Raises ConfigError as the run would."""
    with open_run(config, options, planning=True, say=_quiet) as run:
        stages = tuple(_look_at(run, source) for source in config.sources)
        if due := [stage.stage for stage in stages if stage.action == "run"]:
            stages += _after(run, config, 0, f"if {' or '.join(due)} finds other data")
        else:
            stages += _walk(run, config)
        return Plan(run.name, run.store.root, stages, tuple(run.visits))


def plan_sources(config: PipelineConfig, options: RunOptions) -> dict[str, PlannedStage]:
    """Which of the config's sources are due to be looked at, and why, by name."""
    with open_run(config, options, planning=True, say=_quiet) as run:
        return {source.name: _look_at(run, source) for source in config.sources}


def _quiet(_: str) -> None:
    """Planning has nothing to say of its own."""


def stage_names(config: PipelineConfig) -> tuple[str, ...]:
    """The stages after the sources, in the order of the recipes."""
    stages = CORPUS_STAGES + (MODEL_STAGES if config.model is not None else ())
    return tuple(name for name in stages if name != "canaries" or config.canaries is not None)


def _look_at(run: Run, source: Source) -> PlannedStage:
    """Whether a source is due to be looked at, on its own."""
    name = f"ingest {source.name}"
    ref = run.store.find_ref("snapshot", f"{run.name}/{source.name}")
    rows = run.store.manifest(ref.manifest).rows_out if ref else None
    try:
        ingest(replace(run, visits=[]), source)
    except WouldRun as due:
        crawl = run.store.find_ref("crawl", f"{run.name}/{source.name}")
        begun = crawl is not None and crawl.value["open"]
        why = (*due.reasons, "the crawl that was stopped goes on") if begun else due.reasons
        return PlannedStage(name, "run", why, rows, _seconds_to_look(source, rows))
    return PlannedStage(name, "reuse", (), rows, 0.0, 0)


def _seconds_to_look(source: Source, rows: int | None) -> float | None:
    """How long a look takes at least, where politeness or the size of the files tells."""
    if isinstance(source, ImportSource):
        return sum(file.size for file in read_files(source)) * IMPORT_SECONDS
    if isinstance(source, CrawlSource) and rows is not None:
        return rows * source.delay_s
    return None


def _walk(run: Run, config: PipelineConfig) -> tuple[PlannedStage, ...]:
    """The stages after the sources, all of which are up to date."""
    names = stage_names(config)
    reasons: tuple[str, ...] = ()
    try:
        corpus = grow_corpus(run, config)
        if config.model is not None:
            grow_model(run, config, corpus)
    except WouldRun as due:
        stopped = names[len(run.visits) - len(config.sources)]
        reasons = tuple(_readable(due, stopped, reason) for reason in due.reasons)
        reasons += _goes_on(run, config) if stopped == "train" else ()
    passed = run.visits[len(config.sources) :]
    stages = tuple(
        PlannedStage(name, "reuse", (), _rows(visit.result), 0.0, 0)
        for name, visit in zip(names, passed, strict=False)
    )
    if len(passed) == len(names):
        return stages
    why = f"if {names[len(passed)]} gives other data"
    first, *rest = _after(run, config, len(passed), why)
    return (*stages, replace(first, action="run", why=reasons), *rest)


def _after(run: Run, config: PipelineConfig, start: int, why: str) -> tuple[PlannedStage, ...]:
    """The stages from `start` on, which follow for the reason given."""
    text_bytes = _text_bytes(run, config)
    planned = []
    for name in stage_names(config)[start:]:
        before = run.previous.get(name)
        seconds, written = _estimate(run, config, name, before, text_bytes)
        planned.append(PlannedStage(name, "follows", (why,), _rows(before), seconds, written))
    return tuple(planned)


def _goes_on(run: Run, config: PipelineConfig) -> tuple[str, ...]:
    """Where the training that is due was stopped, if it has begun already."""
    if config.model is None:
        return ()
    request = train_request(run.visits[-1].result, config.model, config.train)
    begun = find_training(run.store, run_url_of(run, request))
    if begun is None:
        return ()
    return (f"stopped at step {begun.step:,} of {begun.steps:,}, it goes on from its checkpoint",)


def _readable(due: WouldRun, stage: str, reason: str) -> str:
    """A difference of fingerprints' payloads in words: whose it is, and without the prefix."""
    if due.stage != stage.split(" ")[0]:
        return f"{due.stage}: {reason}"
    if reason.startswith("inputs."):
        role, change = reason.removeprefix("inputs.").split(": ", 1)
        return f"other data from {role} ({change})"
    return reason.removeprefix("config.")


def _rows(result: Any) -> int | None:
    return result.rows_out if isinstance(result, Manifest) else None


# estimates


def _text_bytes(run: Run, config: PipelineConfig) -> int | None:
    """About how much text goes through the stages; None while nobody can tell."""
    made = [visit.result for visit in run.visits if visit.name == "extract"]
    if before := made[0] if made else run.previous.get("extract"):
        return int(before.summary["stats"].get("text_bytes", 0))
    sizes = [_source_bytes(run, source) for source in config.sources]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _source_bytes(run: Run, source: Source) -> int | None:
    """About how much text a source holds, by its snapshot or its files."""
    ref = run.store.find_ref("snapshot", f"{run.name}/{source.name}")
    if ref is not None:
        return _snapshot_bytes(run.store, run.store.manifest(ref.manifest))
    if isinstance(source, ImportSource):
        return sum(file.size for file in read_files(source))
    return None


def _snapshot_bytes(store: Store, snapshot: Manifest) -> int:
    total = 0.0
    for receipt in store.receipts(snapshot):
        pages = receipt.output(PAGES.kind)
        if pages is not None:
            sizes = store.read_table(pages, PAGES, ["payload_bytes"]).column(0).to_pylist()
            total += TEXT_IN_HTML * sum(size or 0 for size in sizes)
        else:
            total += sum(ref.bytes for ref in receipt.outputs) / ZSTD_LEAVES
    return int(total)


def _estimate(
    run: Run,
    config: PipelineConfig,
    stage: str,
    before: Manifest | None,
    text_bytes: int | None,
) -> tuple[float | None, int | None]:
    """Seconds and bytes of a stage: as the last time, else by the measured rates."""
    if stage == "train":
        return _training(run, config, before)
    if before is not None and "seconds" in before.provenance:
        refs = [ref for receipt in run.store.receipts(before) for ref in receipt.outputs]
        refs += [ref for group in before.objects.values() for ref in group]
        return float(before.provenance["seconds"]), sum(ref.bytes for ref in refs)
    if stage not in COSTS:
        return 0.0, 0
    if text_bytes is None:
        return None, None
    cost = COSTS[stage]
    return round(cost.seconds * text_bytes, 1), int(cost.written * text_bytes)


def _training(
    run: Run, config: PipelineConfig, before: Manifest | None
) -> tuple[float | None, int | None]:
    """Training by its arithmetic, at the rate of the last training where there was one."""
    if config.model is None:
        return None, None
    shape, rate = model_to_count(config), TRAINING_FLOPS
    if before is not None:
        # Where it has logged no rate, it was too short to.
        with contextlib.suppress(DataError):
            rate = measured_flops(f"{run.store.root}/{before.summary['run']}")
    flops = training_flops_per_token(shape) * trained_tokens(config.train, shape)
    # Weights once, and checkpoints with two moments beside the weights, in float32.
    written = 4 * n_parameters(shape) * (1 + 3 * config.train.keep_checkpoints)
    return round(flops / rate, 1), written
