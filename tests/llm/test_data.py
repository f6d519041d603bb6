from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import Loader, Prepared, n_buckets, prepare, validation_windows
from llm.data import _mix as mix
from llm.errors import ConfigError, DataError, StorageError

EOT = 0


@dataclass(frozen=True)
class Document:
    id: str
    tokens: list[int]
    split: str = "train"


def write_dataset(
    folder: Path,
    documents: list[Document],
    *,
    n_shards: int = 1,
    tokens_type: pa.DataType | None = None,
) -> str:
    """Deals the documents out to token shards in the order given; returns the dataset's path."""
    tokens_type = tokens_type or pa.large_list(pa.uint32())
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(n_shards):
        shard = documents[k::n_shards]
        table = pa.table(
            {
                "id": pa.array([d.id for d in shard], pa.string()),
                "digest": pa.array(["" for _ in shard], pa.string()),
                "length": pa.array([len(d.tokens) for d in shard], pa.int64()),
                "n_bytes": pa.array([3 * len(d.tokens) for d in shard], pa.int64()),
                "tokens": pa.array([d.tokens for d in shard], tokens_type),
            }
        )
        pq.write_table(table, folder / f"{n_shards}-{k}.parquet", row_group_size=3)
        rows += [
            {
                "object": f"{n_shards}-{k}.parquet",
                "row": row,
                "id": d.id,
                "length": len(d.tokens),
                "n_bytes": 3 * len(d.tokens),
                "split": d.split,
                "source": "test",
            }
            for row, d in enumerate(shard)
        ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"dataset-{n_shards}.parquet")
    return str(folder / f"dataset-{n_shards}.parquet")


def prepared_from(folder: Path, documents: list[Document], **options) -> Prepared:
    url = write_dataset(folder, documents, **options)
    return prepare(url, "train", folder / "cache", str(folder))


def made_up(n: int, *, longest: int = 30, seed: int = 0) -> list[Document]:
    """Documents in which no token comes twice, so that a token tells its document and place."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, longest, n)
    firsts = 1 + np.cumsum(lengths) - lengths
    return [
        Document(generator.bytes(16).hex(), list(range(first, first + length)))
        for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True)
    ]


def epoch_of(loader: Loader, epoch: int = 0) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of every window of an epoch, for a loader with batches of one."""
    first = epoch * loader.n_windows(epoch)
    batches = [loader.batch(first + i) for i in range(loader.n_windows(epoch))]
    return [(inputs[0].tolist(), targets[0].tolist()) for inputs, targets in batches]


def counted(epoch: list[tuple[list[int], list[int]]]) -> list[int]:
    return [token for _, targets in epoch for token in targets if token != -100]


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    ids = draw(st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=12, unique=True))
    top = draw(st.sampled_from([9, 65535, 65536, 2**32 - 1]))
    tokens = st.lists(st.integers(1, top), min_size=1, max_size=20)
    return [Document(f"{i:032x}", draw(tokens)) for i in ids]


