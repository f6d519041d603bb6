"""HTML to token shards: the pipeline's own stages over a store, against the usual tools in a row.

`ratio` is CPU seconds per MB of extracted text of the peers over those of Loam. Loam's include the
store: reading pages from WARC objects, writing Parquet, hashing, accounting. A small run before it
(`small_run_s`) loads libraries and compiled kernels, learns the tokenizer and draws the held-out
set, as happens once in a pipeline's life. Bringing the pages in is left out on both sides.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from flows.config import PipelineConfig, parse_config
from flows.corpus import grow_corpus
from flows.running import RunOptions, open_run
from tasks.publish import publish
from tasks.store.records import Manifest
from tasks.store.run import Run
from tasks.store.store import Store
from tasks.tokenise import dataset, tokenise
from tests.bench import inputs
from tests.bench.harness import Result, peer
from tests.leaks import QUESTIONS, read_benchmark
from tests.shared_data import ROOT

LANGUAGE_MODEL = ROOT / "models/lid.176.ftz"
N_SMALL = 40


def run(quick: bool) -> Result:
    """A small growth first, which loads, compiles and pins; then a large one, which is measured."""
    pages = inputs.html_pages(8 if quick else 36)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_warc(root / "pages.warc.gz", pages[:: len(pages) // N_SMALL])
        config = _config(root)
        _, start_s, _ = _grow(config, refresh=False)
        _write_warc(root / "pages.warc.gz", pages)
        visits, whole_s, corpus = _grow(config, refresh=True)
        tokenizer = visits["tokenise"].object("tokenizer")
        items = [text for name in QUESTIONS for _, text in _benchmark(name).passages]
        (root / "items.json").write_text(json.dumps(items))
        (root / "tokenizer.json").write_bytes(Store(config.store.root).read_bytes(tokenizer))
        sample = pages[:: max(1, len(pages) // (30 if quick else 120))]
        theirs = peer(
            "chain",
            pa.table({"html": [body for _, body in sample]}),
            *(str(LANGUAGE_MODEL), str(root / "tokenizer.json"), str(root / "items.json")),
        )
    text_mb = visits["extract"].summary["stats"]["text_bytes"] / 1e6
    ours = whole_s / text_mb
    peers = sum(theirs["seconds"].values()) / theirs["text_mb"]
    return Result(
        ratio=peers / ours,
        target=30,
        ok=visits["tokenise"].rows_out > 0,
        figures={
            "ours_s_per_mb": ours,
            "peer_s_per_mb": peers,
            "text_mb": text_mb,
            "small_run_s": start_s,
        },
        quality={
            "documents": visits["extract"].rows_out,
            "tokenised": visits["tokenise"].rows_out,
            "ours_s": corpus,
            "peer_s_per_mb": {
                k: round(v / theirs["text_mb"], 3) for k, v in theirs["seconds"].items()
            },
        },
    )


def _benchmark(name: str) -> Any:
    return read_benchmark(ROOT / "eval" / f"{name}.jsonl.gz")


def _config(root: Path) -> PipelineConfig:
    data = {
        "name": "chain",
        "store": {"root": str(root / "store"), "cache_dir": str(root / "cache"), "workers": 1},
        "sources": [
            {
                "kind": "import",
                "name": "pages",
                "paths": [str(root / "pages.warc.gz")],
                "max_loss": 1,
            }
        ],
        "annotate": {"language_model": str(LANGUAGE_MODEL)},
        "select": {"c4": False, "fineweb": False, "gopher_repetition": False},
        "decontaminate": {
            "benchmarks": [
                {"name": name, "path": str(ROOT / "eval" / f"{name}.jsonl.gz"), "fields": fields}
                for name, fields in QUESTIONS.items()
            ]
        },
        "tokenizer": {"vocab_size": 8192},
    }
    return parse_config(data, "chain")


def _grow(
    config: PipelineConfig, refresh: bool
) -> tuple[dict[str, Manifest], float, dict[str, float]]:
    """The manifests by stage, CPU seconds in all but the import, and by stage."""
    seconds: dict[str, float] = {}

    def timed(name: str, function: Any) -> Any:
        def call(run: Run, *args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = function(run, *args, **kwargs)
            seconds[name] = round(seconds.get(name, 0) + time.process_time() - began, 3)
            return result

        return call

    with (
        mock.patch("tasks.as_task.in_prefect", timed),
        open_run(config, RunOptions(refresh=refresh), say=lambda _: None) as run,
    ):
        corpus = grow_corpus(run, config)
        publish(
            run, dataset(run, tokenise(run, corpus, config.tokenizer), config.tokenizer), "dataset"
        )
    found = {v.name: v.result for v in run.visits if isinstance(v.result, Manifest)}
    return found, sum(s for name, s in seconds.items() if name != "ingest"), seconds


def _write_warc(path: Path, pages: list[tuple[str, bytes]]) -> None:
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for name, body in pages:
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], "HTTP/1.1")
            record = writer.create_warc_record(
                f"http://docs.test/{name.lstrip('./')}",
                "response",
                payload=io.BytesIO(body),
                http_headers=headers,
                warc_headers_dict={"WARC-Date": "2025-01-01T00:00:00Z"},
            )
            writer.write_record(record)
