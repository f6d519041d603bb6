"""Canaries: what each stage catches of defects that were planted to be caught.

After the corpus is labelled and before it is published, a small corpus of canaries
(`tasks/planting.py`) goes through the same stages with the same config and pins, beside the corpus:
it is never published, split or tokenised. What was planted is known, so that what each stage caught
of it is its recall, and what it did to untouched copies its false alarms. A recall under the
config's stops the run before it publishes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import pyarrow as pa

from llm.errors import DataError
from tasks import planting
from tasks.as_task import as_task
from tasks.planting import CANARIES, SOURCE, UNLIKE, CanaryConfig, Kind
from tasks.store.fingerprint import canonical, fingerprint
from tasks.store.records import Manifest
from tasks.store.run import Request, Run, reuse
from tasks.store.schema import DOCUMENTS, DROPS, FINDINGS
from tasks.store.stage import Stage
from tasks.store.store import Store, now

STAGE = Stage("canaries", 1)

CAUGHT_BY = {"pii": "scrub", "near_duplicate": "dedup", "leak": "decontaminate", "spam": "select"}
_PARTS = re.compile(r"\w+")
_ORDER = ("extract", "select", "takedown", "dedup", "scrub", "decontaminate")


@dataclass(frozen=True)
class CanaryCount:
    """What became of the canaries of one detail: how many were planted, reached the stage that is
    to catch them, and were caught by it. Where `wanted` is false those caught are false alarms."""

    kind: Kind
    detail: str
    stage: str
    planted: int
    reached: int
    caught: int
    wanted: bool = True

    @property
    def rate(self) -> float | None:
        """Of those that reached the stage, the part that it caught."""
        return self.caught / self.reached if self.reached else None


@dataclass(frozen=True)
class Fate:
    """What the stages did to the canaries: which stage dropped each, their texts before and after
    scrubbing (of those that were scrubbed), and in which scrub found something."""

    dropped_by: Mapping[str, str]
    planted: Mapping[str, str]
    scrubbed: Mapping[str, str]
    found_in: frozenset[str]

    def reached(self, id_: str, stage: str) -> bool:
        """Whether a document was still there when the stage came. Scrubbing comes to duplicates."""
        if stage == "scrub":
            return id_ in self.scrubbed
        by = self.dropped_by.get(id_)
        return by is None or _ORDER.index(by) >= _ORDER.index(stage)

    def caught(self, row: Mapping[str, Any], stage: str) -> bool:
        """Whether the stage did to a canary that reached it what it does to what it is there for:
        dropped it, or its twin, or scrubbed it. Of a value no part may be left, such as the last
        block of a number."""
        if stage != "scrub":
            return stage in (self.dropped_by.get(row["id"]), self.dropped_by.get(row["twin"]))
        if row["kind"] == "untouched":
            return row["id"] in self.found_in
        before, after = self.planted[row["id"]], self.scrubbed[row["id"]]
        value = before[row["start"] : row["end"]]
        parts = [value, *(part for part in _PARTS.findall(value) if len(part) >= 4)]
        return all(after.count(part) < before.count(part) for part in parts)


def count(truth: pa.Table, fate: Fate) -> list[CanaryCount]:
    """What was caught of the rows of CANARIES, by kind and detail, and at last what each stage did
    to those that are to be left alone."""
    judged: dict[tuple[bool, Kind, str, str], list[tuple[bool, bool]]] = {}
    for row in truth.to_pylist():
        pair = [id_ for id_ in (row["id"], row["twin"]) if id_]
        for stage, wanted in _expected(row):
            reached = all(fate.reached(id_, stage) for id_ in pair)
            caught = reached and fate.caught(row, stage)
            key = (not wanted, row["kind"], row["detail"], stage)
            judged.setdefault(key, []).append((reached, caught))
    kinds = get_args(Kind)
    order = sorted(judged, key=lambda key: (key[0], kinds.index(key[1]), *key[2:]))
    return [
        CanaryCount(
            kind,
            detail,
            stage,
            planted=len(found := judged[unwanted, kind, detail, stage]),
            reached=sum(reached for reached, _ in found),
            caught=sum(caught for _, caught in found),
            wanted=not unwanted,
        )
        for unwanted, kind, detail, stage in order
    ]


def _expected(row: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The stages that a row of CANARIES tries, and whether each is to catch it."""
    if row["kind"] == "untouched":
        return [(stage, False) for stage in CAUGHT_BY.values()]
    unlike = row["kind"] == "near_duplicate" and row["detail"] == f"{UNLIKE:g}"
    return [(CAUGHT_BY[row["kind"]], not unlike)]


def canaries_request(line: Mapping[str, Manifest]) -> Request:
    """What decides what was caught: what was planted, and what each stage did with it, since two
    can leave the same documents and have caught others. `min_recall` only decides if the run goes
    on."""
    inputs = {"planted": line[planting.STAGE.name], "cleaned": line[_ORDER[-1]]}
    return Request(STAGE, {"line": {stage: line[stage].fingerprint for stage in _ORDER}}, inputs)


