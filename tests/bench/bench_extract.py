"""Main text of HTML pages: Loam's extract_page against trafilatura.extract on the same bytes.

The pages are documentation in many languages: all of debian-faq and the rest (quick: an eighth).
Loam's time holds everything up to text in normal form; trafilatura has its defaults and gets bytes,
whose encoding it detects. `recall` and `precision` count words against trafilatura's, page by page,
with Chinese and Japanese characters as words; the least of any package is told too. The plain-text
books of debian-faq are the truth behind each F1 (of words, in Chinese and Japanese of characters).
`shard_mb_s` is the speed of `extract_shard`, payloads in memory, tables and digests included.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter, defaultdict

import pyarrow as pa
import trafilatura

from tasks.extract import extract_shard
from tasks.page_text import ExtractConfig, Extracted, extract_page
from tasks.store.rows import document_id
from tasks.store.schema import PAGES
from tests.bench import inputs
from tests.bench.harness import Result, cpu_seconds

CONFIG = ExtractConfig()
_KANA_OR_HAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_KANA_OR_HAN}]|[^\\W{_KANA_OR_HAN}]+")
FAQ = "/debian/FAQ/"
BOOKS = ("", "-de", "-fr", "-ja", "-ru", "-zh-cn")


def run(quick: bool) -> Result:
    every = 8 if quick else 1
    pages = [
        (path, body)
        for place, (path, body) in enumerate(inputs.html_pages())
        if place % every == 0 or FAQ in path
    ]
    paths, bodies = [path for path, _ in pages], [body for _, body in pages]
    by_loam(bodies[0]), by_trafilatura(bodies[0])
    peer_s, theirs = cpu_seconds(lambda: [by_trafilatura(body) for body in bodies], 1)
    ours_s, ours = cpu_seconds(lambda: [by_loam(body) for body in bodies], 5)
    table = pages_table(paths)
    shard_s, _ = cpu_seconds(lambda: extract_shard(table, bodies, CONFIG), 3)
    size = sum(map(len, bodies)) / 1e6
    quality = against_trafilatura(paths, ours, theirs) | against_books(paths, ours, theirs)
    ok = quality["recall"] >= 0.93 and quality["precision"] >= 0.85
    ok &= all(quality[f"f1{book}"] >= quality[f"peer_f1{book}"] for book in BOOKS)
    figures = {"ours_mb_s": size / ours_s, "peer_mb_s": size / peer_s, "shard_mb_s": size / shard_s}
    return Result(peer_s / ours_s, 20.0, ok, figures, quality)


def by_loam(body: bytes) -> str:
    found = extract_page(body, "text/html", "https://docs.test/", CONFIG)
    return found.text if isinstance(found, Extracted) else ""


def by_trafilatura(body: bytes) -> str:
    return trafilatura.extract(body) or ""


def pages_table(paths: list[str]) -> pa.Table:
    """PAGES of one shard, as a crawler would have stored them."""
    same = {"source": "docs", "status": 200, "content_type": "text/html"}
    return PAGES.table(
        [
            {"id": document_id("docs", path), "url": f"https://docs.test/{path}", **same}
            for path in paths
        ]
    )


def against_trafilatura(paths: list[str], ours: list[str], theirs: list[str]) -> dict[str, float]:
    """Recall and precision of words, of all pages and of the package where each is least."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for path, found, wanted in zip(paths, ours, theirs, strict=True):
        a, b = Counter(_WORD.findall(found)), Counter(_WORD.findall(wanted))
        for name in ("all", path.split("/doc/")[-1].split("/")[0]):
            both, one, other = counts[name]
            counts[name] = [both + (a & b).total(), one + a.total(), other + b.total()]
    recalls = {name: both / other for name, (both, _, other) in counts.items()}
    precisions = {name: both / one for name, (both, one, _) in counts.items()}
    return {
        "recall": recalls["all"],
        "precision": precisions["all"],
        "least_recall": min(recalls.values()),
        "least_precision": min(precisions.values()),
    }


def against_books(paths: list[str], ours: list[str], theirs: list[str]) -> dict[str, float]:
    """F1 of both against the books of debian-faq."""
    found: dict[str, float] = {}
    for book in BOOKS:
        files = inputs.package_files(f"debian-faq{book}_11.1")
        truth = next(gzip.decompress(body).decode() for path, body in files if ".txt.gz" in path)
        language = book[1:] or "en"
        rows = [row for row, path in enumerate(paths) if FAQ in path and f".{language}.h" in path]
        for name, texts in (("f1", ours), ("peer_f1", theirs)):
            joined = " ".join(texts[row] for row in rows)
            found[name + book] = f1(joined, truth, characters=language in ("ja", "zh-cn"))
    return found


def f1(found: str, wanted: str, characters: bool) -> float:
    a, b = (
        Counter("".join(text.split()) if characters else text.split()) for text in (found, wanted)
    )
    return 2 * (a & b).total() / (a.total() + b.total())
