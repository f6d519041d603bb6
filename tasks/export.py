"""Export: a corpus as plain Parquet or JSONL that any program opens."""

from __future__ import annotations

import io
import json
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from llm import files
from llm.errors import DataError
from llm.progress import tally
from tasks.card import read_card
from tasks.store.corpus import live_rows, open_corpus
from tasks.store.schema import DOCUMENTS, LABELS
from tasks.store.store import Store
from tasks.takedown import read_list

Format = Literal["parquet", "jsonl"]

LISTING = ".loam-export.json"


def export_corpus(store: Store, name: str, to: str, format: Format) -> dict[str, int]:
    """Writes the live documents of `corpus/<name>` below `to`, one file per shard.

    What has been taken down since the corpus was published is left out as well.
    Each file is whole or absent; `LISTING`, written last, lists them and says which corpus they
    are. Its card lies beside them, with a dot before its names: pandas, pyarrow and datasets, given
    the folder, pass over those.
    Raises DataError when there is no such corpus, or `to` is not empty.
    """
    ref = store.find_ref("corpus", name)
    if ref is None:
        raise DataError(f"there is no corpus/{name}; `loam status` lists the refs")
    to = files.absolute_url(to)
    if files.list_urls(to):
        raise DataError(f"{to} is not empty; give another folder, or empty it")
    manifest = store.manifest(ref.manifest)
    corpus, taken = open_corpus(store, manifest), read_list(store)
    written: list[str] = []
    rows = 0
    with tally("export", "shards", len(corpus.shards)) as progress:
        for shard in corpus.shards:
            table = taken.hide(live_rows(store, shard))
            labels = live_rows(store, shard, shard.extras.get(LABELS.kind), LABELS)
            table = table.join(labels, "id").sort_by("id").select([*DOCUMENTS.arrow.names, "split"])
            if table.num_rows:
                name_ = f"part-{len(written):05d}.{format}"
                files.put(f"{to}/{name_}", _encode(table, format))
                written.append(name_)
                rows += table.num_rows
            progress.advance()
    line = [store.manifest(pin) for pin in ref.line]
    for file, body in (read_card(store, line) or {}).items():
        files.put(f"{to}/.{file}", body)
    about = {"corpus": manifest.fingerprint, "data_digest": manifest.data_digest, "files": written}
    files.put(f"{to}/{LISTING}", json.dumps({**about, "rows": rows}, indent=2).encode())
    return {"files": len(written), "rows": rows}


def _encode(table: pa.Table, format: Format) -> bytes:
    if format == "parquet":
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()
    lines = (json.dumps(row, ensure_ascii=False) for row in table.to_pylist())
    return ("\n".join(lines) + "\n").encode()
