"""MinHash signatures and banding, 14 bands of 8 rows over word 5-grams, against datasketch.

datasketch makes signatures in bulk and finds pairs with its LSH at the same banding; its shingles
are the 5-grams of lower-cased runs of letters, as Loam's are. `vs_datatrove` is the ratio to
datatrove's signatures and buckets. The quality is that of the whole stage, candidates verified: of
planted pairs, whose true Jaccard similarities Python sets tell, the share found by similarity, and
of the duplicates dropped the share that are at 0.7 or above.
"""

from __future__ import annotations

import random
import re
import tempfile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from tasks.dedup import find_duplicates
from tasks.duplicates import Workers
from tasks.kernels.banding import buckets, star_pairs
from tasks.kernels.minhash import band_keys, permutations, sign
from tasks.kernels.words import words
from tasks.signatures import DedupConfig, signature_shard
from tasks.store.corpus import Shard
from tasks.store.executors import InlineExecutor
from tasks.store.rows import document_id, text_digest
from tasks.store.schema import BANDS, DOCUMENTS, SIGNATURES
from tasks.store.store import Store
from tests.bench import inputs
from tests.bench.harness import Result, cpu_seconds, peer
from tests.tasks.kernels.test_minhash import shingles, signature

CONFIG = DedupConfig()
TARGET = 40.0
RECALL, PRECISION = 0.98, 0.99
BUCKETS = (0.8, 0.85, 0.9, 0.95)


def run(quick: bool) -> Result:
    originals = inputs.english(4 if quick else 11)
    texts = originals + edited(originals)
    column = pa.array(texts, pa.large_string())
    permuted = permutations(CONFIG.num_perm, CONFIG.seed)
    near_pairs(column.slice(0, 9), permuted)  # compiles
    seconds, matrix = cpu_seconds(lambda: near_pairs(column, permuted), repeats=8)
    speed = inputs.size_mb(texts) / seconds
    part = texts[:: max(1, len(texts) // 400)]
    sketch_seconds, _ = cpu_seconds(lambda: datasketch_pairs(part), repeats=2)
    sketch_speed = inputs.size_mb(part) / sketch_seconds
    trove_speed = peer("minhash", pa.table({"text": part}))["mb_s"]
    quality = quality_of(originals, texts[len(originals) :])
    quality["scalar_equal"] = all(
        matrix[row].tolist() == signature(shingles(texts[row], 5, False), permuted)
        for row in range(0, len(texts), len(texts) // 12)
    )
    return Result(
        ratio=speed / sketch_speed,
        target=TARGET,
        ok=bool(
            quality["recall"] >= RECALL
            and quality["precision"] >= PRECISION
            and quality["scalar_equal"]
        ),
        figures={
            "ours_mb_s": speed,
            "peer_mb_s": sketch_speed,
            "datatrove_mb_s": trove_speed,
            "vs_datatrove": speed / trove_speed,
        },
        quality=quality,
    )


def near_pairs(texts: pa.Array, permuted: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Signatures, then the pairs that share a band; the signatures are returned."""
    matrix = sign(texts, CONFIG.ngram, CONFIG.by_letter, permuted)
    keys = band_keys(matrix, CONFIG.bands)
    star_pairs(*buckets(keys, np.repeat(np.arange(len(texts)), CONFIG.bands)))
    return matrix


def datasketch_pairs(texts: list[str]) -> list[tuple[int, int]]:
    """The same by datasketch, as its documentation does it."""
    grams = []
    for text in texts:
        its = re.findall(r"\w+", text.lower())
        grams.append([" ".join(its[k : k + 5]).encode() for k in range(max(1, len(its) - 4))])
    sketches = MinHash.bulk(grams, num_perm=CONFIG.num_perm)
    lsh = MinHashLSH(num_perm=CONFIG.num_perm, params=(CONFIG.bands, CONFIG.rows))
    with lsh.insertion_session() as session:
        for number, sketch in enumerate(sketches):
            session.insert(number, sketch)
    return [
        (number, int(other))
        for number, sketch in enumerate(sketches)
        for other in lsh.query(sketch)
        if other != number
    ]


def edited(texts: list[str]) -> list[str]:
    """A copy of each text in which some words are others, evenly from hardly any to one in 30."""
    rng = random.Random(11)
    copies = []
    for text in texts:
        units = text.split()
        for place in rng.sample(range(len(units)), round(len(units) * rng.random() / 30)):
            units[place] = f"word{rng.randrange(10**6)}"
        copies.append(" ".join(units))
    return copies


def jaccard(one: str, two: str) -> float:
    """The true similarity, by Python sets of 5-tuples."""
    a, b = (
        {tuple(its[k : k + 5]) for k in range(max(1, len(its) - 4))}
        for its in (words(one), words(two))
    )
    return len(a & b) / len(a | b)


def quality_of(originals: list[str], copies: list[str]) -> dict[str, float | bool]:
    """Recall by similarity of the planted pairs, and precision of what is dropped."""
    ids = [document_id("planted", str(number)) for number in range(2 * len(originals))]
    text_of = dict(zip(ids, originals + copies, strict=True))
    drops, root_of = stage_over(text_of)
    pairs = list(zip(ids[: len(originals)], ids[len(originals) :], strict=True))
    true = np.array([jaccard(text_of[a], text_of[b]) for a, b in pairs])
    found = np.array([a in root_of and root_of[a] == root_of.get(b) for a, b in pairs])
    quality: dict[str, float | bool] = {"pairs": int((true >= BUCKETS[0]).sum())}
    for low in BUCKETS:
        inside = (true >= low) & (true < low + 0.05 + (low == BUCKETS[-1]))
        quality[f"recall_{low}"] = float(found[inside].mean())
    quality["recall"] = float(found[true >= BUCKETS[0]].mean())
    alike = [jaccard(text_of[id], text_of[kept]) >= 0.7 for id, kept in drops]
    return quality | {"dropped": len(alike), "precision": float(np.mean(alike))}


def stage_over(text_of: dict[str, str]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(dropped, survivor) of every drop, and the root of every clustered document, by id."""
    rows = [
        {"id": id, "digest": text_digest(text), "text": text, "source": "planted"}
        for id, text in sorted(text_of.items())
    ]
    table = DOCUMENTS.table(rows)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.at(folder)
        signatures, bands = signature_shard(table, CONFIG)
        extras = {
            schema.kind: ref
            for schema, rows in ((SIGNATURES, signatures), (BANDS, bands))
            if (ref := store.put_table(rows, schema)) is not None
        }
        shard = Shard(store.put_table(table, DOCUMENTS), extras=extras)
        found = find_duplicates(Workers(store, [shard], InlineExecutor(), store), CONFIG)
    drops, clusters = found.drops, found.clusters
    return (
        list(zip(drops["id"].to_pylist(), drops["detail"].to_pylist(), strict=True)),
        dict(zip(clusters["id"].to_pylist(), clusters["root"].to_pylist(), strict=True)),
    )
