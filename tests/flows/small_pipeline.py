"""A whole small pipeline on real parts: a site crawled over HTTP, a file imported, a model trained.

`python -m tests.flows.small_pipeline CONFIG [--refresh]` runs the recipes in a process that tests
can kill. A `Place` is where a test grows one; `results` reads out of the store what it came to.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.flows.grown import REPOSITORY, without_prefect

if TYPE_CHECKING:
    from tasks.store.reach import Verdict
    from tasks.store.records import Manifest
    from tests.tasks.crawling.site import Answer, Handler, Site

NAME = "small"
SEED = 5

_CONFIG = """
name = "small"
[store]
root = "{root}"
workers = {workers}
{executor}
shard_rows = {shard_rows}
cache_dir = "cache"
{sources}
[select]
min_words = {min_words}
[decontaminate]
benchmarks = [{{ name = "quiz", path = "quiz.jsonl", fields = ["question"] }}]
[split]
validation = 0.15
test = 0.1
[tokenizer]
vocab_size = 400
[model]
context_length = 32
n_layers = 2
d_model = 32
n_heads = 2
[train]
steps = 60
batch_size = 4
device = "cpu"
dtype = "float32"
threads = 1
eval_every = 20
checkpoint_every = 5
sample_every = 30
sample_tokens = 8
"""

# The site is recorded under a name of its own, so that the port of its server enters no id.
_SOURCES = {
    "site": """
[[sources]]
kind = "crawl"
name = "site"
seeds = ["http://site.test/"]
mirror = {{ "http://site.test/" = "{url}/" }}
allow_private = ["{host}"]
delay_s = 0
batch_size = 6
max_loss = 1
""",
    "notes": """