@settings(max_examples=40, deadline=None)
@given(corpora(), st.integers(1, 4), st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_training_depends_on_ids_and_tokens_alone(
    documents: list[Document], n_shards: int, random: Random, small_list: bool
) -> None:
    moved = sorted(documents, key=lambda d: random.random())
    tokens_type = pa.list_(pa.uint32()) if small_list else None
    with tempfile.TemporaryDirectory() as folder:
        one = prepared_from(Path(folder) / "a", documents)
        other = prepared_from(Path(folder) / "b", moved, n_shards=n_shards, tokens_type=tokens_type)
        by_id = sorted(documents, key=lambda d: d.id)
        assert one.tokens_S.tolist() == [t for d in by_id for t in [EOT, *d.tokens]]
        assert one.digest == other.digest
        assert one.tokens_S.dtype == other.tokens_S.dtype
        loaders = [Loader(p, 7, 3, seed=5, bucket_tokens=16) for p in (one, other)]
        for step in range(2 * loaders[0].n_windows()):
            for mine, theirs in zip(*(loader.batch(step) for loader in loaders), strict=True):
                assert mine.tolist() == theirs.tolist()


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
        # The eot that opens a bucket's stream is never a target.
        assert targets.count(EOT) == len(documents) - buckets
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
        inputs, targets = Loader(prepared, 16, 5, seed=3, bucket_tokens=200).batch(step)
        expected = windows[5 * step : 5 * step + 5]
        assert list(zip(inputs.tolist(), targets.tolist(), strict=True)) == expected


def test_a_batch_larger_than_an_epoch_goes_round(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [Document("0" * 32, [1, 2, 3, 4])])
    inputs, targets = Loader(prepared, 2, 5, seed=0).batch(0)
    rows = {(tuple(i), tuple(t)) for i, t in zip(inputs.tolist(), targets.tolist(), strict=True)}
    assert rows == {((EOT, 1), (1, 2)), ((2, 3), (3, 4))}
    assert inputs.shape == targets.shape == (5, 2)


def test_epochs_and_seeds_differ_in_order_only(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, made_up(100))
    loaders = [Loader(prepared, 16, 1, seed=seed) for seed in (1, 2)]
    orders = [counted(epoch_of(loader, epoch)) for loader in loaders for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_neighbours_in_a_batch_come_from_far_apart(tmp_path: Path) -> None:
    documents = made_up(400)
    prepared = prepared_from(tmp_path, documents)
    inputs, _ = Loader(prepared, 16, 64, seed=1).batch(0)
    places = inputs.max(dim=1).values.double()
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
        for tensor in loader.batch(step):
            digest.update(tensor.numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "b32c130269408d13"


def test_the_mixing_function_is_splitmix64() -> None:
    # The first outputs for seed 1234567, as published with the generator's reference code.
    seeds = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(seeds).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(
    "n_tokens, buckets", [(1, 1), (1 << 24, 1), ((1 << 24) + 1, 2), (10**9, 64), (10**12, 65536)]
)
def test_buckets_are_a_power_of_two_of_at_most_16_mi_tokens(n_tokens: int, buckets: int) -> None:
    assert n_buckets(n_tokens) == buckets
    assert n_tokens / buckets <= 1 << 24


def test_validation_predicts_each_token_once_in_order_of_id(tmp_path: Path) -> None:
    documents = [Document("b" * 32, [4, 5, 6]), Document("a" * 32, [1, 2])]
    windows = validation_windows(prepared_from(tmp_path, documents), 4)
    inputs, targets = windows.take(np.arange(len(windows)))
    assert inputs.tolist() == [[EOT, 1, 2, EOT], [4, 5, 6, EOT]]
    assert targets.tolist() == [[1, 2, EOT, 4], [5, 6, -100, -100]]


@pytest.mark.parametrize("context", [1, 2, 3, 5, 8])
def test_validation_of_one_document_starts_from_the_end_of_text(tmp_path, context: int) -> None:
    windows = validation_windows(
        prepared_from(tmp_path, [Document("a" * 32, [1, 2, 3, 4, 5])]), context
    )
    inputs, targets = windows.take(np.arange(len(windows)))
    assert targets.ravel().tolist()[:5] == [1, 2, 3, 4, 5]
    assert (targets.ravel()[5:] == -100).all()
    assert inputs.ravel().tolist()[:5] == [EOT, 1, 2, 3, 4]


def test_only_the_asked_split_is_prepared(tmp_path: Path) -> None:
    documents = [Document("a" * 32, [1]), Document("b" * 32, [2, 3], "validation")]
    url = write_dataset(tmp_path, documents)
    prepared = prepare(
        f"file://{url}", "validation", tmp_path / "cache", tmp_path.as_uri(), eot_id=9
    )
    assert prepared.tokens_S.tolist() == [9, 2, 3]
    assert (prepared.n_documents, prepared.n_tokens) == (1, 2)
    assert prepared.n_bytes.tolist() == [6]
    with pytest.raises(DataError, match=r"no document of split 'test'; it has \['train', 'val"):
        prepare(url, "test", tmp_path / "cache", str(tmp_path))


def test_tokens_are_kept_narrow_where_they_fit(tmp_path: Path) -> None:
    for name, token, dtype in (("a", 65535, np.uint16), ("b", 65536, np.uint32)):
        prepared = prepared_from(tmp_path / name, [Document("a" * 32, [1, token])])
        assert prepared.tokens_S.dtype == dtype
        assert prepared.tokens_S.tolist() == [EOT, 1, token]


def test_what_is_prepared_is_not_read_again(tmp_path: Path) -> None:
    documents = made_up(10)
    first = prepared_from(tmp_path, documents)
    (tmp_path / "1-0.parquet").unlink()
    again = prepare(str(tmp_path / "dataset-1.parquet"), "train", tmp_path / "cache", str(tmp_path))
    assert again.digest == first.digest
    assert again.tokens_S.tolist() == first.tokens_S.tolist()


def test_what_a_killed_process_left_is_made_anew(tmp_path: Path) -> None:
    documents = made_up(10)
    expected = prepared_from(tmp_path, documents).tokens_S.tolist()
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    (folder / "index.json").unlink()
    (folder / "tokens.bin").write_bytes(b"half")
    assert prepared_from(tmp_path, documents).tokens_S.tolist() == expected


def test_a_dataset_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    documents = made_up(10)
    url = write_dataset(tmp_path, documents)
    write_dataset(tmp_path / "other", documents[:5])
    write_dataset(tmp_path / "moved", documents[::-1])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1-0.parquet").write_bytes(b"PAR1 but no more")
    for base, message in (
        ("other", "expects a row 9, but it has 5 rows"),
        ("moved", "row 0 is .* but the dataset expects"),
        ("broken", "not a token shard"),
        ("nowhere", "token shard, but it is gone"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(url, "train", tmp_path / "cache", str(tmp_path / base))


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "columns")
    twice = write_dataset(tmp_path / "twice", [Document("a" * 32, [1]), Document("a" * 32, [2])])
    short = write_dataset(tmp_path / "short", [Document("abc", [1])])
    for url, message in (
        (str(tmp_path / "gone"), "no such dataset file"),
        (str(tmp_path / "text"), "not a dataset file"),
        (str(tmp_path / "columns"), "not a dataset file"),
        (twice, f"id {'a' * 32} comes twice"),
        (short, "ids of 32 hex digits"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(url, "train", tmp_path / "cache", str(tmp_path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said_and_leaves_nothing_to_be_read(tmp_path: Path, monkeypatch) -> None:
    opened = Path.open

    def full(path, mode="r", *rest, **more):
        target = Path("/dev/full") if path.name == "tokens.bin" and mode == "wb" else path
        return opened(target, mode, *rest, **more)

    documents = made_up(10)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match="No space left"):
        prepared_from(tmp_path, documents)
    monkeypatch.undo()
    by_id = sorted(documents, key=lambda d: d.id)
    expected = [t for d in by_id for t in [EOT, *d.tokens]]
    assert prepared_from(tmp_path, documents).tokens_S.tolist() == expected


def test_impossible_sizes_and_empty_data_are_refused(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, [Document("a" * 32, [])])
    with pytest.raises(DataError, match="no token to predict"):
        Loader(prepared, 4, 1, seed=0)
    with pytest.raises(ConfigError, match="batch_size 0"):
        Loader(prepared, 4, 0, seed=0)
