from __future__ import annotations

import hashlib
import tempfile
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.buckets import LEVELS, n_buckets
from llm.config_data import DataConfig
from llm.errors import ConfigError, DataError
from llm.loader import Batch, Loader
from llm.mixture import PERIOD
from tests.llm.small_datasets import EOT, Document, corpora, made_up, prepared_from
from tests.llm.small_models import small_model


def epoch_of(loader: Loader, epoch: int = 0) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of every window of an epoch, for a loader with batches of one."""
    first = epoch * loader.n_windows(epoch)
    batches = [loader.batch(first + i) for i in range(loader.n_windows(epoch))]
    return [(batch.inputs_BT[0].tolist(), batch.targets_BT[0].tolist()) for batch in batches]


def counted(epoch: list[tuple[list[int], list[int]]]) -> list[int]:
    return [token for _, targets in epoch for token in targets if token != -100]


def modes_of(documents: list[Document]) -> list[DataConfig]:
    """One of each packing, curriculum, mask and mixture, for documents of these sources."""
    weights = {source: 1.0 + k for k, source in enumerate(sorted({d.source for d in documents}))}
    return [
        DataConfig(),
        DataConfig(packing="best_fit", document_mask=True),
        DataConfig(weights=weights, curriculum="length"),
        DataConfig(packing="best_fit", curriculum="difficulty", weights=weights),
    ]


@settings(max_examples=40, deadline=None)
@given(corpora(), st.integers(1, 4), st.randoms(use_true_random=False), st.integers(0, 3))
def test_batches_depend_on_ids_and_tokens_alone_in_every_mode(
    documents: list[Document], n_shards: int, random: Random, mode: int
) -> None:
    """Not on shards, the order of rows, the order of steps, or how many processes share one."""
    moved = sorted(documents, key=lambda d: random.random())
    tokens_type = pa.list_(pa.uint32()) if mode % 2 else None
    data = modes_of(documents)[mode]
    with tempfile.TemporaryDirectory() as folder:
        one = prepared_from(Path(folder) / "a", documents)
        other = prepared_from(Path(folder) / "b", moved, n_shards=n_shards, tokens_type=tokens_type)
        by_id = sorted(documents, key=lambda d: d.id)
        assert one.tokens_S.tolist() == [t for d in by_id for t in [EOT, *d.tokens]]
        assert one.digest == other.digest
        assert one.tokens_S.dtype == other.tokens_S.dtype
        mine, theirs = (Loader(p, 7, 6, 5, data, bucket_tokens=16) for p in (one, other))
        steps = list(range(-(-2 * mine.n_windows() // 6)))
        batches = [mine.batch(step) for step in steps]
        random.shuffle(steps)
        for step in steps:
            world_size = random.choice([1, 2, 3, 6])
            shares = [theirs.batch(step, rank, world_size) for rank in range(world_size)]
            for name in ("inputs_BT", "targets_BT", "documents_BT"):
                if (whole := getattr(batches[step], name)) is not None:
                    assert torch.cat([getattr(share, name) for share in shares]).equal(whole)


def test_an_epoch_predicts_every_token_once(tmp_path: Path) -> None:
    documents = made_up(200)
    prepared = prepared_from(tmp_path, documents)
    loader = Loader(prepared, 16, 1, seed=1, bucket_tokens=200)
    buckets = n_buckets(len(prepared.tokens_S), 200)
    tokens = sorted(t for d in documents for t in d.tokens)
    assert buckets > 8
    for epoch in range(3):
        targets = counted(epoch_of(loader, epoch))
        assert sorted(t for t in targets if t != EOT) == tokens
        assert targets.count(EOT) == len(documents)
        assert len(targets) == loader.tokens_per_epoch


def test_windows_are_stretches_of_one_buckets_documents_in_whole(tmp_path: Path) -> None:
    documents = made_up(200)
    prepared = prepared_from(tmp_path, documents)
    loader = Loader(prepared, 16, 1, seed=1, bucket_tokens=200)
    shift = 128 - (n_buckets(len(prepared.tokens_S), 200).bit_length() - 1)
    document_of = {token: d for d in documents for token in d.tokens}
    for inputs, targets in epoch_of(loader):
        n = len([t for t in targets if t != -100])
        assert inputs[1:n] == targets[: n - 1]
        assert inputs[n:] == ([targets[n - 1]] + [EOT] * 16)[: 16 - n]
        assert targets[n:] == [-100] * (16 - n)
        for before, after in zip(inputs[:n], targets[:n], strict=True):
            if EOT not in (before, after):
                assert after == before + 1
            elif after != EOT:
                assert after == document_of[after].tokens[0]
            elif before != EOT:
                assert before == document_of[before].tokens[-1]
        seen = {document_of[t].id for t in [inputs[0], *targets[:n]] if t != EOT}
        assert len({int(i, 16) >> shift for i in seen}) <= 1


def test_any_batch_can_be_had_at_once_and_batches_are_consecutive_windows(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, made_up(100))
    one_by_one = Loader(prepared, 16, 1, seed=3, bucket_tokens=200)
    windows = epoch_of(one_by_one, 0) + epoch_of(one_by_one, 1) + epoch_of(one_by_one, 2)
    for step in reversed(range(len(windows) // 5)):
        batch = Loader(prepared, 16, 5, seed=3, bucket_tokens=200).batch(step)
        expected = windows[5 * step : 5 * step + 5]
        rows = zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True)
        assert list(rows) == expected


def test_a_batch_larger_than_an_epoch_goes_round(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [Document("0" * 32, [1, 2, 3, 4])])
    batch = Loader(prepared, 2, 7, seed=0).batch(0)
    pairs = zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True)
    rows = {(tuple(inputs), tuple(targets)) for inputs, targets in pairs}
    assert rows == {((EOT, 1), (1, 2)), ((2, 3), (3, 4)), ((4, EOT), (EOT, -100))}
    assert batch.inputs_BT.shape == batch.targets_BT.shape == (7, 2)


def test_epochs_and_seeds_differ_in_order_only(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, made_up(100))
    loaders = [Loader(prepared, 16, 1, seed=seed) for seed in (1, 2)]
    orders = [counted(epoch_of(loader, epoch)) for loader in loaders for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_neighbours_in_a_batch_come_from_far_apart(tmp_path: Path) -> None:
    documents = made_up(400)
    prepared = prepared_from(tmp_path, documents)
    places = Loader(prepared, 16, 64, seed=1).batch(0).inputs_BT.max(dim=1).values.double()
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.4


def test_an_added_document_leaves_the_windows_of_other_buckets_alone(tmp_path: Path) -> None:
    documents = made_up(200)
    more = [*documents, Document("8" + "0" * 31, [50_000])]
    before, after = (
        prepared_from(tmp_path / name, part) for name, part in (("a", documents), ("b", more))
    )
    buckets = n_buckets(len(before.tokens_S), 400)
    assert buckets == n_buckets(len(after.tokens_S), 400) > 4
    windows = [
        {str(w) for w in epoch_of(Loader(p, 16, 1, seed=1, bucket_tokens=400))}
        for p in (before, after)
    ]
    assert len(windows[0] & windows[1]) > len(windows[0]) * (1 - 2 / buckets)
    assert windows[0] != windows[1]


def test_the_order_is_pinned(tmp_path: Path) -> None:
    """A change of this digest is a change of every training run: it needs a reason."""
    documents = [
        Document(hashlib.md5(bytes([i])).hexdigest(), [1 + i] * (i % 30)) for i in range(256)
    ]
    loader = Loader(prepared_from(tmp_path, documents), 16, 4, seed=7, bucket_tokens=500)
    digest = hashlib.sha256()
    for step in range(200):
        batch = loader.batch(step)
        for tensor in (batch.inputs_BT, batch.targets_BT):
            digest.update(tensor.numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "aff4b166f433c1d9"


BEST_FIT = DataConfig(packing="best_fit", document_mask=True)


def pieces_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of each document of each window, padding left out."""
    assert batch.documents_BT is not None
    found = []
    for inputs, targets, documents in zip(
        batch.inputs_BT.tolist(),
        batch.targets_BT.tolist(),
        batch.documents_BT.tolist(),
        strict=True,
    ):
        assert documents == sorted(documents)
        for number in dict.fromkeys(documents):
            rows = [k for k, d in enumerate(documents) if d == number and targets[k] != -100]
            found.append(([inputs[k] for k in rows], [targets[k] for k in rows]))
    return [piece for piece in found if piece[0]]


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(1, 9), st.sampled_from(["stream", "best_fit"]))
def test_every_pair_of_a_document_is_learnt_once_an_epoch(
    documents: list[Document], context: int, packing: str
) -> None:
    data = DataConfig(packing=packing, document_mask=True)
    with tempfile.TemporaryDirectory() as folder:
        loader = Loader(
            prepared_from(Path(folder), documents), context, 1, 5, data, bucket_tokens=16
        )
        streams = [[EOT, *d.tokens, EOT] for d in documents]
        pairs = sorted(pair for stream in streams for pair in pairwise(stream))
        for epoch in (0, 1):
            first = epoch * loader.n_windows()
            pieces = [
                p for k in range(loader.n_windows()) for p in pieces_of(loader.batch(first + k))
            ]
            assert sorted(p for piece in pieces for p in zip(*piece, strict=True)) == pairs
            # What a mask separates begins with an eot, or goes on where a window was cut.
            assert all(EOT not in inputs[1:] for inputs, _ in pieces)


