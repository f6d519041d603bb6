"""Random histories of two sources: whatever happened to them, a rebuild ends in the same data.

The recipes run in this process, stages as plain functions. A history starts from the store in which
the pins were made, since those stay until they are let go; the rebuild gets the pins, the takedown
list and the files as they lie at the end, and nothing else.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from flows.config import parse_config
from flows.corpus import grow_corpus
from flows.running import RunOptions, open_run
from llm.config_data import DataConfig
from tasks import takedown
from tasks.publish import publish
from tasks.store.records import Manifest, ObjectRef
from tasks.store.rows import document_id
from tasks.store.schema import DATASET
from tasks.store.store import Store
from tasks.tokenise import dataset, dataset_url, tokenise
from tests.flows.small_pipeline import prose

SOURCES, FILES, IDS = ("alpha", "beta"), ("a.jsonl", "b.jsonl", "sub/c.jsonl"), range(10)
# Read from the first run on and never touched, so that no source is ever without a document.
ANCHOR = "anchor.jsonl"
CONTEXT_LENGTH, BATCH_SIZE, SEED = 24, 4, 3
MODES = (
    DataConfig(),
    DataConfig(packing="best_fit", curriculum="difficulty"),
    DataConfig(weights=dict.fromkeys(SOURCES, 1.0), curriculum="length"),
)

# What is done and to what; shard_rows and the order of the sources; what is done before a run, and
# how that runs.
Change = tuple[Any, ...]
How = tuple[int, list[str]]
Step = tuple[list[Change], How]


def _texts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a document may say, and a benchmark: texts of their own; each of two with a sentence
    more (near-duplicates), personal data, leaks of the benchmark, and what is too short."""
    rng = random.Random(23)
    own = [prose(rng, 6) for _ in range(6)]
    quiz = tuple(prose(rng, 2) for _ in range(2))
    near = [f"{long} {prose(rng, 1)}" for long in (prose(rng, 14), prose(rng, 15)) for _ in "abc"]
    person = [f"{prose(rng, 5)} Write to jane.doe{n}@example.com or to 192.0.2.{n}." for n in "12"]
    leaked = [f"{prose(rng, 3)} {item} {prose(rng, 3)}" for item in quiz]
    return (*own, *near, *person, *leaked, "The bridge is closed.", "Bring a kettle."), quiz


TEXTS, QUIZ = _texts()


@dataclass
class Sources:
    """The files of the sources: text by id, by source and file. Two files may tell of one id."""

    files: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)

    def put(self, source: str, file: str, id_: int, text: int) -> None:
        """Adds a record to a file, or edits it there."""
        self.files.setdefault((source, file), {})[id_] = text

    def remove(self, source: str, file: str, id_: int) -> None:
        self.files.get((source, file), {}).pop(id_, None)

    def move(self, source: str, file: str, to: str, id_: int) -> None:
        text = self.files.get((source, file), {}).pop(id_, None)
        if text is not None:
            self.put(source, to, id_, text)

    def delete_file(self, source: str, file: str) -> None:
        self.files.pop((source, file), None)


def _line(name: str, text: str, site: int) -> str:
    return json.dumps({"id": name, "text": text, "url": f"https://site{site}.example/{name}"})


def _lines(held: dict[int, int]) -> str:
    lines = [_line(f"d{id_}", TEXTS[text], id_ % 3) for id_, text in sorted(held.items())]
    return "".join(line + "\n" for line in lines)


