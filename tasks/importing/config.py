"""What an import reads: files, and where in their records the text and its provenance are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm.config import Config

Table = Literal["jsonl", "csv", "parquet"]
Archive = Literal["warc", "wet", "mbox", "mediawiki", "code"]
Format = Literal[Table, Archive, "text", "markdown"]


class ImportConfig(Config):
    """Files to read, and where in their records the text and its provenance are."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders and globs, at any URL fsspec knows. A folder is read recursively, without
    names that start with `.` or `_` (code: `.`) and without linked folders."""

    format: Literal["auto"] | Format = "auto"
    """What the files are; `auto` tells by their extension. Folders and tar archives of source
    code want `code`, since any other file may lie among it."""

    text_field: str = "text"
    """The field or column with the text, as in Hugging Face's and Dolma's corpora. In every
    field name a dot leads into nested records."""

    id_field: str | None = None
    """The field that names a record within the source. By default `id` where a record has one."""

    url_field: str = "url"
    """The field with the record's address, which is its name where it has no id."""

    license_field: str = "license"
    """The field with the record's licence."""

    language_field: str = "language"
    """The field with the record's language."""

    license: str | None = None
    """The licence of records that name none."""

    language: str | None = None
    """The language of records that name none."""

    meta_fields: tuple[str, ...] = ()
    """Further fields to keep, in `meta`."""

    slice: tuple[float, float] = (0.0, 1.0)
    """For text and Markdown files: the part of each file that is taken, as shares of its
    characters, each bound rounded down: nanoGPT trains on (0, 0.9) and validates on (0.9, 1)."""

    mail_quotes: bool = False
    """Whether an e-mail keeps what it quotes of others, and its signature. Left out by default:
    each answer would repeat the message before it."""

    max_bytes_per_record: int = Field(50_000_000, ge=1)
    """A record or text file over this many bytes is set aside. A chosen limit: about ten times
    the complete works of Shakespeare, and small enough to hold several copies in memory."""

    max_age_s: float | None = Field(0.0, ge=0)
    """A listing younger than this, in seconds, is not repeated unless asked for; None: never.
    By default every run looks, because only files that changed are read again."""

    @model_validator(mode="after")
    def _slice_is_possible(self) -> ImportConfig:
        start, end = self.slice
        if not 0 <= start < end <= 1:
            raise ValueError(f"slice {start:g} to {end:g}: expected 0 <= start < end <= 1")
        if self.slice != (0, 1) and self.format not in ("auto", "text", "markdown"):
            raise ValueError(f"slice works on text and Markdown files, not on {self.format}")
        return self

    def semantic(self) -> dict[str, object]:
        """The settings that decide which rows come of a file; the rest says where files are."""
        return self.model_dump(mode="json", exclude={"paths", "max_age_s"})
