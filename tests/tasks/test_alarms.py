"""An alarm rings for what is unusual and nothing else, and stops a run where the config says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from flows.cli import main
from flows.config import read_config
from flows.corpus import grow_corpus
from flows.planning import make_plan
from flows.running import RunOptions, open_run
from tasks.alarms import (
    Alarm,
    AlarmConfig,
    AlarmsStop,
    Line,
    alarms,
    find_alarms,
    line_by_stage,
    published_before,
    read_alarms,
)
from tasks.store.records import Manifest, ManifestRef
from tasks.store.run import Run, Visit
from tasks.store.store import Store
from tests.flows.small_pipeline import NAME, Place
from tests.tasks.small_corpus import store_of

DEFAULTS = AlarmConfig()

# The notes of the small corpus have fewer words, its pages more.
MANY_WORDS = 170


def manifest(stage: str, rows_in: int = 0, **fields: object) -> Manifest:
    """A manifest of which only `fields` matter."""
    drops: dict[str, int] = fields.pop("drops", {})  # type: ignore[assignment]
    empty: dict[str, object] = {
        "stage": stage, "fingerprint": "f" * 64, "payload": {}, "rows_in": rows_in,
        "inputs": {"corpus": ManifestRef("extract", "e" * 64)}, "receipts": None,
        "rows_out": rows_in - sum(drops.values()), "drops": drops, "data_digest": "",
    }  # fmt: skip
    return Manifest(**{**empty, **fields})  # type: ignore[arg-type]


def census(shares: Mapping[str, float], dimension: str = "domain", **n_bytes: int) -> Manifest:
    """1000 documents and bytes, so many parts of which have each value."""
    values = {
        value: {"documents": round(1000 * share), "text_bytes": n_bytes.get(value, 0)}
        for value, share in shares.items()
    }
    frequent = {name: {} for name in ("topic", "domain", "language", "source")} | {
        dimension: values
    }
    told = {"documents": 1000, "text_bytes": 1000, "frequent": frequent}
    return manifest("census", 1000, inputs={}, summary=told)


def line(*stages: Manifest, **shares: float) -> Line:
    return {one.stage: one for one in (*stages, census(shares))}


def dropping(n: int, stage: str = "select", reason: str = "short", of: int = 1000) -> Line:
    return line(manifest(stage, of, drops={reason: n} if n else {}))


def kinds(now: Line, *before: Line, config: AlarmConfig = DEFAULTS) -> list[tuple[str, str, str]]:
    return [(one.kind, one.where, one.what) for one in find_alarms(now, before, config)]


@pytest.mark.parametrize(
    ("now", "usual", "kind"),
    [
        (400, 100, "more"),
        (300, 100, None),  # not more than the factor
        (301, 100, "more"),
        (60, 10, None),  # six times as many, and not five points more
        (61, 10, "more"),
        (30, 100, "less"),
        (34, 100, None),  # a third and a little
        (100, 100, None),
        (0, 100, "nothing"),
        (0, 10, "nothing"),
        (0, 9, None),  # so few are none by chance
        (0, 0, None),
    ],
)
def test_what_a_stage_removes_is_compared_with_its_history(
    now: int, usual: int, kind: str | None
) -> None:
    found = kinds(dropping(now), dropping(usual), dropping(usual))
    expected = [] if kind is None else [(kind, "select", ""), (kind, "select", "short")]
    assert found == (expected[:1] if kind == "nothing" else expected)


def test_a_takedown_is_not_unusual() -> None:
    before = line(manifest("takedown", 1000, drops={}))
    now = line(manifest("takedown", 1000, drops={"taken_down": 400}))
    assert kinds(now, before, before) == []


def test_one_odd_corpus_in_the_history_changes_nothing() -> None:
    history = [dropping(n) for n in (900, 100, 110, 90, 105)]
    assert kinds(dropping(100), *history) == []
    assert [kind for kind, _, _ in kinds(dropping(900), *history)] == ["more", "more"]


def test_a_reason_can_be_unusual_where_the_whole_is_not() -> None:
    before = line(manifest("select", 1000, drops={"short": 200, "language": 10}))
    now = line(manifest("select", 1000, drops={"short": 10, "language": 200}))
    found = kinds(now, before)
    assert found == [("more", "select", "language"), ("less", "select", "short")]
    gone = line(manifest("select", 1000, drops={"short": 210}))
    assert kinds(gone, before) == [("nothing", "select", "language")]


def test_a_stage_that_removes_everything_is_unusual_without_any_history() -> None:
    assert kinds(dropping(1000)) == [("all", "select", "")]
    assert kinds(dropping(0)) == []
    assert kinds(dropping(0, of=0)) == []


def test_a_setting_that_changed_is_named_with_the_alarm() -> None:
    def with_words(n: int, least: int) -> Line:
        payload = {"version": 1, "config": {"min_words": least, "c4": True}, "pins": {}}
        return line(manifest("select", 1000, drops={"short": n}, payload=payload))

    (alarm, _) = find_alarms(with_words(600, 500), [with_words(100, 50)], DEFAULTS)
    assert alarm.because == ("min_words: 50 -> 500",)
    assert str(alarm) == (
        "select removes far more: 60 %; usually 10 % (changed: min_words: 50 -> 500)"
    )
    assert find_alarms(with_words(600, 50), [with_words(100, 50)], DEFAULTS)[0].because == ()


def test_what_comes_to_dominate_is_told_once_it_does() -> None:
    before = line(a=0.4, b=0.3)
    assert kinds(line(a=0.51, b=0.3), before) == [("dominates", "domain", "a")]
    assert kinds(line(a=0.5, b=0.3), before) == []
    assert kinds(line(c=0.6), before) == [("dominates", "domain", "c")]
    # It was so before, or hardly less so, or nothing is known of before.
    assert kinds(line(a=0.6), line(a=0.55)) == []
    assert kinds(line(a=0.52), line(a=0.49)) == []
    assert kinds(line(a=1.0)) == []


@pytest.mark.parametrize("dimension", ["topic", "domain", "language", "source"])
def test_a_limit_holds_without_a_history_and_against_documents_or_bytes(dimension: str) -> None:
    config = AlarmConfig.model_validate({f"max_{dimension}": 0.3})
    assert kinds({"census": census({"a": 0.31}, dimension)}, config=config) == [
        ("dominates", dimension, "a")
    ]
    assert kinds({"census": census({"a": 0.3}, dimension)}, config=config) == []
    heavy = {"census": census({"a": 0.1}, dimension, a=800)}
    assert kinds(heavy, config=config) == [("dominates", dimension, "a")]
    assert "above the limit of 30 %" in str(find_alarms(heavy, [], config)[0])


def test_only_the_first_manifest_of_a_stage_speaks_of_the_corpus() -> None:
    own, copy = manifest("select", 10), manifest("select", 3)
    assert line_by_stage([own, copy])["select"] is own


# in a run


def grown(place: Place, *, accept: bool = False) -> list[str]:
    """Grows the corpus of the place's config. What was said; raises what the run raises."""
    said: list[str] = []
    config = read_config(place.folder / "loam.toml")
    with (
        pytest.MonkeyPatch.context() as patch,
        open_run(config, RunOptions(accept_alarms=accept), say=said.append) as run,
    ):
        patch.chdir(place.folder)
        patch.setattr("tasks.as_task.in_prefect", lambda name, function: function)
        grow_corpus(run, config)
    return said


