"""The report of a run, out of what the store holds and what the run came through.

What it says of data is the same for the same data; what it says of the run (when, how long, where
from) is the run's own. `tasks/report_page.py` is the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm import files
from llm.errors import DataError
from tasks import report_corpus, report_model
from tasks.alarms import read_alarms
from tasks.as_toml import as_toml
from tasks.inspecting import line_of, stage_name
from tasks.register import Registered
from tasks.report_page import (
    Fact,
    LineageStage,
    ReportData,
    Timing,
    format_count,
    format_duration,
    format_size,
    render_report,
)
from tasks.store.corpus import open_corpus
from tasks.store.records import Manifest
from tasks.store.run import Visit
from tasks.store.store import Store


@dataclass(frozen=True)
class Told:
    """What a report tells of: the stages a run came through, their manifests in that order, and
    its config as plain data."""

    store: Store
    name: str
    manifests: tuple[Manifest, ...]
    visits: tuple[Visit, ...]
    config: Mapping[str, Any]

    def find(self, stage: str) -> Manifest | None:
        return next((one for one in self.manifests if one.stage == stage), None)

    @property
    def registered(self) -> Registered | None:
        found = [one.result for one in self.visits if isinstance(one.result, Registered)]
        return found[-1] if found else None

    @property
    def run(self) -> str:
        """The run that made the newest of the manifests."""
        return str(self._newest.provenance.get("run_id", ""))

    @property
    def when(self) -> str:
        return str(self._newest.provenance.get("at", ""))

    @property
    def _newest(self) -> Manifest:
        return max(self.manifests, key=lambda one: str(one.provenance.get("at", "")))


def report_path(folder: str | Path, name: str) -> Path:
    """Where the newest report of a pipeline lies."""
    return Path(folder) / f"{name}.html"


def write_report(
    store: Store,
    name: str,
    visits: Sequence[Visit],
    config: Mapping[str, Any],
    folder: str | Path,
) -> Path:
    """Writes the report of the run that came through `visits` and returns its place.

    It is `<name>.html` in the local `folder`, where the next one replaces it; a run that made
    something keeps its own beside it, under its id. `config` is the run's, without nulls.
    Raises DataError where `visits` lack a corpus.
    """
    told = Told(store, name, tuple(line_of(visits)), tuple(visits), config)
    body = render_report(assemble(told)).encode()
    places = [report_path(folder, name)]
    if not all(visit.reused for visit in visits):
        places.append(report_path(folder, f"{name}-{told.run}"))
    for place in places:
        files.put(str(place), body)
    return places[0]


def assemble(told: Told) -> ReportData:
    """Everything that the report shows."""
    labelled = told.find("split")
    if labelled is None:
        raise DataError(f"the run of {told.name} came through no corpus; run the corpus flow first")
    parts = {**_corpus_parts(told, labelled), **_model_parts(told)}
    alarmed = told.find("alarms")
    parts["notes"] = (*parts.pop("language_notes"), *_notes(told))
    data = ReportData(
        title=told.name,
        run=told.run,
        ref=f"corpus/{told.name}",
        when=told.when.replace("T", " ").replace("Z", " UTC"),
        alarms=tuple(map(str, read_alarms(alarmed))) if alarmed else (),
        lineage=_lineage(told.manifests),
        timings=_timings(told.visits),
        versions=_versions(told.manifests),
        config_toml=as_toml(told.config),
        **parts,
    )
    return data.model_copy(update={"verdict": _verdict(data), "highlights": _highlights(data)})


def _corpus_parts(told: Told, labelled: Manifest) -> dict[str, Any]:
    store, corpus = told.store, open_corpus(told.store, labelled)
    languages, by_model = report_corpus.languages_part(store, corpus)
    parts: dict[str, Any] = {
        "funnel": report_corpus.funnel_part(store, told.manifests),
        "drops": report_corpus.drops_part(store, told.manifests),
        "quarantine": report_corpus.quarantine_part(store, told.manifests),
        "pii": report_corpus.pii_part(store, corpus),
        "canaries": report_corpus.canaries_part(told.manifests),
        "sources": report_corpus.sources_part(store, corpus),
        "languages": languages,
        "language_notes": ()
        if by_model
        else (
            "No language-id model was given (annotate.language_model): a document's language is "
            "what its page says.",
        ),
    }
    matched, decided = told.find("matches"), told.find("decontaminate")
    if matched is not None and decided is not None:
        parts["benchmarks"], parts["contaminations"], parts["n_contaminations"] = (
            report_corpus.contamination_part(store, matched, decided)
        )
    dataset = told.find("dataset")
    if dataset is not None:
        words = report_corpus.word_counts(store, corpus)
        parts["tokens"] = report_model.tokens_part(store, dataset, words)
        parts["tokenizer"], parts["reserved_tokens"] = report_model.tokenizer_part(store, dataset)
    return parts


def _model_parts(told: Told) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    trained, evaluated = told.find("train"), told.find("evaluate")
    if trained is not None:
        parts |= report_model.model_part(trained)
        parts["training"], parts["validation"] = report_model.curves_part(told.store, trained)
        parts["samples"] = report_model.samples_part(told.store, trained)
    registered = told.registered
    if registered is not None:
        parts["registration"] = report_model.registration_part(registered)
    if evaluated is not None:
        name = "the model"
        if registered is not None:
            name = f"{registered.version.name} version {registered.version.version}"
        parts["evaluation"] = report_model.evaluation_part(evaluated, name)
    return parts


def _notes(told: Told) -> tuple[str, ...]:
    notes = []
    matched = told.find("matches")
    if matched is not None and not matched.payload["config"]["fields"]:
        notes.append(
            "No benchmark was given (decontaminate.benchmarks): only the held-out set was looked "
            "for in the corpus."
        )
    reused = sum(visit.reused for visit in told.visits)
    if reused:
        notes.append(
            f"{reused} of {len(told.visits)} steps were up to date: their time is that of finding "
            "so."
        )
    return tuple(notes)


def _lineage(manifests: Sequence[Manifest]) -> tuple[LineageStage, ...]:
    return tuple(
        LineageStage(
            stage=stage_name(one),
            version=one.payload["version"],
            fingerprint=one.fingerprint,
            inputs=tuple(
                f"{pin.stage} {pin.fingerprint[:12]}" for _, pin in sorted(one.inputs.items())
            ),
            data_digest=one.data_digest,
            libraries=one.payload.get("libraries", {}),
        )
        for one in manifests
    )


def _timings(visits: Sequence[Visit]) -> tuple[Timing, ...]:
    """Wall time by stage, in order; what was visited more than once, such as publish, in one."""
    found: dict[str, Timing] = {}
    for visit in visits:
        is_source = visit.name == "ingest" and isinstance(visit.result, Manifest)
        name = stage_name(visit.result) if is_source else visit.name
        before = found.get(name, Timing(stage=name, seconds=0, reused=True))
        found[name] = Timing(
            stage=name,
            seconds=before.seconds + visit.seconds,
            reused=before.reused and visit.reused,
        )
    return tuple(found.values())


def _versions(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Loam, Python and every library that decided a result; where they differ, all of them."""
    found: dict[str, set[str]] = {}
    for one in manifests:
        made_by = {key: one.provenance[key] for key in ("loam", "python") if key in one.provenance}
        for library, version in {**made_by, **one.payload.get("libraries", {})}.items():
            found.setdefault(library, set()).add(str(version))
    return {library: ", ".join(sorted(versions)) for library, versions in sorted(found.items())}