[[sources]]
kind = "import"
name = "notes"
paths = ["notes.jsonl"]
max_loss = 1
""",
}

_NOUNS = [
    "anchor",
    "apple",
    "basket",
    "beacon",
    "bridge",
    "cabin",
    "candle",
    "canyon",
    "carpet",
    "castle",
    "cellar",
    "cloud",
    "coral",
    "cotton",
    "desert",
    "engine",
    "feather",
    "ferry",
    "field",
    "flute",
    "forest",
    "fountain",
    "garden",
    "glacier",
    "hammer",
    "harbour",
    "hill",
    "island",
    "kettle",
    "ladder",
    "lantern",
    "letter",
    "library",
    "market",
    "meadow",
    "mirror",
    "mountain",
    "museum",
    "needle",
    "ocean",
    "orchard",
    "paddle",
    "palace",
    "paper",
    "pebble",
    "piano",
    "pillow",
    "planet",
    "pocket",
    "railway",
    "ribbon",
    "river",
    "saddle",
    "shadow",
    "shelter",
    "silver",
    "spoon",
    "square",
    "station",
    "stone",
    "summer",
    "table",
    "temple",
    "thread",
    "tower",
    "tunnel",
    "valley",
    "village",
    "violin",
    "wagon",
    "water",
    "whistle",
    "window",
    "winter",
]
_ADJECTIVES = [
    "ancient",
    "bitter",
    "bright",
    "broad",
    "calm",
    "careful",
    "clear",
    "cold",
    "crooked",
    "distant",
    "eager",
    "early",
    "empty",
    "faint",
    "familiar",
    "gentle",
    "golden",
    "heavy",
    "hollow",
    "honest",
    "humble",
    "late",
    "lively",
    "lonely",
    "narrow",
    "patient",
    "pale",
    "quiet",
    "rapid",
    "rough",
    "simple",
    "slender",
    "smooth",
    "steady",
    "strange",
    "tall",
    "tender",
    "thick",
    "wooden",
    "young",
]
_VERBS = [
    "answers",
    "borrows",
    "carries",
    "catches",
    "covers",
    "crosses",
    "follows",
    "gathers",
    "guards",
    "hides",
    "holds",
    "keeps",
    "lifts",
    "measures",
    "mends",
    "moves",
    "opens",
    "paints",
    "passes",
    "reaches",
    "repairs",
    "shows",
    "touches",
    "turns",
    "visits",
    "watches",
]


def prose(rng: random.Random, count: int) -> str:
    """So many plain sentences, unlike enough that no filter takes them for repetition."""

    def words(choices: list[str]) -> str:
        return rng.choice(choices)

    return " ".join(
        f"{words(['The', 'One', 'Every', 'Each'])} {words(_ADJECTIVES)} {words(_NOUNS)} "
        f"{words(_VERBS)} {words(['the', 'a', 'some'])} {words(_NOUNS)} "
        f"{words(['of', 'with', 'beside', 'under'])} {words(['the', 'this', 'a'])} "
        f"{words(_ADJECTIVES)} {words(_NOUNS)} and {words(_VERBS)} {words(_NOUNS)}."
        for _ in range(count)
    )


@dataclass(frozen=True)
class Content:
    """What the sources hold: texts of pages by path, and of notes by id; and a benchmark."""

    pages: Mapping[str, str]
    notes: Mapping[str, str]
    quiz: tuple[str, ...]

    def first(self, pages: int, notes: int) -> Content:
        """Only the first so many pages and notes."""
        return replace(
            self,
            pages=dict(list(self.pages.items())[:pages]),
            notes=dict(list(self.notes.items())[:notes]),
        )

    def edited(self, pages: Mapping[str, str], notes: Mapping[str, str]) -> Content:
        return replace(self, pages={**self.pages, **pages}, notes={**self.notes, **notes})


def whole_content() -> Content:
    """25 pages and 22 notes: duplicates and near-duplicates within and across the two sources,
    personal data, texts that are too short, and an item of the benchmark."""
    rng = random.Random(SEED)
    pages = {f"/p{n:02d}.html": prose(rng, 14) for n in range(20)}
    notes = {f"n{n:02d}": prose(rng, 12) for n in range(17)}
    quiz = tuple(prose(rng, 2) for _ in range(3))
    pages["/person.html"] = f"{prose(rng, 12)} Write to jane.doe@example.com or to 192.0.2.77."
    pages["/leaked.html"] = f"{prose(rng, 6)} {quiz[1]} {prose(rng, 6)}"
    pages["/short.html"] = "The bridge is closed."
    pages["/again.html"] = pages["/p07.html"]
    notes["near"] = f"{pages['/p05.html']} {prose(rng, 1)}"
    notes["copy"] = notes["n02"]
    notes["copy-of-page"] = pages["/p11.html"]
    notes["short"] = "Bring the kettle."
    notes["mail"] = f"{prose(rng, 11)} Ask john.roe@example.org for it."
    return Content(pages, notes, quiz)


@contextmanager
def serving_site(held: Content, seconds: float = 0.0) -> Iterator[Site]:
    """Serves the pages, and an index that links to them, each answer after so many seconds."""
    from tests.tasks.crawling.site import page, serving

    def slowly(answer: Answer) -> Callable[[Handler], Answer]:
        def answered(_: Handler) -> Answer:
            time.sleep(seconds)
            return answer

        return answered

    routes = {path: slowly(page(text=f"<p>{text}</p>")) for path, text in held.pages.items()}
    routes["/"] = slowly(page(*held.pages, text="<p>All the pages there are.</p>"))
    with serving(routes) as server:
        yield server


@dataclass(frozen=True)
class Place:
    """Where a small pipeline is grown: a folder for its config, and the root of its store.

    The config's paths are relative, so that a place can be copied.
    """

    folder: Path
    root: str

    @classmethod
    def at(cls, folder: Path) -> Place:
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, f"{folder}/store")

    def write(
        self,
        held: Content,
        server: Site | None,
        *,
        workers: int = 1,
        shard_rows: int = 8,
        sources: tuple[str, ...] = ("site", "notes"),
        min_words: int = 50,
        model: bool = True,
        dask: str | None = None,
    ) -> None:
        """Writes the config, the notes and the benchmark; `dask` is a scheduler's address."""
        places = {
            "folder": self.folder,
            "url": server and server.url,
            "host": server and server.host,
        }
        text = _CONFIG.format(
            root=self.root,
            workers=workers,
            executor=f'executor = "dask"\ndask_address = "{dask}"' if dask else "",
            shard_rows=shard_rows,
            min_words=min_words,
            sources="".join(_SOURCES[name].format(**places) for name in sources),
        )
        (self.folder / "loam.toml").write_text(text if model else text.partition("[model]")[0])
        notes = [{"id": name, "text": text} for name, text in held.notes.items()]
        write_jsonl(self.folder / "notes.jsonl", notes)
        write_jsonl(self.folder / "quiz.jsonl", [{"question": text} for text in held.quiz])

    def copied_to(self, folder: Path) -> Place:
        """The store and the sources, at another place; its config is still to be written."""
        shutil.copytree(self.folder, folder)
        return Place(folder, f"{folder}/store")

    def take_pins_of(self, other: Place) -> None:
        """Starts from the pins of another pipeline: the tokenizer, the held-out set, benchmarks."""
        for name in ("refs/pin", "objects"):
            shutil.copytree(f"{other.root}/{name}", f"{self.root}/{name}")

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """The pipeline in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", __name__, "loam.toml", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )

    def grow(self, *flags: str) -> str:
        """Runs the pipeline to its end. Returns what it said."""
        return ended(self.start(*flags))


def ended(process: subprocess.Popen[str]) -> str:
    """Waits for a pipeline that must succeed. Returns what it said."""
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class Results:
    """What a pipeline came to. `trained_on` is what training says of its data, model and recipe:
    the order of training follows from them."""

    digests: dict[str, str]
    weights: str
    trained_on: dict[str, Any]
    figures: dict[str, Any]


def results(place: Place) -> Results:
    """What the refs and the newest model of a finished pipeline reach."""
    from llm import files
    from tasks.store.store import Store

    store, found = Store.at(place.root), manifests(place)
    trained = found["train"]
    ran = files.read_bytes(f"{store.root}/{trained.summary['run']}/run.json")
    return Results(
        {stage: manifest.data_digest for stage, manifest in sorted(found.items())},
        trained.object("weights").sha256,
        json.loads(ran)["identity"],
        found["evaluate"].summary["splits"],
    )


def manifests(place: Place) -> dict[str, Manifest]:
    """The manifests of the last finished run, by stage."""
    from flows.running import last_manifests
    from tasks.store.store import Store

    return last_manifests(Store.at(place.root), NAME, NAME)


def check(place: Place) -> Verdict:
    """What `loam store verify` finds."""
    from tasks.store.executors import InlineExecutor
    from tasks.store.reach import verify
    from tasks.store.store import Store

    return verify(Store.at(place.root), InlineExecutor())


def kill(process: subprocess.Popen[str]) -> str:
    """Kills a pipeline and every process it has started, at once. Returns what it had said."""
    tree = psutil.Process(process.pid).children(recursive=True)
    groups = {process.pid}
    for child in tree:
        with suppress(ProcessLookupError):
            groups.add(os.getpgid(child.pid))
    for group in sorted(groups, key=lambda group: group != process.pid):
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, said
    return said


def wait_until(process: subprocess.Popen[str], seen: Callable[[], bool]) -> None:
    """Waits for something to happen while a pipeline runs, and fails if it never does."""
    while not seen():
        if process.poll() is not None:
            raise AssertionError(f"it ended before: {process.communicate()[0]}")
        time.sleep(0.001)


def main(config_path: str, *flags: str) -> None:
    without_prefect()
    from flows.config import read_config
    from flows.corpus import grow_corpus
    from flows.model import grow_model
    from flows.running import RunOptions, open_run

    config = read_config(config_path)
    with open_run(config, RunOptions(refresh="--refresh" in flags)) as run:
        corpus = grow_corpus(run, config)
        if config.model is not None:
            grow_model(run, config, corpus)


if __name__ == "__main__":
    main(*sys.argv[1:])
