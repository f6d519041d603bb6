"""Language identification: three windows of each text, against fastText on the whole text.

Both sides use lid.176.ftz. Agreement is counted over documents of web pages, of English prose, and
of sentences in the languages that the model has labels for; the sentences' own languages tell how
often each side is right. `whole_mb_s` is Loam's own speed over whole texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import fasttext
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.fasttext_file import LABEL
from tasks.language import LanguageModel
from tests.bench import inputs
from tests.bench.harness import Result, cpu_seconds
from tests.shared_data import ROOT

Labels = npt.NDArray[np.str_]
MODEL = ROOT / "models/lid.176.ftz"
# Wikipedia's code for Alemannic, which Loam calls by its ISO code.
CODES = {"als": "gsw"}


def run(quick: bool) -> Result:
    peer, ours = fasttext.load_model(str(MODEL)), LanguageModel(MODEL.read_bytes())
    ours.predict(pa.array(["compiles"]))
    pairs = list(inputs.multilingual_with_languages())
    known = [pair for pair in pairs if pair[0] in ours.labels]
    languages = np.array([language for language, _ in known])
    texts = {
        "web": inputs.web_text(3 if quick else 100),
        "english": inputs.english(4 if quick else 100),
        "sentences": [text for _, text in known],
    }

    def told_by_peer(part: Sequence[str]) -> Labels:
        found, _ = peer.predict([text.replace("\n", " ") for text in part])
        codes = (row[0].removeprefix(LABEL) for row in found)
        return np.array([CODES.get(code, code) for code in codes])

    seconds = {"ours": 0.0, "whole": 0.0, "peer": 0.0}
    ratios, told, expected = {}, {}, {}
    for name, part in texts.items():
        column = pa.array(part, pa.large_string())
        peer_s, expected[name] = cpu_seconds(partial(told_by_peer, part))
        ours_s, (codes, _) = cpu_seconds(partial(ours.predict, column), 5)
        whole_s, _ = cpu_seconds(partial(ours.top, column))
        told[name] = np.array(codes)
        ratios[f"ratio_{name}"] = peer_s / ours_s
        for side, cost in zip(seconds, (ours_s, whole_s, peer_s), strict=True):
            seconds[side] += cost
    same = {name: told[name] == expected[name] for name in texts}
    agreement = float(np.concatenate(list(same.values())).mean())
    right_ours, right_peer = (side["sentences"] == languages for side in (told, expected))
    unknown = [text for language, text in pairs if language not in ours.labels]
    elsewhere = np.array(ours.predict(pa.array(unknown))[0]) == told_by_peer(unknown)
    quality = {
        "agreement": agreement,
        **{f"agreement_{name}": float(rows.mean()) for name, rows in same.items()},
        "agreement_where_peer_is_right": float(same["sentences"][right_peer].mean()),
        "right_ours": float(right_ours.mean()),
        "right_peer": float(right_peer.mean()),
        "agreement_by_language_below_1": _by_language(languages, same["sentences"]),
        "agreement_on_languages_without_label": float(elsewhere.mean()),
    }
    ok = agreement >= 0.985 and right_ours.mean() >= right_peer.mean() - 0.002
    size = sum(map(inputs.size_mb, texts.values()))
    speeds = {f"{side}_mb_s": size / cost for side, cost in seconds.items()}
    figures = {"mb": size, **speeds, **ratios}
    return Result(seconds["peer"] / seconds["ours"], 7.0, bool(ok), figures, quality)


def _by_language(languages: Labels, same: npt.NDArray[np.bool_]) -> dict[str, float]:
    """The agreement on each language's documents, where it is not complete."""
    shares = {str(code): float(same[languages == code].mean()) for code in np.unique(languages)}
    return {code: round(share, 3) for code, share in shares.items() if share < 1}
