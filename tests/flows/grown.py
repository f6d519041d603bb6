"""A pipeline grown from a few lines of text, without Prefect, for tests that look at the result.

`python -m tests.flows.grown CONFIG` runs the recipes themselves; only Prefect's decorator is
replaced by one that leaves functions as they are, which spares each test session a server.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tasks import as_task

REPOSITORY = Path(__file__).parents[2]
SEED = 11
N_DOCUMENTS = 40
EMAIL = "jane.doe@example.com"
HOSTILE = "\x1b[31mred\x1b[0m [bold]not markup[/bold]"

CONFIG = """
name = "tiny"
[store]
root = "store"
workers = 1
shard_rows = 16
cache_dir = "cache"
reports = "reports"
[[sources]]
kind = "import"
name = "docs"
paths = ["docs.jsonl"]
id_field = "id"
[select]
gopher_repetition = false
min_words = 50
[tokenizer]
vocab_size = 400
[model]
context_length = 32
n_layers = 1
d_model = 32
n_heads = 2
n_kv_heads = 1
[train]
steps = 4
batch_size = 2
threads = 1
sample_tokens = 8
"""

_NOUNS = (
    "river",
    "stone",
    "light",
    "garden",
    "winter",
    "song",
    "house",
    "letter",
    "music",
    "bread",
)


@dataclass(frozen=True)
class Grown:
    """A folder with a config, its sources and the store grown from them.

    The config's paths are relative: it is to be used from that folder.
    """

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "loam.toml"

    @property
    def store(self) -> str:
        return f"{self.folder}/store"

    def edited(self, old: str, new: str) -> Path:
        """Another config over the same store, with a line changed."""
        text = self.config.read_text()
        if old not in text:
            raise ValueError(f"the config has no {old!r}")
        path = self.folder / "edited.toml"
        path.write_text(text.replace(old, new))
        return path


def documents() -> list[dict[str, str]]:
    """Distinct texts of about 150 words, one twice, one too short, and what cannot be read."""
    rng = random.Random(SEED)

    def sentence() -> str:
        a, b, c, d = (rng.choice(_NOUNS) for _ in range(4))
        return f"The {a} that we have with the {b} is of use to a {c} and to the {d}."

    rows = [
        {"id": f"d{n}", "url": f"https://example.org/{n}", "text": " ".join(
            sentence() for _ in range(8))}
        for n in range(N_DOCUMENTS)
    ]  # fmt: skip
    rows.append({"id": "copy", "url": "https://example.org/copy", "text": rows[3]["text"]})
    rows.append({"id": "short", "url": "https://example.org/short", "text": f"Ask {EMAIL}."})
    rows.append({"id": "hostile", "url": "https://example.org/h", "text": HOSTILE})
    return rows


def grow(folder: Path) -> Grown:
    """Writes config and documents into `folder` and grows the pipeline there."""
    grown = Grown(folder)
    grown.config.write_text(CONFIG)
    lines = [json.dumps(row) for row in documents()]
    (folder / "docs.jsonl").write_text("\n".join([*lines, "not json", '{"id": "x"}']) + "\n")
    subprocess.run(
        [sys.executable, "-m", "tests.flows.grown", grown.config.name],
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    return grown


def without_prefect() -> None:
    """Leaves stages as the plain functions that they are, in this process."""
    as_task.in_prefect = lambda name, function: function


def main(config_path: str) -> None:
    without_prefect()
    from flows.config import read_config
    from flows.corpus import grow_corpus
    from flows.model import grow_model
    from flows.running import RunOptions, open_run

    config = read_config(config_path)
    with open_run(config, RunOptions()) as run:
        grow_model(run, config, grow_corpus(run, config))


if __name__ == "__main__":
    main(sys.argv[1])
