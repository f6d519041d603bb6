"""datatrove's filters of Gopher, C4 and FineWeb over a table of `text` and whether it is `english`.

They are set up as in its `examples/fineweb.py`, but for FineWeb's share of duplicate characters,
which is the paper's, and for texts that are not English, of which no stop words are asked. A second
argument is a regular expression that words match: datatrove takes a tokenizer in place of a
language. Without it words are its own for English, spaCy's; sentences are spaCy's always.

The seconds are those of the filters in a row, where a dropped document meets no further filter.
Every filter judges every document.
"""

from __future__ import annotations

import json
import re
import sys
import time

import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.word_tokenizers import SpaCyTokenizer, WordTokenizer


class PlainTokenizer(WordTokenizer):
    """Words by a regular expression, sentences by spaCy's sentencizer."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = re.compile(words)
        self.sentencizer = SpaCyTokenizer("en")

    def word_tokenize(self, text: str) -> list[str]:
        return self.words.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return self.sentencizer.sent_tokenize(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return self.sentencizer.span_tokenize(text)


def main() -> None:
    rows = pq.read_table(sys.argv[1]).to_pylist()
    language = PlainTokenizer(sys.argv[2]) if len(sys.argv) > 2 else "en"
    gopher_quality = GopherQualityFilter(language=language)
    without_stop_words = GopherQualityFilter(language=language, min_stop_words=None)
    filters = {
        "gopher_repetition": GopherRepetitionFilter(language=language),
        "gopher_quality": gopher_quality,
        "c4": C4QualityFilter(filter_no_terminal_punct=False, language=language),
        "fineweb": FineWebQualityFilter(char_duplicates_ratio=0.1, language=language),
    }
    for step in filters.values():  # loads what is loaded late
        step.filter(Document(text="A sentence to begin with. " * 20, id=""))
    dropped: dict[str, list[bool]] = {name: [] for name in filters}
    seconds = 0.0
    for row in rows:
        filters["gopher_quality"] = gopher_quality if row["english"] else without_stop_words
        alive = True
        for name, step in filters.items():
            document = Document(text=row["text"], id="")
            start = time.process_time()
            stays = step.filter(document) is True
            if alive:
                seconds += time.process_time() - start
            alive = alive and stays
            dropped[name].append(not stays)
    print(json.dumps({"seconds": seconds, "dropped": dropped}))


if __name__ == "__main__":
    main()
