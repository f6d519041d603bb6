"""A quality classifier learnt from two sets of documents, good and ordinary, and pinned.

After GPT-3 (Brown et al. 2020, appendix A) and DCLM (Li et al. 2024, section 4.4): fastText tells
documents of a set known to be good from ordinary ones, and its probability of `GOOD` is a signal.
Its training with several threads is not deterministic, so a pipeline trains once and keeps the
model by content; what it achieved on documents it was not shown is kept beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from llm.config import Config
from llm.errors import ConfigError, DataError
from tasks.fasttext_file import LABEL
from tasks.importing.config import ImportConfig
from tasks.language import FastTextModel
from tasks.store.corpus import live_rows, open_corpus
from tasks.store.pins import Pin, hold
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Run
from tasks.store.store import Store

GOOD, ORDINARY = "hq", "ordinary"

# fastText's own default. With fewer than 10 the library's averaging of the loss reads memory that
# was never set, and training stops at a NaN.
_THREADS = 12


class QualityConfig(Config):
    """Two sets of documents, and how fastText learns to tell them apart."""

    good: tuple[str, ...] = Field(min_length=1)
    """Documents known to be good: names of this pipeline's sources, or else paths and globs of
    files as an import reads them (text in the field `text`)."""

    ordinary: tuple[str, ...] = Field(min_length=1)
    """Documents as they come, named like the good ones."""

    min_documents: int = Field(100, ge=10)
    """Fewest documents of either set. A chosen floor: of so many, ten are held out, and tell a
    classifier that works from one that does not, but little more."""

    max_documents: int = Field(200_000, ge=10)
    """Most documents of either set: DCLM learns from 400,000, half of them good. As many are taken
    of one set as of the other, in the order of their digests."""

    heldout: float = Field(0.1, gt=0, lt=1)
    """Part of each set that the classifier is measured on and does not see."""

    word_ngrams: int = Field(2, ge=1)
    """Longest run of words that is a feature: bigrams (Joulin et al. 2016, section 3.1)."""

    dim: int = Field(10, ge=1)
    """Hidden units (Joulin et al. 2016, section 3.1)."""

    buckets: int = Field(2_000_000, ge=1)
    """Slots that runs of words are hashed into; each takes 4 bytes times `dim` of memory in every
    worker. fastText's default."""

    epochs: int = Field(5, ge=1)
    """Passes over the documents (Joulin et al. 2016, section 3.1; fastText's default)."""

    learning_rate: float = Field(0.5, gt=0)
    """At the start; it falls to zero. The highest that Joulin et al. (section 3.1) choose from,
    since a document is one step and there may be few."""


def learn_quality(run: Run, corpus: Manifest, config: QualityConfig) -> Pin:
    """The pipeline's quality classifier, learnt once and then pinned with what it achieved.

    Raises:
        DataError: a set has too few documents.
        ConfigError: no source and no file goes by a name, or training does not converge.
    """

    def make() -> tuple[ObjectRef, Mapping[str, Any]]:
        run.say("quality: learning a classifier")
        with tempfile.TemporaryDirectory(prefix="loam-") as folder:
            sets = {
                "good": Documents(run.store, corpus, config.good),
                "ordinary": Documents(run.store, corpus, config.ordinary),
            }
            path = Path(folder) / "quality.bin"
            facts = train(sets, config, path)
            ref = run.store.put_local_file(path, "model", "bin")
        run.say(
            f"quality: of {facts['heldout']} held-out documents it tells "
            f"{facts['accuracy']:.1%} rightly (AUC {facts['auc']:.3f})"
        )
        return ref, facts

    return hold(run, "quality", config.model_dump(), make)


@dataclass(frozen=True)
class Documents:
    """A set of documents, to be read as often as need be: of a corpus' sources, or of files."""

    store: Store
    corpus: Manifest
    names: tuple[str, ...]

    def tables(self) -> Iterator[pa.Table]:
        """Columns digest and text."""
        sources = [name for name in self.names if f"source/{name}" in self.corpus.inputs]
        paths = tuple(name for name in self.names if name not in sources)
        if sources:
            wanted = pa.array(sources, pa.string())
            for shard in open_corpus(self.store, self.corpus).shards:
                rows = live_rows(self.store, shard, columns=["id", "digest", "text", "source"])
                yield rows.filter(pc.is_in(rows["source"], value_set=wanted))
        if paths:
            yield from _files(ImportConfig(paths=paths))

    def digests(self) -> set[str]:
        """Of every text that is not blank."""
        found: set[str] = set()
        for table in self.tables():
            blank = pc.equal(pc.utf8_trim_whitespace(table["text"]), "")
            found.update(table.filter(pc.invert(blank))["digest"].to_pylist())
        return found

    def texts(self, digests: set[str]) -> Iterator[tuple[str, str]]:
        """(digest, text) of each of the digests, once, in the order of reading."""
        left, among = set(digests), pa.array(sorted(digests), pa.string())
        for table in self.tables():
            wanted = table.filter(pc.is_in(table["digest"], value_set=among))
            pairs = zip(wanted["digest"].to_pylist(), wanted["text"].to_pylist(), strict=True)
            for digest, text in pairs:
                if digest in left:
                    left.remove(digest)
                    yield digest, text


