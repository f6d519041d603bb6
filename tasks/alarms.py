"""Alarms: what is unusual about a corpus, told before it is published.

A stage that removes far more or far less than it did for the last published corpora, or all, or
nothing; and a topic, domain, language or source that comes to dominate. Everything is read out of
manifests, so that an alarm costs nothing and can be told again.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field

from llm.config import Config
from llm.errors import LoamError
from tasks.as_task import as_task
from tasks.census import WATCHED
from tasks.inspecting import line_of
from tasks.store.fingerprint import differences
from tasks.store.records import Manifest, ManifestRef
from tasks.store.run import Request, Run, WouldRun, reuse
from tasks.store.stage import Stage
from tasks.store.store import Ref, Store, now

STAGE = Stage("alarms", 2)

Kind = Literal["all", "nothing", "more", "less", "dominates"]


class AlarmsStop(LoamError):
    """Something about the corpus is unusual and the config says to stop for it."""


class AlarmConfig(Config):
    """What counts as unusual. Shares are parts of one."""

    on: Literal["warn", "stop"] = "warn"
    """Whether a run that raises an alarm goes on, or stops before the corpus is published;
    `--accept-alarms` then lets one run pass."""

    history: int = Field(5, ge=1)
    """Published corpora to compare with, the latest ones. Five, so that the median stands against
    two odd ones."""

    factor: float = Field(3.0, ge=1)
    """How many times the usual share, the median of the history, a share is far more than; or its
    reciprocal, far less. A chosen limit."""

    points: float = Field(0.05, ge=0, le=1)
    """And how far from the usual share it must be at least, so that what is rare can vary. A
    chosen limit: a twentieth of the documents."""

    least: int = Field(10, ge=1)
    """Documents that the usual share must stand for before it is unusual to remove none: where ten
    are expected, none comes by chance (Poisson) once in 22,000 times."""

    newly: float = Field(0.5, gt=0, le=1)
    """A topic, domain, language or source dominates once its share of the documents or of the bytes
    is above this, was not so in the history, and has grown by `points`. More than half: it
    outweighs everything else together."""

    max_topic: float | None = Field(None, gt=0, le=1)
    """The largest share of a topic, whatever it was before; without one, only `newly` counts."""

    max_domain: float | None = Field(None, gt=0, le=1)
    """The largest share of a registrable domain such as bbc.co.uk, likewise."""

    max_language: float | None = Field(None, gt=0, le=1)
    """The largest share of a language, likewise."""

    max_source: float | None = Field(None, gt=0, le=1)
    """The largest share of a source, likewise."""


@dataclass(frozen=True)
class Alarm:
    """Something unusual: `share` was found and `usual` is the median of the history, None without.

    `where` is a stage, or the dimension of what dominates; `what` a reason for drops, or the value
    that dominates; empty for all that a stage drops. `limit` is the configured share that was
    crossed, if any; `because` names settings of the stage that changed since the corpus before.
    """

    kind: Kind
    where: str
    what: str
    share: float
    usual: float | None = None
    limit: float | None = None
    because: tuple[str, ...] = ()

    def __str__(self) -> str:
        reason = f" as {self.what}" if self.what else ""
        usual = "" if self.usual is None else f"; usually {_percent(self.usual)}"
        told = {
            "all": f"{self.where} removes every document",
            "nothing": f"{self.where} removes nothing{reason}",
            "more": f"{self.where} removes far more{reason}: {_percent(self.share)}",
            "less": f"{self.where} removes far less{reason}: {_percent(self.share)}",
            "dominates": f"{self.where} {self.what} dominates: {_percent(self.share)}",
        }
        limit = "" if self.limit is None else f", above the limit of {_percent(self.limit)}"
        changed = f" (changed: {'; '.join(self.because)})" if self.because else ""
        return f"{told[self.kind]}{usual}{limit}{changed}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


Line = Mapping[str, Manifest]
"""The manifests that led to a corpus, by stage."""


def line_by_stage(manifests: Iterable[Manifest]) -> dict[str, Manifest]:
    """The first manifest of each stage: later ones are of copies, such as those with canaries."""
    found: dict[str, Manifest] = {}
    for one in manifests:
        found.setdefault(one.stage, one)
    return found


def find_alarms(line: Line, history: Sequence[Line], config: AlarmConfig) -> list[Alarm]:
    """What is unusual about the corpus that `line` led to, beside those of `history`, latest first.

    Without a history only a stage that removes everything, and shares above a configured limit, are
    unusual.
    """
    found = [alarm for one in line.values() for alarm in _stage_alarms(one, history, config)]
    return found + list(_dominating(line, history, config))


def _stage_alarms(one: Manifest, history: Sequence[Line], config: AlarmConfig) -> Iterator[Alarm]:
    """What is unusual about what a stage removes, in all and by reason."""
    if "corpus" not in one.inputs or not one.rows_in:
        return
    dropped = sum(one.drops.values())
    if dropped == one.rows_in:
        yield Alarm("all", one.stage, "", 1.0, because=_changes(one, history))
        return
    before = [past[one.stage] for past in history if one.stage in past]
    before = [past for past in before if past.rows_in]
    if not before or one.stage == "takedown":  # It does what somebody just asked for.
        return
    reasons = sorted({reason for past in (one, *before) for reason in past.drops})
    for reason in ("", *reasons):
        usual = statistics.median(_share(past, reason) for past in before)
        kind = _unusual(_share(one, reason), usual, one.rows_in, config)
        if kind is not None:
            changes = _changes(one, history)
            yield Alarm(kind, one.stage, reason, _share(one, reason), usual, because=changes)
            if kind == "nothing" and not reason:
                return


def _share(one: Manifest, reason: str) -> float:
    """The part of a stage's documents that it removed, for one reason or in all."""
    dropped = one.drops.get(reason, 0) if reason else sum(one.drops.values())
    return round(dropped / one.rows_in, 6)


