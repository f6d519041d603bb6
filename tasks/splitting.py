"""Which documents train and which are held out.

The first build draws validation and test documents by a hash of their cluster's smallest id and
pins them (`hold_out`). From then on a document is held out because its id is pinned
(`label_shard`), so that adding or removing others never moves it; later documents that resemble a
pinned one are decontaminated against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import pyarrow as pa
import xxhash
from pydantic import Field, model_validator

from llm.config import Config
from llm.errors import DataError
from tasks.store.schema import LABELS

Split = Literal["train", "validation", "test"]


class SplitConfig(Config):
    """How much is held out, and which sources decide for themselves."""

    validation: float = Field(0.05, ge=0, lt=1)
    """Part of the clusters held out for validation. A twentieth, so that a corpus of a few hundred
    pages still measures with tens of documents; large corpora want less."""

    test: float = Field(0.05, ge=0, lt=1)
    """Part of the clusters held out for the final test. As large as validation."""

    seed: int = 0
    """Chooses another draw."""

    sources: dict[str, Split] = Field(default_factory=dict)
    """Sources whose documents all go to one split, by name. A pinned document stays held out."""

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} leave nothing to train on:"
                " together they must stay under 1"
            )
        return self


def split_of(roots: Sequence[str], config: SplitConfig) -> list[Split]:
    """The split of each cluster root, from all roots of a corpus; equal roots, equal split.

    xxh3-64 of "seed NUL root", scaled to [0, 1): the first `validation` of the range validates,
    the next `test` tests, the rest trains. Of two clusters or more at least one trains, the one of
    the largest hash, and, unless `validation` is 0, at least one validates, the one of the
    smallest hash.
    """
    place = {root: (_place(root, config.seed), root) for root in roots}
    splits = {root: _range_of(at, config) for root, (at, _) in place.items()}
    if len(place) >= 2:
        if config.validation and "validation" not in splits.values():
            splits[min(place, key=place.__getitem__)] = "validation"
        if "train" not in splits.values():
            splits[max(place, key=place.__getitem__)] = "train"
    return [splits[root] for root in roots]


def _place(root: str, seed: int) -> float:
    """Where in [0, 1) a root falls: the upper 53 bits of its hash, which a float holds exactly."""
    return (xxhash.xxh3_64_intdigest(f"{seed}\0{root}".encode()) >> 11) / (1 << 53)


def _range_of(place: float, config: SplitConfig) -> Split:
    if place < config.validation:
        return "validation"
    return "test" if place < config.validation + config.test else "train"


def hold_out(documents: pa.Table, clusters: pa.Table, config: SplitConfig) -> pa.Table:
    """The held-out set of a first build, to be pinned: LABELS of validation and test, by id.

    `documents` (columns id, source) are the live ones of the whole corpus, `clusters` name the
    root of each. Documents of one cluster share their split, unless their sources force another.

    Raises:
        DataError: a document without a cluster.
    """
    root_of = dict(zip(clusters["id"].to_pylist(), clusters["root"].to_pylist(), strict=True))
    labels: dict[str, Split] = {}
    roots: dict[str, str] = {}
    for id, source in _ids_and_sources(documents):
        if source in config.sources:
            labels[id] = config.sources[source]
        elif id in root_of:
            roots[id] = root_of[id]
        else:
            raise DataError(f"document {id} has no cluster: split the corpus that was clustered")
    labels.update(zip(roots, split_of(list(roots.values()), config), strict=True))
    rows = sorted(item for item in labels.items() if item[1] != "train")
    return LABELS.table([{"id": id, "split": split} for id, split in rows])


def label_shard(documents: pa.Table, heldout: Mapping[str, str], config: SplitConfig) -> pa.Table:
    """LABELS of a shard of documents (columns id, source), in its order.

    A document whose id is in `heldout` (id to split, as pinned) keeps that split for good; else
    its source may force one; everything else trains.
    """
    splits = [
        heldout.get(id) or config.sources.get(source, "train")
        for id, source in _ids_and_sources(documents)
    ]
    return pa.table({"id": documents["id"], "split": splits}, schema=LABELS.arrow)


def _ids_and_sources(documents: pa.Table) -> list[tuple[str, str]]:
    ids, sources = documents["id"].to_pylist(), documents["source"].to_pylist()
    return list(zip(ids, sources, strict=True))
