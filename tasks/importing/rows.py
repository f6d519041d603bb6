"""Import: files at any fsspec URL to rows of documents, pages and quarantine.

JSONL, CSV, Parquet, plain text, Markdown, WARC, WET, mbox, MediaWiki dumps and source code; gzip,
bzip2, xz and Zstandard are told by content.
A record that cannot be used is set aside with its reason, and the rest of its file goes on.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import IO, Any

import pyarrow as pa

from llm.errors import StorageError
from tasks.crawling.urls import canonical_url
from tasks.importing import code, mbox, mediawiki, readers
from tasks.importing.config import Format, ImportConfig
from tasks.importing.files import OPTIONS, FileRef, explained
from tasks.importing.readers import Broken, Page, Record, Reject
from tasks.store.rows import canonical_meta, document_id, text_digest
from tasks.store.schema import DOCUMENTS, PAGES, QUARANTINE

EXTENSIONS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".txt": "text",
    ".text": "text", ".md": "markdown", ".markdown": "markdown", ".warc": "warc", ".wet": "wet",
    ".mbox": "mbox", ".xml": "mediawiki",
}  # fmt: skip
# Libraries whose version decides what comes of a file; the other formats leave no choice.
LIBRARIES: dict[Format | None, tuple[str, ...]] = {
    "mbox": ("ftfy", "lxml", "resiliparse", "trafilatura"),
    "mediawiki": ("mwparserfromhell",),
}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
CHUNK_BYTES, CHUNK_ROWS = 64 << 20, 100_000


@dataclass(frozen=True)
class Chunk:
    """Rows of one file, about 64 MB of text at most. `pages` are a WARC file's responses."""

    documents: pa.Table
    pages: pa.Table
    quarantine: pa.Table


@dataclass(frozen=True)
class _Fields:
    """Where a record's values are."""

    text: str = "text"
    id: str | None = None
    url: str | None = "url"
    license: str | None = None
    language: str | None = None
    meta: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: ImportConfig) -> _Fields:
        return cls(
            text=config.text_field,
            id=config.id_field or "id",
            url=config.url_field,
            license=config.license_field,
            language=config.language_field,
            meta=config.meta_fields,
        )

    def names(self) -> list[str]:
        named = [self.text, self.id, self.url, self.license, self.language, *self.meta]
        return list(dict.fromkeys(name for name in named if name))


@dataclass
class _Rows:
    """The rows of a chunk in the making."""

    documents: list[dict[str, object]] = field(default_factory=list)
    pages: list[dict[str, object]] = field(default_factory=list)
    quarantine: list[dict[str, object]] = field(default_factory=list)
    n_bytes: int = 0

    def n_rows(self) -> int:
        return len(self.documents) + len(self.pages) + len(self.quarantine)

    def chunk(self) -> Chunk:
        return Chunk(
            DOCUMENTS.table(self.documents),
            PAGES.table(self.pages),
            QUARANTINE.table(self.quarantine),
        )


def read_file(file: FileRef, config: ImportConfig, source: str, fetched_at: str) -> Iterator[Chunk]:
    """The rows of one file, in its order, in chunks; every record is in exactly one table,
    but for a wiki's redirects and other pages that are no articles, which are counted.

    `fetched_at` stands where neither a record nor the storage dates it. A file that nobody may
    read or that breaks off is quarantined from there on. Raises StorageError where the storage
    fails, so that a lost connection is never taken for lost documents.
    """
    importer = _Importer(file, config, source, file.modified or fetched_at)
    rows = _Rows()
    for item in importer.items():
        row = importer.row(item)
        if isinstance(row, Reject):
            rows.quarantine.append(importer.quarantined(row))
        elif isinstance(item, Page):
            rows.pages.append(row)
        else:
            rows.documents.append(row)
            rows.n_bytes += len(str(row["text"]))
        if rows.n_bytes >= CHUNK_BYTES or rows.n_rows() >= CHUNK_ROWS:
            # The rows go before the chunk does, so that both are never held while it is used.
            chunk, rows = rows.chunk(), _Rows()
            yield chunk
    if rows.n_rows():
        yield rows.chunk()


_FIELDS = {
    "mbox": _Fields(id="id", meta=mbox.META),
    "mediawiki": _Fields(id="id", language="language", meta=mediawiki.META),
    "code": _Fields(id="id", license="license", meta=code.META),
    "wet": _Fields(language="language"),
}


