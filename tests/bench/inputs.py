"""Real inputs for the benchmarks, read from the shared data; absent, a benchmark says so.

Texts come as lists of documents in a fixed order; `megabytes` bounds their UTF-8 size, and there
may be less. Nothing is repeated, but where `documents` says so.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tasks.store.rows import document_id, text_digest
from tasks.store.schema import DOCUMENTS
from tests.shared_data import ROOT

HTML_PACKAGES = (
    "apache2-doc_2.4.71-1~deb12u1",
    "git-doc_1_2.39.5-0+deb12u3",
    "debian-history_2.28",
    "aptitude-doc-en_0.8.13-5",
    "aptitude-doc-es_0.8.13-5",
    *(f"debian-faq{suffix}_11.1" for suffix in ("", "-de", "-fr", "-ja", "-ru", "-zh-cn")),
)


def package_files(package: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of each regular file of a Debian package, in order of path.

    Raises FileNotFoundError naming the package and the folder that should hold it.
    """
    body = _find(f"deb/{package}_all.deb").read_bytes()
    place = 8  # after "!<arch>\n"
    while place < len(body):
        name = body[place : place + 16].decode().strip().rstrip("/")
        size = int(body[place + 48 : place + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body[place + 60 : place + 60 + size])) as archive:
                for member in sorted(archive.getmembers(), key=lambda member: member.name):
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        yield member.name, file.read()
        place += 60 + size + size % 2


def html_pages(megabytes: float = 100.0) -> list[tuple[str, bytes]]:
    """(path, HTML) of real documentation pages in many languages: 36 MB in all."""
    pages: list[tuple[str, bytes]] = []
    left = megabytes * 1e6
    for package in HTML_PACKAGES:
        for path, body in package_files(package):
            if ".html" in path:
                left -= len(body)
                if left < 0:
                    return pages
                pages.append((path, body))
    return pages


def english(megabytes: float = 100.0) -> list[str]:
    """Plain English prose in documents of about 3 kB: speeches, a novel, encyclopedia: 11 MB."""
    return _within(_english(), megabytes)


def web_text(megabytes: float = 100.0) -> list[str]:
    """Main texts of the HTML pages, as resiliparse gives them, undecodable bytes replaced."""
    from resiliparse.extract.html2text import extract_plain_text

    pages = html_pages(6 * megabytes)
    texts = (extract_plain_text(body.decode("utf-8", "replace"), True) for _, body in pages)
    return _within(texts, megabytes)


def multilingual(megabytes: float = 100.0) -> list[str]:
    """Documents of 20 sentences of one language each, in 75 languages: 5 MB."""
    return _within((text for _, text in multilingual_with_languages()), megabytes)


def multilingual_with_languages() -> Iterator[tuple[str, str]]:
    """(language, text) of the documents of `multilingual`, one of each language at a time."""
    by_language: dict[str, list[str]] = {}
    for row in _jsonl("lid/lingua-sentences-even.jsonl.gz"):
        by_language.setdefault(str(row["lang"]), []).append(str(row["text"]))
    longest = max(map(len, by_language.values()))
    for start in range(0, longest, 20):
        for language, sentences in by_language.items():
            if start < len(sentences):
                yield language, "\n".join(sentences[start : start + 20])


def documents(texts: list[str], source: str = "bench") -> pa.Table:
    """DOCUMENTS of the texts, sorted by id."""
    rows = [
        {
            "id": document_id(source, str(place)),
            "digest": text_digest(text),
            "text": text,
            "url": f"https://{source}.test/{place}",
            "source": source,
            "language": "en",
        }
        for place, text in enumerate(texts)
    ]
    return DOCUMENTS.table(rows).sort_by("id").combine_chunks()


def size_mb(texts: list[str]) -> float:
    """UTF-8 megabytes (10^6 bytes) of the texts."""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1e6


def _english() -> Iterator[str]:
    for row in _jsonl("pretrain/sotu-before-1960.jsonl.gz"):
        yield from _pieces(str(row["text"]))
    for row in _jsonl("pretrain/moby-dick.jsonl.gz"):
        chapter = row["doc"]
        assert isinstance(chapter, dict)
        yield from _pieces(str(chapter["text"]))
    wikipedia = gzip.decompress(_find("pretrain/wikitext2-valid.txt.gz").read_bytes())
    yield from _pieces(wikipedia.decode())


def _pieces(text: str, size: int = 3000) -> Iterator[str]:
    """The text in pieces that end with a sentence."""
    start = 0
    while start < len(text):
        stop = text.find(". ", start + size)
        stop = len(text) if stop < 0 else stop + 1
        yield text[start:stop].strip()
        start = stop


def _within(texts: Iterator[str], megabytes: float) -> list[str]:
    found, left = [], megabytes * 1e6
    for text in texts:
        left -= len(text.encode("utf-8", "surrogatepass"))
        if left < 0:
            break
        if text.strip():
            found.append(text)
    return found


def _jsonl(name: str) -> Iterator[dict[str, object]]:
    with gzip.open(_find(name), "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _find(name: str) -> Path:
    path = ROOT / name
    if not path.exists():
        raise FileNotFoundError(f"no {name} in {ROOT}: set LOAM_SHARED_DATA to the folder of it")
    return path