def test_best_fit_cuts_few_documents_and_leaves_less_than_a_window_empty(
    tmp_path: Path,
) -> None:
    documents = made_up(2000, longest=40, seed=3)
    prepared = prepared_from(tmp_path, documents)
    loader = Loader(prepared, 32, 1, seed=1, data=BEST_FIT)
    batches = [loader.batch(k) for k in range(loader.n_windows())]
    assert sum(32 - batch.n_targets for batch in batches) < 32
    short = [d for d in documents if len(d.tokens) < 32]
    whole = {(EOT, *d.tokens) for d in short}
    kept = sum(tuple(i) in whole for b in batches for i, _ in pieces_of(b))
    assert kept > 0.9 * len(short)
    stream = Loader(prepared, 32, 1, seed=1, data=DataConfig(document_mask=True))
    cut = [p for k in range(stream.n_windows()) for p in pieces_of(stream.batch(k))]
    assert kept > sum(tuple(i) in whole for i, _ in cut) * 1.3


def test_ranks_that_cannot_share_a_batch_evenly_are_refused(tmp_path: Path) -> None:
    loader = Loader(prepared_from(tmp_path, made_up(20)), 16, 6, 2)
    with pytest.raises(ConfigError, match="batch_size is 6, which 4 processes cannot share"):
        loader.batch(0, 0, 4)


