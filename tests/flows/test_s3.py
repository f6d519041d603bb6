"""The pipeline over a store on a real S3 server: the same data and the same model as on a disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llm import files
from tests.flows.small_pipeline import (
    Place,
    check,
    ended,
    kill,
    results,
    serving_site,
    wait_until,
    whole_content,
)

WHOLE = whole_content()


def place_on(s3_root: str, folder: Path) -> Place:
    return replace(Place.at(folder), root=s3_root)


def test_every_digest_on_s3_is_that_of_the_local_run(
    undisturbed: Place, s3_root: str, tmp_path: Path
) -> None:
    place = place_on(s3_root, tmp_path / "s3")
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server)
        place.grow()
    assert results(place) == results(undisturbed)
    assert check(place).ok


@pytest.mark.slow
def test_two_runs_at_once_over_one_s3_store_make_one_model_and_no_error(
    undisturbed: Place, s3_root: str, tmp_path: Path
) -> None:
    places = [place_on(s3_root, tmp_path / name) for name in ("one", "other")]
    with serving_site(WHOLE) as server:
        for place in places:
            place.write(WHOLE, server)
        running = [place.start() for place in places]
        for process in running:
            ended(process)
    assert results(places[0]) == results(undisturbed)
    for kind in ("manifests/split", "manifests/train"):
        found = [url for url in files.list_urls(f"{s3_root}/{kind}") if url.endswith(".json")]
        assert len(found) == 1
    assert len(files.list_urls(f"{s3_root}/models/small/versions")) == 1
    verdict = check(places[0])
    # A crawl that came second leaves its responses unused: they hold the time of the fetch.
    assert (verdict.missing, verdict.changed) == ((), ())
    assert all(url.endswith((".warc.gz", ".parquet")) for url in verdict.stray)


@pytest.mark.slow
def test_a_run_on_s3_that_is_killed_ends_in_the_same_model(
    undisturbed: Place, s3_root: str, tmp_path: Path
) -> None:
    place = place_on(s3_root, tmp_path / "killed")
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server)
        for moment in ("actions/scrub", "runs"):
            process = place.start()
            wait_until(process, lambda where=moment: bool(files.list_urls(f"{s3_root}/{where}")))
            kill(process)
            verdict = check(place)
            assert (verdict.missing, verdict.changed) == ((), ())
        place.grow()
    assert results(place) == results(undisturbed)
    assert check(place).ok
