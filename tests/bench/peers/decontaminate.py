"""datatrove's n-gram decontamination: its filter over texts, with the n-grams of given items.

decontaminate.py INPUT.parquet: columns `part` ("item" or "document") and `text`. Its indexer needs
lighteval, which fetches benchmarks itself; its index is written here instead, as the indexer does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.text import ngrams, simplify_text

table = pq.read_table(sys.argv[1])
texts: dict[str, list[str]] = {"item": [], "document": []}
for part, text in zip(table["part"].to_pylist(), table["text"].to_pylist(), strict=True):
    texts[part].append(text)

config = NGramsDecontConfig(n_grams=13)
with tempfile.TemporaryDirectory() as folder:
    filtering = NGramsDecontFilter(folder, config)
    hashes: set[int] = set()
    for text in texts["item"]:
        tokens = filtering.tokenizer.word_tokenize(simplify_text(text, config.norm_config))
        hashes |= {filtering.hash_func(" ".join(gram)) for gram in ngrams(tokens, config.n_grams)}
    index = np.array(sorted(hashes), dtype=config.hash_config.np_descr)
    index.tofile(Path(folder) / "items.index.hashes")
    filtering.load_index_hashes()

documents = [Document(text=text, id=str(place)) for place, text in enumerate(texts["document"])]
start = time.process_time()
kept = [filtering.filter(document) is True for document in documents]
seconds = time.process_time() - start
n_bytes = sum(len(text.encode()) for text in texts["document"])
print(json.dumps({"mb_s": n_bytes / 1e6 / seconds, "kept": kept, "n_ngrams": len(hashes)}))
