from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.data import prepare, validation_windows
from llm.dataset_file import count_tokens
from llm.errors import DataError, StorageError
from tests.llm.small_datasets import EOT, Document, made_up, prepared_from, write_dataset


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


def test_tokens_are_counted_without_a_copy(tmp_path: Path) -> None:
    documents = [Document(d.id, [t % 7 + 1 for t in d.tokens]) for d in made_up(3000, longest=5)]
    url = write_dataset(tmp_path, documents, n_shards=3)
    counts = count_tokens(url, "train", str(tmp_path), eot_id=EOT, vocab_size=9)
    stream_S = prepared_from(tmp_path, documents).tokens_S
    assert counts.tolist() == np.bincount(stream_S, minlength=9).tolist()