@as_task("canaries")
def canaries(run: Run, line: Mapping[str, Manifest], config: CanaryConfig) -> Manifest:
    """What each stage caught of the canaries; `line` are the manifests they came through, by stage,
    from `plant` to decontaminate.

    Raises DataError where a recall is under `config.min_recall`.
    """
    request = canaries_request(line)
    measured = reuse(run, request)
    if measured is None:
        planted = request.inputs["planted"]
        truth = run.store.read_table(planted.object(CANARIES.kind), CANARIES)
        counts = count(truth, _fate(run.store, line))
        measured = run.store.commit(_measured(run, request, counts, planted.summary["missing"]))
        run.say(f"canaries: {_in_words(measured)}")
    _check(measured, config)
    return measured


def _measured(
    run: Run, request: Request, counts: Sequence[CanaryCount], missing: Mapping[str, str]
) -> Manifest:
    rows = canonical([asdict(one) for one in counts])
    planted = request.inputs["planted"]
    return Manifest(
        stage=STAGE.name,
        fingerprint=request.ref.fingerprint,
        payload=request.payload,
        inputs={role: manifest.ref for role, manifest in request.inputs.items()},
        rows_in=planted.rows_out,
        rows_out=planted.rows_out,
        drops={},
        data_digest=fingerprint({"counts": rows}),
        receipts=None,
        summary={"counts": rows, "missing": dict(missing)},
        provenance={**run.provenance, "run_id": run.run_id, "at": now()},
    )


def _fate(store: Store, line: Mapping[str, Manifest]) -> Fate:
    dropped_by: dict[str, str] = {}
    for stage in _ORDER:
        for receipt in store.receipts(line[stage]):
            for id_ in store.read_table(receipt.output(DROPS.kind), DROPS, ["id"])[
                "id"
            ].to_pylist():
                dropped_by.setdefault(id_, stage)
    return Fate(
        dropped_by,
        _texts(store, line[planting.STAGE.name]),
        _texts(store, line["scrub"]),
        frozenset(
            id_
            for receipt in store.receipts(line["scrub"])
            for id_ in store.read_table(receipt.output(FINDINGS.kind), FINDINGS)["id"].to_pylist()
        ),
    )


def _texts(store: Store, manifest: Manifest) -> dict[str, str]:
    tables = [
        store.read_table(receipt.output(DOCUMENTS.kind), DOCUMENTS, ["id", "text"])
        for receipt in store.receipts(manifest)
    ]
    return {row["id"]: row["text"] for table in tables for row in table.to_pylist()}


def _line(store: Store, cleaned: Manifest) -> dict[str, Manifest]:
    """The manifests from the planted snapshot to `cleaned`, by stage."""
    found = {cleaned.stage: cleaned}
    while planting.STAGE.name not in found:
        pin = cleaned.inputs.get("corpus") or cleaned.inputs[f"source/{SOURCE}"]
        cleaned = found[pin.stage] = store.manifest(pin)
    return found


def beside(run: Run) -> Run:
    """The run, for what is not of its corpus: what its stages return joins no line, and they take
    the last canaries for their last results."""
    before = run.previous.get(STAGE.name)
    cleaned = run.store.find_manifest(before.inputs["cleaned"]) if before else None
    previous = _line(run.store, cleaned) if cleaned else {}
    return replace(run, visits=[], previous=previous, say=_quietly)


def _quietly(_: str) -> None:
    """What the stages have to say they have said of the corpus."""


def canary_counts(line: Sequence[Manifest]) -> list[CanaryCount]:
    """What was caught of the canaries of a line; nothing where none were planted."""
    measured = next((one for one in line if one.stage == STAGE.name), None)
    return [CanaryCount(**row) for row in measured.summary["counts"]] if measured else []


def recalls(counts: Sequence[CanaryCount]) -> dict[Kind, CanaryCount]:
    """What was caught of each kind, over its details."""
    found: dict[Kind, CanaryCount] = {}
    for one in counts:
        if one.wanted:
            so_far = found.get(one.kind, replace(one, detail="", planted=0, reached=0, caught=0))
            found[one.kind] = replace(
                so_far,
                planted=so_far.planted + one.planted,
                reached=so_far.reached + one.reached,
                caught=so_far.caught + one.caught,
            )
    return found


def _in_words(measured: Manifest) -> str:
    told = [_recall(one) for one in recalls(canary_counts([measured])).values()]
    told += [f"no {kind}, since {why}" for kind, why in measured.summary["missing"].items()]
    return "; ".join(told)


def _recall(one: CanaryCount) -> str:
    return f"{one.stage} caught {one.caught} of {one.reached} {one.kind}"


def _check(measured: Manifest, config: CanaryConfig) -> None:
    """Raises DataError naming each kind of which less was caught than the config asks for."""
    found, missing = recalls(canary_counts([measured])), measured.summary["missing"]
    wrong = []
    for kind, least in sorted(config.min_recall.items()):
        one = found.get(kind)
        if one is None:
            wrong.append(f"no {kind} was planted ({missing.get(kind, 'too few documents')})")
        elif one.rate is None:
            wrong.append(f"none of {one.planted} {kind} reached {one.stage}")
        elif one.rate < least:
            wrong.append(f"{_recall(one)} ({one.rate:.3g}, and min_recall.{kind} is {least:g})")
    if wrong:
        raise DataError(
            f"canaries: {'; '.join(wrong)}. The corpus is not published: mend the stage or its "
            "config, or lower canaries.min_recall"
        )
