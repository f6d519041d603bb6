from __future__ import annotations

import re
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import files, progress
from llm.bucket_files import BucketFiles, open_buckets
from llm.buckets import lay_out
from llm.config_data import DataConfig
from llm.data import Prepared, prepare
from llm.errors import ConfigError, DataError
from llm.loader import Batch, Loader
from llm.train import train
from tests.llm.small_datasets import Document, corpora, made_up, write_dataset
from tests.llm.small_runs import small_spec, told, torch_settings_kept

MODES = [
    DataConfig(),
    DataConfig(packing="best_fit", document_mask=True),
    DataConfig(weights={"web": 3, "books": 1, "news": 0}, curriculum="length"),
    DataConfig(curriculum="difficulty", packing="best_fit"),
]
BUCKET_TOKENS = 300


def three_sources(count: int = 300) -> list[Document]:
    names = ("web", "books", "news")
    return [
        Document(d.id, d.tokens, source=names[k % 3], bytes_per_token=1 + k % 7)
        for k, d in enumerate(made_up(count, seed=2))
    ]


def streamed(
    folder: Path, documents: list[Document], url: str, data: DataConfig, **options: Any
) -> Prepared:
    dataset = write_dataset(folder, documents, n_shards=options.pop("n_shards", 5))
    data = DataConfig(**data.model_dump() | {"buckets_url": url} | options.pop("more", {}))
    options = {"bucket_tokens": BUCKET_TOKENS, "run_tokens": 500} | options
    return open_buckets(dataset, "train", folder / "cache", str(folder), data=data, **options)


def local(folder: Path, documents: list[Document]) -> Prepared:
    return prepare(write_dataset(folder, documents), "train", folder / "cache", str(folder))


def loader_of(prepared: Prepared, data: DataConfig, seed: int = 1) -> Loader:
    return Loader(prepared, 16, 6, seed, data, bucket_tokens=BUCKET_TOKENS)


def same(one: Batch, other: Batch) -> bool:
    if one.documents_BT is not None:
        assert other.documents_BT is not None
        assert one.documents_BT.equal(other.documents_BT)
    return one.inputs_BT.equal(other.inputs_BT) and one.targets_BT.equal(other.targets_BT)


@pytest.mark.parametrize("data", MODES)
def test_streamed_batches_are_those_of_the_local_copy(
    tmp_path: Path, store_root: str, data: DataConfig
) -> None:
    documents = three_sources()
    there, here = streamed(tmp_path / "a", documents, store_root, data), local(tmp_path, documents)
    assert there.digest == here.digest
    assert len(files.list_urls(store_root)) > 10
    assert not [url for url in files.list_urls(store_root) if "/runs/" in url]
    far, near = loader_of(there, data), loader_of(here, data)
    assert far.n_windows() == near.n_windows()
    steps = 2 * near.n_windows() // 6
    for step in [*range(steps), 3, steps + 40, 0]:
        assert same(far.batch(step), near.batch(step))
        assert same(far.batch(step, 1, 2), near.batch(step, 1, 2))


@settings(max_examples=25, deadline=None)
@given(corpora(), st.integers(1, 4), st.integers(1, 40), st.randoms(use_true_random=False))
def test_buckets_depend_on_ids_and_tokens_alone(
    documents: list[Document], n_shards: int, run_tokens: int, random: Any
) -> None:
    moved = sorted(documents, key=lambda d: random.random())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here = local(folder / "a", documents)
        url, options = str(folder / "buckets"), {"bucket_tokens": 16, "run_tokens": run_tokens}
        there = streamed(folder / "b", moved, url, DataConfig(), n_shards=n_shards, **options)
        assert there.digest == here.digest
        (part,) = lay_out(here, DataConfig(), 16)
        found = []
        for bucket in range(len(part)):
            if len(part.bucket(bucket)):
                found.append(there.kept.bucket(0, bucket, part.bucket(bucket))[0])
        assert np.concatenate(found).tolist() == here.tokens_S.tolist()
        widths = {tokens.dtype.itemsize: int(tokens.max()) for tokens in found}
        assert all((largest > 65535) == (width == 4) for width, largest in widths.items())


def test_a_killed_writer_goes_on_and_ends_with_the_same_files(tmp_path: Path, monkeypatch) -> None:
    documents, put = three_sources(), files.put
    streamed(tmp_path / "a", documents, str(tmp_path / "whole"), DataConfig())
    written: list[str] = []

    def killed_after(count: int):
        def put_or_die(url: str, body: bytes) -> None:
            if len(written) == count:
                raise KeyboardInterrupt
            written.append(url)
            put(url, body)

        return put_or_die

    for count in (3, 7, 12, 20):
        monkeypatch.setattr(files, "put", killed_after(count))
        with pytest.raises(KeyboardInterrupt):
            streamed(tmp_path / "a", documents, str(tmp_path / "killed"), DataConfig())
    monkeypatch.setattr(files, "put", put)
    streamed(tmp_path / "a", documents, str(tmp_path / "killed"), DataConfig())
    runs = [url for url in written if "/runs/" in url]
    assert len(runs) == len(set(runs)) > 4
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("whole", "killed")
    ]
    assert contents[0] == contents[1]


def test_writing_buckets_tells_how_far_it_is_and_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0)
    documents = three_sources()
    n = f"{sum(len(d.tokens) for d in documents):,}"
    streamed(tmp_path, documents, str(tmp_path / "buckets"), MODES[2])
    lines = capsys.readouterr().err.splitlines()
    for label in ("tokens by bucket", "bucket files"):
        told = [line for line in lines if line.startswith(f"{label}: ")]
        assert len(told) > 3
        assert re.fullmatch(rf"{label}: {n} of {n} tokens, [0-9,.]+/s", told[-1])