def _unusual(share: float, usual: float, rows: int, config: AlarmConfig) -> Kind | None:
    if not share and usual * rows >= config.least:
        return "nothing"
    if abs(share - usual) <= config.points:
        return None
    if share > usual * config.factor:
        return "more"
    return "less" if share * config.factor < usual else None


def _changes(one: Manifest, history: Sequence[Line]) -> tuple[str, ...]:
    """Which settings of a stage are others than for the corpus before, if any."""
    if not history or one.stage not in history[0]:
        return ()
    before, after = history[0][one.stage].payload, one.payload
    kept = ("version", "config", "pins")
    found = differences({k: before.get(k) for k in kept}, {k: after.get(k) for k in kept})
    return tuple(change.removeprefix("config.") for change in found)


def _dominating(line: Line, history: Sequence[Line], config: AlarmConfig) -> Iterator[Alarm]:
    """What dominates: above its limit, or above `newly` now and not so in the history."""
    caps = {dimension: getattr(config, f"max_{dimension}") for dimension in WATCHED}
    before = [_shares(past["census"]) for past in history if "census" in past]
    for (dimension, value), share in sorted(_shares(line["census"]).items()):
        past = [shares.get((dimension, value), 0.0) for shares in before]
        usual = statistics.median(past) if past else None
        cap = caps[dimension]
        if cap is not None and share > cap:
            yield Alarm("dominates", dimension, value, share, usual, cap)
        elif usual is not None and share > config.newly >= usual and share - usual > config.points:
            yield Alarm("dominates", dimension, value, share, usual)


def _shares(census: Manifest) -> dict[tuple[str, str], float]:
    """The share of each frequent value, of the documents or of the bytes, whichever is more."""
    told = census.summary
    documents, n_bytes = max(1, told["documents"]), max(1, told["text_bytes"])
    return {
        (dimension, value): round(
            max(count["documents"] / documents, count["text_bytes"] / n_bytes), 6
        )
        for dimension, values in told["frequent"].items()
        for value, count in values.items()
    }