def planned(place: Place) -> list[tuple[str, str]]:
    """What a run would have to do, by stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        plan = make_plan(read_config(place.folder / "loam.toml"), RunOptions())
    return [(stage.stage, stage.action) for stage in plan.to_run]


def stricter(place: Place) -> None:
    """The config now drops far more, and stops for alarms."""
    path = place.folder / "loam.toml"
    text = re.sub("min_words = .*", f"min_words = {MANY_WORDS}", path.read_text())
    path.write_text(f'{text}\n[alarms]\non = "stop"\nfactor = 1.5\n')


def published(store: Store) -> ManifestRef:
    ref = store.find_ref("corpus", NAME)
    assert ref is not None
    return ref.manifest


def test_an_alarm_stops_a_run_before_the_ref_moves_until_it_is_accepted(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_of(place)
    before = published(store)
    stricter(place)
    for _ in range(2):
        with pytest.raises(AlarmsStop, match=r"select removes far more.*--accept-alarms"):
            grown(place)
    assert published(store) == before
    assert planned(place)[0] == ("alarms", "run")
    said = grown(place, accept=True)
    assert published(store) != before
    assert any(told.startswith("ALARM select removes far more") for told in said)
    with pytest.raises(SystemExit):
        main(["show", NAME, "--store", place.root])
    assert capsys.readouterr().out.startswith("ALARM select removes far more")
    # It is what is published now: nothing stops for it, and it is not told again.
    assert not any(stage == "alarms" for stage, _ in planned(place))
    assert not any("ALARM" in told for told in grown(place))


@pytest.mark.parametrize(("sample", "compared"), [(None, 1), (5, 0)])
def test_a_sample_is_compared_with_nothing(place: Place, sample: int | None, compared: int) -> None:
    store = store_of(place)
    ref = store.find_ref("corpus", NAME)
    assert ref is not None
    made = [store.manifest(pin) for pin in ref.line]
    visits = [Visit(one.stage, one, 0.0, True) for one in made]
    run = Run(store, NAME, "r", sample=sample, seen_refs={"corpus": ref}, visits=visits)
    # Any other corpus than the one that is published will do.
    other = next(one for one in made if one.stage == "decontaminate")
    told = alarms.__wrapped__(run, other, DEFAULTS)  # type: ignore[attr-defined]
    assert told.summary["compared_with"] == compared


def test_the_first_corpus_has_nothing_to_be_compared_with(grown_once: Place) -> None:
    store = store_of(grown_once)
    ref = store.find_ref("corpus", NAME)
    assert ref is not None
    (told,) = [store.manifest(pin) for pin in ref.line if pin.stage == "alarms"]
    assert read_alarms(told) == []
    assert told.summary["compared_with"] == 0
    assert published_before(store, ref, ref.manifest, 5) == []
    assert published_before(store, None, ref.manifest, 5) == []
    other = ManifestRef("split", "0" * 64)
    (before,) = published_before(store, ref, other, 5)
    assert {"select", "dedup", "census"} <= set(before)


def test_a_corpus_that_is_there_again_is_compared_with_what_was_before_it(place: Place) -> None:
    store = store_of(place)
    ref = store.find_ref("corpus", NAME)
    assert ref is not None

    def entry(name: str) -> dict[str, Any]:
        return {"value": {**ref.value, "fingerprint": name * 64}, "at": ref.at}

    later = replace(ref, value=entry("c")["value"], history=tuple(map(entry, "abcad")))
    pins = [ManifestRef("split", name * 64) for name in "abcde"]
    assert [len(published_before(store, later, pin, 5)) for pin in pins] == [1, 3, 2, 0, 4]
    assert len(published_before(store, later, pins[-1], 2)) == 2


def test_an_alarm_is_read_as_it_was_told() -> None:
    alarm = Alarm("more", "select", "short", 0.5, 0.1, None, ("c4: true -> false",))
    told = manifest("alarms", summary={"alarms": [alarm.__dict__]})
    assert read_alarms(told) == [alarm]