@dataclass
class Place:
    """A folder with the sources' files, a benchmark and a store; `clock` dates what is written."""

    folder: Path
    clock: int = 0

    @property
    def store(self) -> Store:
        return Store.at(f"{self.folder}/store")

    def write(self, sources: Sources) -> None:
        """The files as `sources` says; one that stays as it is keeps its time."""
        for source in SOURCES:
            for file in FILES:
                path = self.folder / source / file
                body = _lines(sources.files.get((source, file), {}))
                if not body:
                    path.unlink(missing_ok=True)
                elif not path.exists() or path.read_text() != body:
                    self._put(path, body)

    def write_once(self) -> None:
        """What never changes: the benchmark, and a few documents of each source."""
        quiz = "".join(json.dumps({"question": text}) + "\n" for text in QUIZ)
        (self.folder / "quiz.jsonl").write_text(quiz)
        for source in SOURCES:
            rng = random.Random(source)
            lines = [_line(f"{source}-{n}", prose(rng, 7), 8 + n % 2) for n in range(12)]
            self._put(self.folder / source / ANCHOR, "\n".join(lines))

    def live(self, source: str) -> dict[str, dict[str, str]]:
        """The records of a source by id: of each the one in the file that was written last."""
        files = sorted(
            (self.folder / source).rglob("*.jsonl"), key=lambda path: path.stat().st_mtime
        )
        records = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        return {document_id(source, record["id"]): record for record in records}

    def allowed(self) -> set[str]:
        """The ids of all live documents that nobody has taken down."""
        taken = {entry.target for entry in takedown.read_list(self.store).entries}
        return {
            id_
            for source in SOURCES
            for id_, record in self.live(source).items()
            if taken.isdisjoint({id_, record["url"], record["url"].split("/")[2]})
        }

    def _put(self, path: Path, body: str) -> None:
        self.clock += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
        os.utime(path, (1_000_000 + self.clock, 1_000_000 + self.clock))

    def grow(self, sources: Path, shard_rows: int, order: Sequence[str] = SOURCES) -> Grown:
        """Runs the recipes over the files in the folder `sources`."""
        listed = [
            {"kind": "import", "name": name, "paths": [f"{sources}/{name}"], "max_loss": 1}
            for name in order
        ]
        benchmark = {"name": "quiz", "path": f"{sources}/quiz.jsonl", "fields": ["question"]}
        data = {
            "name": "histories",
            "store": {"root": self.store.root, "workers": 1, "shard_rows": shard_rows},
            "sources": [{**source, "language": "en"} for source in listed],
            "select": {"min_words": 50},
            "dedup": {"priorities": ["beta"]},
            "decontaminate": {"benchmarks": [benchmark]},
            "split": {"validation": 0.1, "test": 0.1},
            "tokenizer": {"vocab_size": 320},
        }
        config = parse_config(data, "histories")
        with open_run(config, RunOptions(), say=lambda _: None) as run:
            tokens = tokenise(run, grow_corpus(run, config), config.tokenizer)
            data_ = publish(run, dataset(run, tokens, config.tokenizer), "dataset")
        made = [visit.result for visit in run.visits if isinstance(visit.result, Manifest)]
        return Grown.of(self.store, self.folder / "cache", made, data_)

    def take_pins_and_list_of(self, other: Place) -> None:
        """The pins of another place, object by object, and its takedowns, entered anew."""
        for kind, name in other.store.list_refs("pin"):
            ref = other.store.find_ref(kind, name)
            assert ref is not None
            pinned = ObjectRef(**ref.value["object"])
            copy = self.store.put_bytes(other.store.read_bytes(pinned), pinned.kind, pinned.ext)
            assert copy.sha256 == pinned.sha256
            self.store.move_ref(kind, name, ref.value, None)
        for entry in takedown.read_list(other.store).entries:
            takedown.record(self.store, [entry.target], entry.reason, "the test")


@dataclass(frozen=True)
class Grown:
    """What a run came to: the data digest, the rows and the drops by reason of every stage, and
    the training windows of two epochs in their order, in every mode. Of a snapshot, drops tell its
    history. `ids` are those of the dataset, whatever their split."""

    stages: dict[str, tuple[str, int, dict[str, int]]]
    ids: set[str]
    windows: list[tuple[list[list[int]], list[list[int]]]]

    @classmethod
    def of(cls, store: Store, cache: Path, made: Sequence[Manifest], data: Manifest) -> Grown:
        from llm.data import prepare
        from llm.loader import Loader

        stages = {
            f"{m.stage} {m.summary.get('source', '')}".strip(): (
                m.data_digest,
                m.rows_out,
                {} if m.stage == "import" else m.drops,
            )
            for m in made
        }
        prepared = prepare(dataset_url(store, data), "train", cache, store.root)
        windows = []
        for mode in MODES:
            loader = Loader(prepared, CONTEXT_LENGTH, BATCH_SIZE, SEED, mode, bucket_tokens=512)
            steps = -(-2 * loader.n_windows() // BATCH_SIZE)
            batches = (loader.batch(step) for step in range(steps))
            windows += [(batch.inputs_BT.tolist(), batch.targets_BT.tolist()) for batch in batches]
        ids = store.read_table(data.object("dataset"), DATASET, ["id"])["id"].to_pylist()
        return cls(stages, set(ids), windows)


@pytest.fixture(scope="module")
def pinned() -> Iterator[Place]:
    """Where the pins were made, over the documents that never change."""
    plainly = mock.patch("tasks.as_task.in_prefect", lambda name, function: function)
    with plainly, tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.write_once()
        place.grow(place.folder, 8)
        yield place


_source, _file = st.sampled_from(SOURCES), st.sampled_from(FILES)
_id, _text = st.sampled_from(IDS), st.sampled_from(range(len(TEXTS)))
_target = st.one_of(
    st.builds(lambda source, id_: document_id(source, f"d{id_}"), _source, _id),
    st.builds(lambda id_: f"https://site{id_ % 3}.example/d{id_}", _id),
    st.sampled_from(["site0.example", "site1.example"]),
    st.just("site9.example"),
)
_put = st.tuples(st.just("put"), _source, _file, _id, _text)
_listing = st.tuples(st.sampled_from(["take down", "take down", "undo"]), _target)
_change = st.one_of(
    *([_put] * 4),
    st.tuples(st.just("remove"), _source, _file, _id),
    st.tuples(st.just("move"), _source, _file, _file, _id),
    st.tuples(st.just("delete_file"), _source, _file),
    *([_listing] * 3),
)
_how = st.tuples(st.sampled_from([4, 9, 64]), st.permutations(SOURCES))
_first = st.lists(_put, min_size=12, max_size=20)
# Some runs find nothing new but in the takedown list.
_changes = st.lists(_change, min_size=2, max_size=8) | st.lists(_listing, min_size=1, max_size=2)
_later = st.lists(st.tuples(_changes, _how), min_size=2, max_size=3)


def _apply(place: Place, sources: Sources, change: Change) -> None:
    what, *arguments = change
    if what == "take down":
        takedown.record(place.store, arguments, "asked for", "the test")
    elif what == "undo":
        if arguments[0] in {entry.target for entry in takedown.read_list(place.store).entries}:
            takedown.undo(place.store, arguments)
    else:
        getattr(sources, what)(*arguments)


_histories = given(first=_first, first_how=_how, later=_later, rebuilt_how=_how)
# What fails is told as it was drawn: to make it smaller would take an hour of growing corpora.
_unshrunk = settings(
    phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.data_too_large]
)


