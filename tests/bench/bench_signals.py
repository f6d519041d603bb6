"""Text signals against datatrove's Gopher, C4 and FineWeb filters: MB/s of text.

Both get the same texts and the same words. datatrove's filters run in a row, as in its own
`examples/fineweb.py`, so that a dropped document costs it no more; Loam measures everything of
every document. `agreement_*` is the share of documents about which a filter and the rules of the
same name in `tasks/select.py` decide alike, at the same thresholds; Gopher's stop words are asked
for in English texts only, as fastText tells them, by both. `default_words_ratio` is the ratio
where datatrove splits words as it does for English by default, with spaCy.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from tasks.annotate import Classifiers, annotate_shard
from tasks.kernels.characters import UNSPACED_SCRIPTS
from tasks.language import LanguageModel
from tasks.select import SelectConfig, select_shard
from tasks.signals import text_signals
from tests.bench import inputs
from tests.bench.harness import Result, cpu_seconds, peer
from tests.shared_data import ROOT

TARGET = 60.0
AGREEMENT = 0.99
WORD = rf"[{UNSPACED_SCRIPTS}]|[^\s{UNSPACED_SCRIPTS}]+"
FAMILIES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")


def run(quick: bool) -> Result:
    megabytes = 1.2 if quick else 6.0
    documents = inputs.documents(inputs.web_text(megabytes) + inputs.english(megabytes))
    model = LanguageModel((ROOT / "models" / "lid.176.ftz").read_bytes())
    signals = annotate_shard(documents, Classifiers(language=model))
    english = pc.fill_null(pc.equal(signals["language"], "en"), False)
    table = pa.table({"text": documents["text"], "english": english})
    sample = table.take(pa.array(range(0, len(table), 8)))
    theirs = peer("signals", table, WORD)
    default = peer("signals", sample)
    seconds, _ = cpu_seconds(lambda: text_signals(table["text"]), repeats=10)
    ours_mb_s = _size_mb(table) / seconds
    peer_mb_s = _size_mb(table) / theirs["seconds"]
    figures = {
        "ours_mb_s": ours_mb_s,
        "peer_mb_s": peer_mb_s,
        "default_words_ratio": ours_mb_s / (_size_mb(sample) / default["seconds"]),
    }
    quality: dict[str, float] = {"documents": len(table)}
    for family in FAMILIES:
        ours = _dropped(documents, signals, family)
        both = list(zip(ours, theirs["dropped"][family], strict=True))
        quality[f"agreement_{family}"] = sum(a == b for a, b in both) / len(both)
        quality[f"dropped_by_both_{family}"] = sum(a and b for a, b in both)
    ok = all(quality[f"agreement_{family}"] >= AGREEMENT for family in FAMILIES)
    return Result(ours_mb_s / peer_mb_s, TARGET, ok, figures, quality)


def _dropped(documents: pa.Table, signals: pa.Table, family: str) -> list[bool]:
    """Whether each document leaves by the rules of one family."""
    config = SelectConfig(**{name: name == family for name in FAMILIES})
    gone = set(select_shard(documents, signals, config)["id"].to_pylist())
    return [identity in gone for identity in documents["id"].to_pylist()]


def _size_mb(table: pa.Table) -> float:
    return inputs.size_mb(table["text"].to_pylist())
