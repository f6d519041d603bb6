"""A text file as a dataset, for trying things out: the first part to train on, the rest to
validate with, as nanoGPT's `prepare.py` cuts it."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from llm import files
from llm.config_tokenizer import TokenizerConfig
from llm.errors import DataError
from llm.tokenizer import Tokenizer, train_tokenizer

CHARACTERS = TokenizerConfig(kind="characters", n_spare_tokens=0)


@dataclass(frozen=True)
class TextDataset:
    """Where the files lie that a `TrainSpec` asks for."""

    dataset_url: str
    base_url: str
    tokenizer_url: str


def write_text_dataset(
    text_url: str,
    folder: Path,
    tokenizer: TokenizerConfig = CHARACTERS,
    validation: float = 0.1,
) -> TextDataset:
    """Writes the dataset of one text (UTF-8, plain or .gz) into a folder: two documents.

    The same text and settings give the same bytes. Raises DataError when it cannot be read or is
    too short to be cut.
    """
    text = _read(text_url)
    cut = int(len(text) * (1 - validation))
    parts = {"train": text[:cut], "validation": text[cut:]}
    if not all(parts.values()):
        raise DataError(f"{text_url} has {len(text)} characters: too few to cut a tenth off")
    body = train_tokenizer([parts["train"]], tokenizer)
    tokens = Tokenizer.from_bytes(body).encode_batch(list(parts.values()))
    ids = [xxhash.xxh3_128_hexdigest(f"{split} {text}".encode()) for split, text in parts.items()]
    shared = {
        "id": pa.array(ids),
        "length": pa.array([len(one) for one in tokens], pa.int64()),
        "n_bytes": pa.array([len(one.encode()) for one in parts.values()], pa.int64()),
    }
    shard = shared | {
        "digest": pa.array(ids),
        "tokens": pa.array([one.tolist() for one in tokens], pa.large_list(pa.uint32())),
    }
    dataset = shared | {
        "object": pa.array(["tokens.parquet"] * 2),
        "row": pa.array([0, 1], pa.int64()),
        "split": pa.array(list(parts)),
        "source": pa.array([Path(text_url).name] * 2),
    }
    with files.explained(str(folder), "writing"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_bytes(body)
        pq.write_table(pa.table(shard), folder / "tokens.parquet")
        pq.write_table(pa.table(dataset), folder / "dataset.parquet")
    base = files.absolute_url(str(folder))
    return TextDataset(f"{base}/dataset.parquet", base, f"{base}/tokenizer.json")


def _read(url: str) -> str:
    if not url:
        raise DataError("the name of the text is empty: give that of a file")
    try:
        body = files.read_bytes(url)
        return (gzip.decompress(body) if url.endswith(".gz") else body).decode()
    except FileNotFoundError:
        raise DataError(f"there is no text at {url}") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{url}: expected text in UTF-8, plain or gzipped: {error}") from None