class _Importer:
    """Reads one file: which reader, and what its records become."""

    def __init__(self, file: FileRef, config: ImportConfig, source: str, date: str) -> None:
        self.file, self.config, self.source, self.date = file, config, source, date
        self.format = format_of(file.path, config)
        # Only tables and JSON have field names of the user's.
        own = self.format in ("jsonl", "csv", "parquet", "warc")
        self.fields = _Fields.of(config) if own else _FIELDS.get(self.format or "", _Fields())

    def items(self) -> Iterator[Record | Page | Reject]:
        """The file's records. Where it breaks, a last reject says so."""
        import fsspec

        if self.format is None:
            known = ", ".join(EXTENSIONS)
            yield Reject(None, "unreadable", f"no format goes by its name; known are {known}")
            return
        last = None
        try:
            with explained(self.file.url), fsspec.open(self.file.url, "rb", **OPTIONS) as opened:
                for item in self._read(opened):
                    last = last if item.position is None else item.position
                    yield item
        except Broken as broken:
            kept = "" if last is None else f"; what came before is kept, up to {last:,}"
            yield Reject(None, broken.reason, broken.detail + kept)
        except PermissionError as error:
            yield Reject(None, "unreadable", f"reading was refused: {error}")
        except FileNotFoundError as error:
            raise StorageError(f"{self.file.url} went away since it was listed") from error

    def _read(self, opened: IO[bytes]) -> Iterator[Record | Page | Reject]:
        limit = self.config.max_bytes_per_record
        match self.format:
            case "parquet":
                return readers.parquet_records(opened, self.fields.names(), self.fields.text)
            case "warc" | "wet":
                return readers.warc_records(opened, limit)
            case "jsonl":
                return readers.jsonl_records(readers.blocks(opened), limit)
            case "csv":
                return readers.csv_records(readers.blocks(opened), limit, self.fields.text)
            case "mbox":
                quotes = self.config.mail_quotes
                return mbox.mbox_records(readers.blocks(opened), limit, quotes)
            case "mediawiki":
                return mediawiki.mediawiki_records(readers.blocks(opened), limit)
            case "code":
                return code.code_records(opened, self.file.path, limit)
            case _:
                return readers.text_record(readers.blocks(opened), limit)

    def row(self, item: Record | Page | Reject) -> dict[str, object] | Reject:
        """What the item becomes. What UTF-8 cannot hold, such as half a character that an escape
        in JSON, mail or markup named alone, is set aside."""
        if isinstance(item, Reject):
            return item
        try:
            row = self._document(item) if isinstance(item, Record) else self._page(item)
            for name, value in row.items() if isinstance(row, dict) else ():
                if name != "text" and isinstance(value, str):  # `_unusable` has seen the text
                    value.encode()
        except UnicodeEncodeError as error:
            found = f"U+{ord(error.object[error.start]):04X} at character {error.start:,}"
            return Reject(item.position, "not_utf8", f"{found} cannot be UTF-8")
        return row

    def quarantined(self, reject: Reject) -> dict[str, object]:
        at = "" if reject.position is None else f":{reject.position}"
        return {
            "source": self.source,
            "locator": self.file.path + at,
            "stage": "import",
            "reason": reject.reason,
            "detail": reject.detail.encode("utf-8", "backslashreplace").decode(),
        }

    def _page(self, page: Page) -> dict[str, object] | Reject:
        url = canonical_url(page.url)
        if url is None:
            return Reject(page.position, "wrong_type", f"{page.url!r} is no http address")
        return {
            **page.columns,
            "id": document_id(self.source, url),
            "url": url,
            "source": self.source,
            "license": self.config.license,
            "fetched_at": page.columns["fetched_at"] or self.date,
            "warc": self.file.url,
            "warc_offset": page.position,
        }

    def _document(self, record: Record) -> dict[str, object] | Reject:
        """A row of DOCUMENTS, or why the record cannot be one."""
        text = _value(record.fields, self.fields.text)
        if self.format in ("text", "markdown") and isinstance(text, str):
            text = _part(text, self.config.slice)
        if wrong := self._unusable(record, text):
            return wrong
        values: dict[str, str | None] = {}
        for column in ("id", "url", "license", "language"):
            value = _value(record.fields, getattr(self.fields, column))
            if column == "id" and type(value) is int:
                value = str(value)
            if not isinstance(value, str | None):
                detail = f"{getattr(self.fields, column)!r} is a {type(value).__name__}, no text"
                return Reject(record.position, "wrong_type", detail)
            values[column] = value or None
        meta = {name: _plain(_value(record.fields, name)) for name in self.fields.meta}
        url = values["url"] and (canonical_url(values["url"]) or values["url"])
        return {
            "id": document_id(self.source, self._locator(values, text)),
            "digest": text_digest(text),
            "text": text,
            "url": url,
            "source": self.source,
            "license": values["license"] or self.config.license,
            "language": values["language"] or self.config.language,
            "fetched_at": record.fetched_at or self.date,
            "meta": canonical_meta({k: v for k, v in meta.items() if v is not None}),
        }

    def _unusable(self, record: Record, text: object) -> Reject | None:
        name, limit = self.fields.text, self.config.max_bytes_per_record
        if text is None:
            return Reject(record.position, "no_text", readers.no_column(name, record.fields))
        if not isinstance(text, str):
            detail = f"{name!r} is a {type(text).__name__}, no text"
            return Reject(record.position, "wrong_type", detail)
        if not text.strip():
            return Reject(record.position, "no_text", f"{name!r} is empty")
        if len(text) > limit or len(text.encode()) > limit:
            return Reject(record.position, "too_large", f"{name!r} is over {limit:,} bytes")
        return None

    def _locator(self, values: dict[str, str | None], text: str) -> str:
        """Who the record is within its source, through edits of its text where it has a name."""
        if self.format in ("text", "markdown"):
            return self.file.path
        address = canonical_url(values["url"]) if values["url"] else None
        return values["id"] or address or text_digest(text)


def format_of(path: str, config: ImportConfig) -> Format | None:
    """The format of a file; None where its name does not tell."""
    if config.format != "auto":
        return config.format
    stem, extension = posixpath.splitext(path.lower())
    if extension in COMPRESSED:
        extension = posixpath.splitext(stem)[1]
    return EXTENSIONS.get(extension)


def _value(fields: Any, name: str | None) -> Any:
    """The field of that name; failing that, the one its dots lead to; None where there is none."""
    if name is None:
        return None
    if name in fields:
        return fields[name]
    for part in name.split("."):
        if not isinstance(fields, dict):
            return None
        fields = fields.get(part)
    return fields


def _part(text: str, bounds: tuple[float, float]) -> str:
    start, end = (int(len(text) * share) for share in bounds)
    return text[start:end]


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: what Parquet has beyond that becomes text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value.isoformat() if isinstance(value, date) else str(value)