def test_what_is_in_memory_while_buckets_are_written_is_bounded(
    tmp_path: Path, monkeypatch
) -> None:
    sizes, put = [], files.put
    monkeypatch.setattr(files, "put", lambda url, body: (sizes.append(len(body)), put(url, body)))
    documents = three_sources()
    streamed(tmp_path, documents, str(tmp_path / "b"), DataConfig(), n_shards=50, run_tokens=500)
    largest_shard = max(sum(len(d.tokens) for d in documents[k::50]) for k in range(50))
    assert sum(len(d.tokens) for d in documents) > 4000
    assert max(sizes) <= 4 * (500 + largest_shard)


def test_writers_of_the_same_buckets_do_not_disturb_each_other(tmp_path: Path) -> None:
    documents, found = three_sources(), []
    write_dataset(tmp_path, documents, n_shards=5)

    def write() -> None:
        options = {"eot_id": 0, "bucket_tokens": BUCKET_TOKENS, "run_tokens": 500}
        data = DataConfig(buckets_url=str(tmp_path / "buckets"))
        dataset = str(tmp_path / "dataset-5.parquet")
        place = (tmp_path / "cache", str(tmp_path))
        found.append(open_buckets(dataset, "train", *place, data=data, **options).digest)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [local(tmp_path / "a", documents).digest] * 4


def test_the_local_cache_is_bounded_and_serves_what_it_holds(
    tmp_path: Path, s3_root: str, monkeypatch
) -> None:
    documents, data = three_sources(), DataConfig()
    limit = 3000
    there = streamed(tmp_path, documents, s3_root, data, more={"cache_gb": limit / 1e9})
    assert isinstance(there.kept, BucketFiles)
    assert there.kept.cache is not None
    part = lay_out(there, data, BUCKET_TOKENS)[0]
    used = [bucket for bucket in range(len(part)) if len(part.bucket(bucket))]
    for bucket in [*used, *used]:
        there.kept.bucket(0, bucket, part.bucket(bucket))
        held = {int(path.stem[2:]): path for path in there.kept.cache.glob("*.bin")}
        assert sum(path.stat().st_size for path in held.values()) <= limit
        assert bucket in held
    assert 1 < len(held) < len(used)

    oldest, newest = (min(held), max(held))
    held[oldest].write_bytes(b"rot")
    monkeypatch.setattr(files, "read_bytes", lambda url: pytest.fail(f"{url} was fetched"))
    there.kept.bucket(0, newest, part.bucket(newest))
    with pytest.raises(pytest.fail.Exception, match="was fetched"):
        there.kept.bucket(0, oldest, part.bucket(oldest))


def test_the_next_bucket_is_fetched_before_it_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    there = streamed(tmp_path, three_sources(), str(tmp_path / "b"), DataConfig())
    loader = Loader(there, 16, 1, 1, bucket_tokens=BUCKET_TOKENS)
    fetched, arrived, read = [], threading.Semaphore(0), files.read_bytes

    def counted(url: str) -> bytes:
        body = read(url)
        fetched.append((url, threading.current_thread()))
        arrived.release()
        return body

    monkeypatch.setattr(files, "read_bytes", counted)
    loader.batch(0)
    assert all(arrived.acquire(timeout=30) for _ in range(2))
    assert len({url for url, _ in fetched}) == 2
    assert [thread is threading.main_thread() for _, thread in fetched] == [True, False]
    for step in range(loader.n_windows()):
        loader.batch(step)
    assert sum(thread is threading.main_thread() for _, thread in fetched) == 1


def test_what_ails_a_bucket_is_said(tmp_path: Path) -> None:
    documents = three_sources()
    there = streamed(tmp_path, documents, str(tmp_path / "b"), DataConfig())
    with pytest.raises(ConfigError, match=r"leave train\.data\.buckets_url empty"):
        print(there.tokens_S)
    for path in (tmp_path / "b").rglob("0-*.bin"):
        path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(DataError, match=r"not what was written; delete .*index\.json"):
        loader_of(there, DataConfig()).batch(0)
    for path in (tmp_path / "b").rglob("0-*.bin"):
        path.unlink()
    with pytest.raises(DataError, match=r"is gone; delete .*index\.json"):
        loader_of(there, DataConfig()).batch(0)
    for path in (tmp_path / "b").rglob("index.json"):
        path.unlink()
    again = streamed(tmp_path, documents, str(tmp_path / "b"), DataConfig())
    here = local(tmp_path / "a", documents)
    assert same(loader_of(again, DataConfig()).batch(0), loader_of(here, DataConfig()).batch(0))
    with pytest.raises(ConfigError, match="says nothing of the source 'books'"):
        streamed(tmp_path, documents, str(tmp_path / "b"), DataConfig(weights={"web": 1}))


def test_a_streamed_run_learns_what_a_local_one_does(tmp_path: Path, s3_root: str) -> None:
    specs = [
        small_spec(tmp_path / name, data=DataConfig(buckets_url=url, packing="best_fit"))
        for name, url in (("local", ""), ("streamed", s3_root))
    ]
    assert specs[0].decisive() == specs[1].decisive()
    with torch_settings_kept():
        for spec in specs:
            train(spec)
    assert told(specs[0]) == told(specs[1])
    assert any(url.endswith(".bin") for url in files.list_urls(s3_root))
