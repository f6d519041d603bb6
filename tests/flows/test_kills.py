"""kill -9 at any moment loses nothing and changes nothing.

Each test kills the whole process tree when something has just appeared in the store, runs the same
command again, and finds what a run that nothing disturbed has come to.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.small_pipeline import (
    Place,
    check,
    kill,
    results,
    serving_site,
    wait_until,
    whole_content,
)

WHOLE = whole_content()


def appears(place: Place, pattern: str) -> Callable[[], bool]:
    """Whether the store has a file of that pattern."""
    return lambda: any(Path(place.root).glob(pattern))


def nothing_is_half_written(place: Place) -> bool:
    """Whether all that a name leads to is there, and is what it says. What a kill left without a
    name is no half-written thing: nothing reads it."""
    verdict = check(place)
    return not (verdict.missing or verdict.changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "actions/extract/*.json",
        "actions/signatures/*.json",
        "manifests/dedup/*.json",
        "actions/scrub/*.json",
        "refs/pin/small/heldout.json",
        "refs/corpus/small.json",
        "actions/tokenise/*.json",
        "manifests/train/*.json",
    ],
)
def test_a_pipeline_killed_at_any_stage_ends_as_if_it_never_was(
    undisturbed: Place, tmp_path: Path, moment: str
) -> None:
    place = Place.at(tmp_path / "killed")
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server, workers=2 if "actions" in moment else 1)
        process = place.start()
        wait_until(process, appears(place, moment))
        kill(process)
        asked = len(server.requests)
        assert nothing_is_half_written(place)
        place.grow()
        assert len(server.requests) == asked
    assert results(place) == results(undisturbed)
    assert check(place).ok


@pytest.mark.slow
def test_a_killed_crawl_goes_on_with_the_pages_it_had_not_fetched(
    undisturbed: Place, tmp_path: Path
) -> None:
    place = Place.at(tmp_path / "killed")
    with serving_site(WHOLE, seconds=0.05) as server:
        place.write(WHOLE, server)
        process = place.start()
        # The second batch is that of the first pages: the index alone is the first.
        wait_until(process, lambda: len(list(Path(place.root).glob("actions/crawl/*.json"))) >= 2)
        kill(process)
        saved = pages_in_the_journal(place)
        assert 1 < len(saved) < len(WHOLE.pages)
        assert nothing_is_half_written(place)
        server.requests.clear()
        said = place.grow()
        again = set(server.pages_asked_for())
    assert again.isdisjoint(saved)
    assert again | saved == {"/", *WHOLE.pages}
    assert "batches were fetched before the stop" in said
    assert results(place) == results(undisturbed)


def pages_in_the_journal(place: Place) -> set[str]:
    """Paths of the URLs that the receipts of the crawl's batches tell of."""
    found: set[str] = set()
    for path in Path(place.root).glob("actions/crawl/*.json"):
        for output in json.loads(path.read_text())["outputs"]:
            if output["kind"] == "crawl-log":
                sha256 = output["sha256"]
                log = Path(f"{place.root}/objects/{sha256[:2]}/{sha256}.json").read_text()
                found |= {seen["url"] for seen in json.loads(log)["seen"]}
    return {url.removeprefix("http://site.test") for url in found}


def test_a_training_that_is_killed_ends_with_the_same_weights(
    undisturbed: Place, tmp_path: Path
) -> None:
    place = Place.at(tmp_path / "killed")
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server)
        process = place.start()
        wait_until(process, appears(place, "runs/*/checkpoints/*/index.json"))
        kill(process)
        assert not appears(place, "runs/*/result.json")()
        assert nothing_is_half_written(place)
        assert "resumed at step" in place.grow()
    assert results(place) == results(undisturbed)
    assert check(place).ok


@pytest.mark.slow
def test_a_training_whose_parent_alone_is_killed_checkpoints_and_is_resumed(
    undisturbed: Place, tmp_path: Path
) -> None:
    place = Place.at(tmp_path / "orphaned")
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server)
        process = place.start()
        wait_until(process, appears(place, "runs/*/checkpoints/*/index.json"))
        os.kill(process.pid, signal.SIGKILL)
        # The orphan may still be writing its last checkpoint while the next run begins.
        place.grow()
        process.communicate()
    assert results(place) == results(undisturbed)
    assert check(place).ok


@pytest.mark.slow
def test_a_pipeline_killed_again_and_again_comes_to_its_end(
    undisturbed: Place, tmp_path: Path
) -> None:
    place = Place.at(tmp_path / "killed")
    moments = ["actions/crawl/*.json", "manifests/select/*.json", "runs/*/run.json"]
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server, workers=2)
        for moment in moments:
            process = place.start()
            wait_until(process, appears(place, moment))
            kill(process)
        place.grow()
    assert results(place) == results(undisturbed)
    assert check(place).ok
