"""The small pipeline up to its dataset, grown in the test's own process, without Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from flows.config import read_config
from flows.corpus import grow_corpus
from flows.running import RunOptions, open_run
from tasks.publish import publish
from tasks.store.corpus import live_rows, open_corpus
from tasks.store.records import Manifest
from tasks.store.run import Run
from tasks.store.store import Store
from tasks.tokenise import dataset, tokenise
from tests.flows.small_pipeline import NAME, Content, Place, serving_site, whole_content

WHOLE = whole_content()
REPOSITORY = Path(__file__).parents[2]


def url_of(path: str) -> str:
    """The recorded address of a page."""
    return f"http://site.test{path}"


def grow(place: Place, *, refresh: bool = False) -> dict[str, Manifest]:
    """Grows corpus and dataset, from the folder of the place; the manifests by stage."""
    config = read_config(place.folder / "loam.toml")
    with (
        pytest.MonkeyPatch.context() as patch,
        open_run(config, RunOptions(refresh=refresh), say=lambda _: None) as run,
    ):
        patch.chdir(place.folder)
        patch.setattr("tasks.as_task.in_prefect", lambda name, function: function)
        tokens = tokenise(run, grow_corpus(run, config), config.tokenizer)
        publish(run, dataset(run, tokens), "dataset")
        return by_stage(run)


def by_stage(run: Run) -> dict[str, Manifest]:
    made = [visit.result for visit in run.visits if isinstance(visit.result, Manifest)]
    return {manifest.stage: manifest for manifest in made}


@contextmanager
def served(place: Place, held: Content = WHOLE) -> Iterator[None]:
    """The sources as `held` has them, the site being served."""
    with serving_site(held) as server:
        place.write(held, server)
        yield


def grown_at(folder: Path) -> Place:
    place = Place.at(folder)
    with served(place):
        grow(place)
    return place


def copy_of(place: Place, folder: Path) -> Place:
    """A copy of a grown place that a test may change; its site is not served."""
    copy = place.copied_to(folder)
    text = (copy.folder / "loam.toml").read_text()
    (copy.folder / "loam.toml").write_text(text.replace(place.root, copy.root))
    return copy


def store_of(place: Place) -> Store:
    return Store.at(place.root)


def live(place: Place, stage: str = "corpus") -> dict[str, str]:
    """Text by URL, or by id where there is none, of what the published corpus holds."""
    store = store_of(place)
    ref = store.find_ref(stage, NAME)
    assert ref is not None
    shards = open_corpus(store, store.manifest(ref.manifest)).shards
    table = pa.concat_tables([live_rows(store, shard) for shard in shards])
    names = [url or id_ for url, id_ in zip(
        table["url"].to_pylist(), table["id"].to_pylist(), strict=True)]  # fmt: skip
    return dict(zip(names, table["text"].to_pylist(), strict=True))