def _end_as_rebuilt(
    pinned: Place, first: list[Change], first_how: How, later: list[Step], rebuilt_how: How
) -> None:
    """Grows a corpus through a history, and once more from what is there at its end."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(Path(temporary) / "grown", pinned.clock)
        shutil.copytree(pinned.folder, place.folder, copy_function=shutil.copy2)
        sources = Sources()
        for changes, how in [(first, first_how), *later]:
            for change in changes:
                _apply(place, sources, change)
            place.write(sources)
            grown = place.grow(place.folder, *how)
        for source in SOURCES:
            assert grown.stages[f"import {source}"][1] == len(place.live(source))
        assert grown.ids <= place.allowed()
        rebuilt = Place(Path(temporary) / "rebuilt")
        rebuilt.take_pins_and_list_of(place)
        assert grown == rebuilt.grow(place.folder, *rebuilt_how)


# Of two near-duplicates the one of the smaller id is edited; the last run finds only the list
# changed: a held-out domain, and a document that had hidden its copy.
_FIRST = [
    *(("put", "alpha", "a.jsonl", id_, text) for id_, text in enumerate([6, 6, 0, 12, 14, 16])),
    *(("put", "beta", "b.jsonl", id_, text) for id_, text in enumerate([0, 9, 10, 13, 15, 17])),
    ("put", "beta", "a.jsonl", 1, 11),
]
_LATER = [
    (
        [
            ("put", "alpha", "a.jsonl", 1, 7),
            ("move", "alpha", "a.jsonl", "b.jsonl", 3),
            ("put", "alpha", "sub/c.jsonl", 9, 2),
            ("remove", "beta", "a.jsonl", 1),
        ],
        (9, ["beta", "alpha"]),
    ),
    (
        [("take down", "site9.example"), ("take down", document_id("beta", "d0"))],
        (4, ["alpha", "beta"]),
    ),
]


# Two texts of one id, the earlier of them dead, and a last change that is a copy of what is there:
# what the corpus is counted by comes from other shards than its text.
_EDITED = [
    ("put", "alpha", "a.jsonl", 5, 9),
    ("put", "alpha", "b.jsonl", 5, 7),
    ("put", "beta", "b.jsonl", 9, 8),
]
_COPIED: list[Step] = [
    ([], (4, list(SOURCES))),
    ([("put", "alpha", "a.jsonl", 3, 3)], (64, list(SOURCES))),
    ([("put", "beta", "a.jsonl", 8, 8)], (64, list(reversed(SOURCES)))),
]


@_histories
@example(first=_FIRST, first_how=(4, list(SOURCES)), later=_LATER, rebuilt_how=(64, list(SOURCES)))
@example(_EDITED, (4, list(SOURCES)), _COPIED, (64, list(SOURCES)))
@settings(_unshrunk, max_examples=2)
def test_any_history_ends_where_a_rebuild_ends(
    pinned: Place, first: list[Change], first_how: How, later: list[Step], rebuilt_how: How
) -> None:
    _end_as_rebuilt(pinned, first, first_how, later, rebuilt_how)


@pytest.mark.slow
@_histories
@settings(_unshrunk, max_examples=25)
def test_each_of_many_histories_ends_where_a_rebuild_ends(
    pinned: Place, first: list[Change], first_how: How, later: list[Step], rebuilt_how: How
) -> None:
    _end_as_rebuilt(pinned, first, first_how, later, rebuilt_how)
