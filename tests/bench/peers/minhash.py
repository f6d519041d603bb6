"""datatrove's MinHash over texts: its first two steps, signatures and buckets, as FineWeb ran them.

minhash.py INPUT.parquet: column `text`. 14 buckets of 8 hashes over word 5-grams, its defaults.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time

import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.logging import logger

logger.remove()
texts = pq.read_table(sys.argv[1])["text"].to_pylist()
documents = [Document(text=text, id=str(place)) for place, text in enumerate(texts)]
config = MinhashConfig()
with tempfile.TemporaryDirectory() as folder:
    signatures = MinhashDedupSignature(f"{folder}/signatures", config)
    signatures.get_shingles("Words are first split here.")  # sets up its tokenizer
    buckets = MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)
    start = time.process_time()
    signatures.run(documents)
    for bucket in range(config.num_buckets):
        buckets.run(rank=bucket, world_size=config.num_buckets)
    seconds = time.process_time() - start
n_bytes = sum(len(text.encode()) for text in texts)
print(json.dumps({"mb_s": n_bytes / 1e6 / seconds}))