def test_a_document_that_was_packed_has_the_logits_it_has_alone(tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(1, 50, 400)
    documents = [
        Document(f"{k:032x}", tokens[10 * k : 10 * k + 3 + k % 7].tolist()) for k in range(40)
    ]
    batch = Loader(prepared_from(tmp_path, documents), 24, 6, 1, BEST_FIT).batch(0)
    model = small_model(vocab_size=64).eval()
    assert batch.documents_BT is not None
    packed = model(batch.inputs_BT, documents_BT=batch.documents_BT)
    leaked = 0
    for row, numbers in enumerate(batch.documents_BT):
        for number in numbers.unique():
            here = numbers == number
            alone = model(batch.inputs_BT[row, here][None])[0]
            torch.testing.assert_close(packed[row, here], alone, rtol=1e-4, atol=1e-5)
        unmasked = model(batch.inputs_BT[row][None])[0]
        leaked += not torch.allclose(unmasked, packed[row], atol=1e-3)
    assert int(batch.documents_BT.max()) > 1
    assert leaked == len(batch.inputs_BT)


def from_two_sources() -> list[Document]:
    return [
        Document(d.id, d.tokens, source="books" if k % 4 else "web")
        for k, d in enumerate(made_up(300, seed=2))
    ]


def test_a_mixture_gives_each_source_its_part_of_the_windows(tmp_path: Path) -> None:
    documents = from_two_sources()
    source_of = {token: d.source for d in documents for token in d.tokens}
    prepared = prepared_from(tmp_path, documents)
    data = DataConfig(weights={"web": 3, "books": 1})
    loader = Loader(prepared, 8, 64, 1, data)
    sources = []
    for step in range(PERIOD // 64):
        batch = loader.batch(step)
        for tokens in torch.cat([batch.inputs_BT, batch.targets_BT], dim=1).tolist():
            sources.append({source_of[token] for token in tokens if token > 0})
    assert all(len(found) <= 1 for found in sources)
    assert sum(found == {"web"} for found in sources) == pytest.approx(PERIOD * 0.75, abs=8)
    alone = Loader(prepared, 8, 5, 1, data)
    windows = [row for step in range(7) for row in alone.batch(step).inputs_BT.tolist()]
    assert windows == loader.batch(0).inputs_BT.tolist()[:35]


def test_each_source_of_a_mixture_begins_anew_at_its_own_epoch(tmp_path: Path) -> None:
    documents = from_two_sources()
    source_of = {token: d.source for d in documents for token in d.tokens}
    prepared = prepared_from(tmp_path, documents)
    loader = Loader(prepared, 8, 10, 1, DataConfig(weights={"web": 3, "books": 1}))
    targets: dict[str, list[int]] = {"web": [], "books": []}
    for step in range(200):
        for row in loader.batch(step).targets_BT.tolist():
            told = [token for token in row if token > 0]
            if told:
                targets[source_of[told[0]]] += told
    for source, found in targets.items():
        own = sorted(token for token, name in source_of.items() if name == source)
        epochs = [found[k : k + len(own)] for k in range(0, len(found), len(own))]
        assert len(epochs) > (2 if source == "web" else 1)
        assert all(sorted(epoch) == own for epoch in epochs[:-1])
        assert epochs[0] != epochs[1] or len(epochs) == 2


def test_weights_must_speak_of_every_source_and_of_no_other(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, from_two_sources())
    with pytest.raises(ConfigError, match="says nothing of the source 'books'"):
        Loader(prepared, 8, 4, 1, DataConfig(weights={"web": 1}))
    with pytest.raises(ConfigError, match="names 'news', of which"):
        Loader(prepared, 8, 4, 1, DataConfig(weights={"web": 1, "books": 0, "news": 1}))
    with pytest.raises(ConfigError, match=r"'web' 0\.0001, less than one part in 4096 of all"):
        Loader(prepared, 8, 4, 1, DataConfig(weights={"web": 0.0001, "books": 1}))
    only = Loader(prepared, 8, 4, 1, DataConfig(weights={"web": 1, "books": 0}))
    assert only.n_windows() < Loader(prepared, 8, 4, 1).n_windows()


def test_a_curriculum_of_length_goes_from_short_documents_to_long(tmp_path: Path) -> None:
    documents = made_up(400, longest=60)
    length_of = {token: len(d.tokens) for d in documents for token in d.tokens}
    loader = Loader(prepared_from(tmp_path, documents), 8, 1, 1, DataConfig(curriculum="length"))
    for epoch in (0, 1):
        lengths = [
            np.mean([length_of[t] for t in targets if t > 0] or [0])
            for _, targets in epoch_of(loader, epoch)
        ]
        parts = np.array_split(np.array(lengths), LEVELS)
        assert (np.diff([part.mean() for part in parts]) > 0).all()
    tokens = sorted(t for d in documents for t in d.tokens)
    assert sorted(t for t in counted(epoch_of(loader)) if t != EOT) == tokens


def test_a_curriculum_of_difficulty_goes_from_few_tokens_a_byte_to_many(tmp_path: Path) -> None:
    documents = [
        Document(d.id, d.tokens, bytes_per_token=1 + k % 20)
        for k, d in enumerate(made_up(800, seed=4))
    ]
    hard = {token: 1 / d.bytes_per_token for d in documents for token in d.tokens}
    prepared = prepared_from(tmp_path, documents)
    loader = Loader(prepared, 8, 1, 1, DataConfig(curriculum="difficulty"))
    for epoch in (0, 1):
        found = [[hard[t] for t in targets if t > 0] for _, targets in epoch_of(loader, epoch)]
        parts = np.array_split(np.array([np.mean(each) for each in found if each]), LEVELS)
        assert (np.diff([part.mean() for part in parts]) > 0).all()
    tokens = sorted(t for d in documents for t in d.tokens)
    assert sorted(t for t in counted(epoch_of(loader)) if t != EOT) == tokens


def test_weights_below_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="weight of web is below 0"):
        DataConfig(weights={"web": -1})
    with pytest.raises(ValueError, match="all weights are 0"):
        DataConfig(weights={"web": 0})


def test_impossible_sizes_and_empty_data_are_refused(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [Document("a" * 32, [])])
    with pytest.raises(DataError, match="no token to predict"):
        Loader(prepared, 4, 1, seed=0)
    with pytest.raises(ConfigError, match="batch_size 0"):
        Loader(prepared, 4, 0, seed=0)