def _files(config: ImportConfig) -> Iterator[pa.Table]:
    from tasks.importing.files import read_files
    from tasks.importing.rows import read_file

    for file in read_files(config):
        for chunk in read_file(file, config, "quality", ""):
            if chunk.pages.num_rows:
                raise ConfigError(
                    f"quality: {file.url} holds web pages; import them as a source of the "
                    "pipeline, so that their text is extracted, and name that source"
                )
            yield chunk.documents


def train(sets: Mapping[str, Documents], config: QualityConfig, path: Path) -> dict[str, Any]:
    """Trains a classifier of the sets `good` and `ordinary` and writes it to `path`.

    Returns how many documents it was shown and how many it was measured on, and `figures`.
    """
    chosen = _choose(sets, config)
    lines = path.with_suffix(".txt")
    unseen = _write_lines(sets, chosen, lines)
    _fit(lines, config, path)
    model = FastTextModel(path.read_bytes())
    scores = {
        name: model.probability(pa.array(texts, pa.large_string()), GOOD)
        for name, texts in unseen.items()
    }
    return {
        "documents": sum(len(choice.shown) for choice in chosen.values()),
        "heldout": sum(len(choice.heldout) for choice in chosen.values()),
        **figures(scores["good"], scores["ordinary"]),
    }


@dataclass(frozen=True)
class _Choice:
    """The digests of a set that the classifier is shown, and those it is measured on."""

    shown: set[str]
    heldout: set[str]


def _choose(sets: Mapping[str, Documents], config: QualityConfig) -> dict[str, _Choice]:
    """As many documents of each set, those of the smallest digests; the first are held out.

    A text that is in both sets counts as good.
    """
    digests = {name: documents.digests() for name, documents in sets.items()}
    digests["ordinary"] -= digests["good"]
    for name, found in digests.items():
        if len(found) < config.min_documents:
            raise DataError(
                f"quality.{name} ({', '.join(sets[name].names)}) holds {len(found)} distinct "
                f"documents, and quality.min_documents is {config.min_documents}: name more "
                "sources or files"
            )
    each = min(config.max_documents, *map(len, digests.values()))
    n_held = max(1, round(each * config.heldout))
    ranked = {name: sorted(found)[:each] for name, found in digests.items()}
    return {n: _Choice(set(row[n_held:]), set(row[:n_held])) for n, row in ranked.items()}


def _write_lines(
    sets: Mapping[str, Documents], chosen: Mapping[str, _Choice], path: Path
) -> dict[str, list[str]]:
    """Writes fastText's training file. Returns the texts that are held out, by set."""
    unseen: dict[str, list[str]] = {name: [] for name in sets}

    def lines(name: str, label: str) -> Iterator[str]:
        choice = chosen[name]
        for digest, text in sets[name].texts(choice.shown | choice.heldout):
            if digest in choice.heldout:
                unseen[name].append(text)
            else:
                # A word that looks like a label would be taken for one.
                yield f"{LABEL}{label} {text.replace(LABEL, ' ').replace(chr(10), ' ')}\n"

    with path.open("w", encoding="utf-8") as file:
        # One of each in turn, since fastText learns from lines in the order in which they come.
        for pair in zip(lines("good", GOOD), lines("ordinary", ORDINARY), strict=True):
            file.writelines(pair)
    return unseen


def _fit(lines: Path, config: QualityConfig, path: Path) -> None:
    import fasttext

    try:
        model = fasttext.train_supervised(
            str(lines),
            lr=config.learning_rate,
            epoch=config.epochs,
            dim=config.dim,
            wordNgrams=config.word_ngrams,
            bucket=config.buckets,
            thread=_THREADS,
            label=LABEL,
            verbose=0,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"quality: fastText gave up ({error}); lower quality.learning_rate from "
            f"{config.learning_rate}"
        ) from error
    model.save_model(str(path))


def figures(good: npt.NDArray[np.float64], ordinary: npt.NDArray[np.float64]) -> dict[str, float]:
    """Accuracy at a probability of a half, and the area under the ROC curve: how often a good
    document scores above an ordinary one, a tie counting half. Rounded to 4 decimals."""
    ranked = np.sort(ordinary)
    below = np.searchsorted(ranked, good, "left") + np.searchsorted(ranked, good, "right")
    right = np.sum(good >= 0.5) + np.sum(ordinary < 0.5)
    return {
        "accuracy": round(float(right) / (len(good) + len(ordinary)), 4),
        "auc": round(float(below.mean()) / 2 / len(ordinary), 4),
    }
