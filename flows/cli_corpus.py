"""The commands that look at data: status and show."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import showing
from flows.cli_options import (
    ConfigPath,
    Flag,
    Json,
    StoreUrl,
    find_line,
    load,
    store_at,
    store_option,
)
from flows.planning import plan_sources
from flows.running import RunOptions
from tasks import inspecting, leaks
from tasks.alarms import read_alarms
from tasks.canaries import canary_counts
from tasks.status import store_status

Count = Annotated[int, Parameter(validator=Number(gte=1))]
Optional = Annotated[list[str] | None, Parameter(consume_multiple=(0, 1), negative=())]


def status(config: ConfigPath = None, /, *, store: StoreUrl = None, json: Json = False) -> None:
    """What stands in a store, and what is still under way in it.

    Refs, snapshots, pins and models; crawls and trainings that the next run would go on with.
    With a config it also says which of its sources are due to be looked at again.

        loam status flows/configs/quickstart.toml
        loam status --store s3://bucket/prefix

    Args:
        config: A pipeline's TOML file, for the place of its store and the age of its sources.
        store: The store; else the config's, else LOAM_STORE, else .loam/store.
        json: Print everything as JSON.
    """
    due: dict[str, str] = {}
    if config is not None:
        _, pipeline = load(config, store)
        store = pipeline.store.root
        for source, planned in plan_sources(pipeline, RunOptions()).items():
            due[f"{pipeline.name}/{source}"] = "; ".join(planned.why) or "no"
    found = store_status(store_at(store))
    if json:
        showing.say_json({**asdict(found), "due": due})
    else:
        showing.show_status(found, due)


def show(
    ref: str,
    /,
    *,
    drops: str | None = None,
    quarantined: Flag = False,
    matches: Optional = None,
    n: Count = 5,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """What became of the documents of a corpus: the funnel, and the drops by reason.

    Every document that left is there, with the rule it failed and what was measured.

        loam show corpus/quickstart
        loam show quickstart --drops near_duplicate --n 3
        loam show quickstart --quarantined
        loam show quickstart --matches gsm8k

    Args:
        ref: A ref such as corpus/main or dataset/main; a bare name means the corpus.
        drops: Show documents that were dropped for this reason, with what was measured of them.
        quarantined: Show what could not be read at all, by reason.
        matches: Show documents that hold text of a benchmark, of this one or of any, beside what
            of it they hold; `heldout` is the held-out set.
        n: Examples to show.
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print everything as JSON.
    """
    place = store_at(store)
    line = find_line(place, ref)
    if drops is not None:
        samples = inspecting.drop_samples(place, line, drops, n)
        showing.say_json(samples) if json else showing.show_drop_samples(samples)
    elif quarantined:
        groups = inspecting.quarantined(place, line, n)
        showing.say_json(groups) if json else showing.show_quarantined(groups)
    elif matches is not None:
        found = leaks.leak_samples(place, line, matches[0] if matches else None, n)
        showing.say_json(found) if json else showing.show_leaks(found)
    else:
        unusual = [alarm for one in line if one.stage == "alarms" for alarm in read_alarms(one)]
        rows = inspecting.funnel(place, line)
        reasons = inspecting.drops_by_reason(line)
        counts = leaks.benchmark_counts(line)
        caught = canary_counts(line)
        if json:
            parts = {"alarms": unusual, "funnel": rows, "drops": reasons, "benchmarks": counts}
            showing.say_json({**parts, "canaries": caught})
            return
        showing.show_alarms(unusual)
        showing.show_funnel(rows)
        if reasons:
            showing.say()
            showing.show_drops(reasons)
            showing.say(
                f"\nexamples: loam show {ref} --drops {reasons[0].reason}{store_option(store)}"
            )
        if counts:
            showing.say()
            showing.show_benchmarks(counts)
        if caught:
            showing.say()
            showing.show_canaries(caught)
        again = f"loam show {ref}{store_option(store)}"
        showing.show_set_aside(inspecting.quarantined(place, line, 1), again)
