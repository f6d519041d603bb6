"""The usual tools in a row, from HTML to token ids, over a table with a column `html` (bytes).

chain.py INPUT.parquet LID TOKENIZER ITEMS: paths of fastText's lid.176, of a tokenizer.json and of
a JSON list of benchmark texts. Each tool is set up as its documentation has it; what one drops is
passed on all the same, so that every tool sees every text. Seconds are by tool.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fasttext
import ftfy
import numpy as np
import pyarrow.parquet as pq
import trafilatura
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import ngrams, simplify_text
from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
from presidio_analyzer.nlp_engine import NoOpNlpEngine
from tokenizers import Tokenizer

ENTITIES = [
    *("CREDIT_CARD", "CRYPTO", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS"),
    *("MAC_ADDRESS", "PHONE_NUMBER", "US_SSN"),
]


def analyzer() -> AnalyzerEngine:
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    registry = RecognizerRegistry(supported_languages=["en"])
    registry.load_predefined_recognizers(languages=["en"])
    registry.remove_recognizer("SpacyRecognizer")
    engine = NoOpNlpEngine([{"lang_code": "en", "model_name": "none"}])
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])


def decontamination(items: list[str], folder: str) -> NGramsDecontFilter:
    config = NGramsDecontConfig(n_grams=13)
    step = NGramsDecontFilter(folder, config)
    hashes = {
        step.hash_func(" ".join(gram))
        for item in items
        for gram in ngrams(
            step.tokenizer.word_tokenize(simplify_text(item, config.norm_config)), config.n_grams
        )
    }
    index = np.array(sorted(hashes), dtype=config.hash_config.np_descr)
    index.tofile(Path(folder) / "items.index.hashes")
    step.load_index_hashes()
    return step


def main() -> None:
    pages = pq.read_table(sys.argv[1])["html"].to_pylist()
    lid = fasttext.load_model(sys.argv[2])
    tokenizer = Tokenizer.from_file(sys.argv[3])
    items = json.loads(Path(sys.argv[4]).read_text())
    presidio = analyzer()
    filters = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]
    seconds: dict[str, float] = {}

    def each(name: str, act: Callable[[Any], Any], inputs: list[Any]) -> list[Any]:
        act(inputs[0])  # loads what is loaded late
        start = time.process_time()
        results = [act(one) for one in inputs]
        seconds[name] = time.process_time() - start
        return results

    def extract(body: bytes) -> str:
        return trafilatura.extract(body, include_comments=False, include_tables=True) or ""

    texts = [text for text in each("extract", extract, pages) if text.strip()]
    texts = each("repair", ftfy.fix_text, texts)
    each("language", lambda text: lid.predict(text.replace("\n", " ")), texts)
    each("signals", lambda text: [f.filter(Document(text=text, id="")) for f in filters], texts)
    with tempfile.TemporaryDirectory() as folder:
        minhash = MinhashDedupSignature(folder, MinhashConfig(n_grams=5))

        def signature(text: str) -> list[Any] | None:
            shingles = minhash.get_shingles(text)
            return minhash.get_signature(shingles) if shingles.size else None

        each("minhash", signature, texts)
    each("scrub", lambda text: presidio.analyze(text, "en", ENTITIES), texts)
    with tempfile.TemporaryDirectory() as folder:
        step = decontamination(items, folder)
        each("decontaminate", lambda text: step.filter(Document(text=text, id="")), texts)
    start = time.process_time()
    tokenizer.encode_batch(texts)
    seconds["encode"] = time.process_time() - start
    n_bytes = sum(len(text.encode()) for text in texts)
    print(json.dumps({"seconds": seconds, "text_mb": n_bytes / 1e6}))


if __name__ == "__main__":
    main()