def published_before(store: Store, ref: Ref | None, labelled: ManifestRef, n: int) -> list[Line]:
    """The lines of the last `n` corpora that a ref named, each once and the latest first.

    Those from before it first named `labelled`, so that a corpus that is there again is compared
    with what it was compared with; and none whose manifests were collected since.
    """
    found: dict[ManifestRef, tuple[ManifestRef, ...]] = {}
    for value in (ref.value, *(entry["value"] for entry in ref.history)) if ref else ():
        named = ManifestRef(value["stage"], value["fingerprint"])
        if named == labelled:
            found.clear()
        else:
            found.setdefault(named, tuple(ManifestRef(**pin) for pin in value.get("line", ())))
    lines: list[Line] = []
    for pins in found.values():
        manifests = [store.find_manifest(pin) for pin in pins] if len(lines) < n else []
        if manifests and all(manifests):
            lines.append(line_by_stage(one for one in manifests if one is not None))
    return lines


def alarms_request(
    labelled: Manifest, line: Line, history: Sequence[Line], config: AlarmConfig
) -> Request:
    """What decides the alarms: this corpus's line, those it is compared with, and the limits."""
    semantic = config.model_dump(exclude={"on"})
    compared = {"line": _fingerprints(line), "history": [_fingerprints(past) for past in history]}
    return Request(STAGE, semantic | compared, {"labelled": labelled, "census": line["census"]})


def _fingerprints(line: Line) -> dict[str, str]:
    """The stages that alarms look at, by fingerprint."""
    return {
        stage: one.fingerprint
        for stage, one in line.items()
        if "corpus" in one.inputs or stage == "census"
    }


@as_task("alarms")
def alarms(run: Run, labelled: Manifest, config: AlarmConfig) -> Manifest:
    """Tells what is unusual about a corpus that was counted, and stops for it where told to.

    A sample is compared with nothing. Raises AlarmsStop, unless this corpus is published already or
    the run accepts its alarms.
    """
    line = line_by_stage(line_of(run.visits))
    seen = None if run.sample else run.seen_refs.get("corpus")
    history = published_before(run.store, seen, labelled.ref, config.history)
    request = alarms_request(labelled, line, history, config)
    done = reuse(run, request)
    if done is None:
        done = _commit(run, request, find_alarms(line, history, config), len(history))
    published = run.seen_refs.get("corpus")
    if published is None or published.manifest != labelled.ref:
        _tell(run, read_alarms(done), config)
    return done


def _tell(run: Run, found: Sequence[Alarm], config: AlarmConfig) -> None:
    stops = bool(found) and config.on == "stop" and not run.accept_alarms
    if run.planning:
        if stops:
            raise WouldRun("alarms", [*map(str, found), "--accept-alarms would let it pass"])
        return
    if stops:
        raise AlarmsStop(
            f"the corpus is not published: {'; '.join(map(str, found))}. If that is right, run "
            "again with --accept-alarms"
        )
    for alarm in found:
        run.say(f"ALARM {alarm}")


def _commit(run: Run, request: Request, found: Sequence[Alarm], compared: int) -> Manifest:
    labelled = request.inputs["labelled"]
    return run.store.commit(
        Manifest(
            stage=STAGE.name,
            fingerprint=request.ref.fingerprint,
            payload=request.payload,
            inputs={role: manifest.ref for role, manifest in request.inputs.items()},
            rows_in=labelled.rows_out,
            rows_out=labelled.rows_out,
            drops={},
            # Alarms are about a corpus's history, and the digest is only of its data.
            data_digest=labelled.data_digest,
            receipts=None,
            summary={"alarms": [asdict(alarm) for alarm in found], "compared_with": compared},
            provenance={**run.provenance, "run_id": run.run_id, "at": now()},
        )
    )


def read_alarms(told: Manifest) -> list[Alarm]:
    """The alarms of an `alarms` manifest."""
    rows: list[dict[str, Any]] = told.summary["alarms"]
    return [Alarm(**{**row, "because": tuple(row["because"])}) for row in rows]
