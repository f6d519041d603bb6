"""Presidio as it comes, reading whole texts: what Loam's findings are compared with."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tasks.pii import Finding

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine


@cache
def presidio() -> AnalyzerEngine:
    """The pattern recognisers; only the public suffix list is kept off the network."""
    import tldextract.tldextract as suffixes
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NoOpNlpEngine

    suffixes.TLD_EXTRACTOR = suffixes.TLDExtract(suffix_list_urls=(), cache_dir=None)
    return AnalyzerEngine(nlp_engine=NoOpNlpEngine([{"lang_code": "en", "model_name": "none"}]))


def presidio_findings(text: str, entities: tuple[str, ...], threshold: float) -> list[Finding]:
    """Presidio's findings in the whole text, in order."""
    found = presidio().analyze(text, "en", list(entities), score_threshold=threshold)
    return sorted(Finding(r.entity_type, r.start, r.end, r.score) for r in found)