def _model_score(data: ReportData) -> tuple[float | None, float | None]:
    """Bits per byte of the model and of gzip, on the first split."""
    scores = [one for one in data.evaluation if one.split == data.evaluation[0].split]
    ours = next((one.bits_per_byte for one in scores if not one.baseline), None)
    return ours, next((one.bits_per_byte for one in scores if one.name == "gzip"), None)


def _verdict(data: ReportData) -> str:
    """The run in a sentence or two."""
    kept = sum(source.documents for source in data.sources)
    begun = next((row.rows_in for row in data.funnel if row.stage == "extract"), kept)
    sizes = [source.n_bytes for source in data.sources if source.n_bytes is not None]
    text = f", {format_size(sum(sizes))} of text" if sizes else ""
    said = f"{format_count(kept)} of {format_count(begun)} documents are in the corpus{text}"
    if data.tokens:
        said += f" and {format_count(sum(one.tokens for one in data.tokens))} tokens"
    ours, packed = _model_score(data)
    if ours is None:
        return f"{said}."
    beside = f"; gzip needs {packed:.3f}" if packed is not None else ""
    return f"{said}. The model predicts held-out text at {ours:.3f} bits per byte{beside}."


def _highlights(data: ReportData) -> tuple[Fact, ...]:
    parameters = next((fact.value for fact in data.model if fact.name == "parameters"), None)
    ours, _ = _model_score(data)
    found = {
        "documents": sum(source.documents for source in data.sources),
        "tokens": sum(one.tokens for one in data.tokens) or None,
        "parameters": parameters,
        "bits per byte": None if ours is None else f"{ours:.3f}",
        "time": format_duration(sum(one.seconds for one in data.timings)),
    }
    return tuple(Fact(name=name, value=value) for name, value in found.items() if value is not None)
