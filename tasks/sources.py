"""Where documents come from: the kinds of source a pipeline's config may list."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm.config import Config
from tasks.crawling.config import CrawlConfig
from tasks.importing.config import ImportConfig

_NAME = r"^[a-z0-9][a-z0-9._-]*$"


class CrawlSource(CrawlConfig):
    """A website, or several, crawled politely."""

    kind: Literal["crawl"]
    """Which kind of source this is."""

    name: str = Field(pattern=_NAME)
    """The source's name; it is part of each document's id."""

    max_loss: float = Field(0.1, ge=0, le=1)
    """Share of its documents an ingest may lose at once before it stops and asks."""


class ImportSource(ImportConfig):
    """Files: JSONL, CSV, Parquet, text, Markdown, WARC, WET, mbox, MediaWiki dumps or code."""

    kind: Literal["import"]
    """Which kind of source this is."""

    name: str = Field(pattern=_NAME)
    """The source's name; it is part of each document's id."""

    max_loss: float = Field(0.1, ge=0, le=1)
    """Share of its documents an ingest may lose at once before it stops and asks."""


class PydocSource(Config):
    """The documentation of the Python that runs Loam: rendered, served on loopback and crawled."""

    kind: Literal["pydoc"]
    """Which kind of source this is."""

    name: str = Field(pattern=_NAME)
    """The source's name; it is part of each document's id."""

    modules: tuple[str, ...] = ()
    """Modules to render; empty: a fixed list of about 500 of the standard library."""

    max_pages: int = Field(10_000, ge=1)
    """Pages to keep at most."""

    max_loss: float = Field(0.1, ge=0, le=1)
    """Share of its documents an ingest may lose at once before it stops and asks."""


Source = Annotated[CrawlSource | ImportSource | PydocSource, Field(discriminator="kind")]
