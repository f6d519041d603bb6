"""Repair of text: `repair_text` against `ftfy.fix_text` under the same TextFixerConfig.

The configuration is ftfy's default but for unescape_html=False, fix_character_width=False and
uncurl_quotes=False (`tasks.repair.ftfy_options`). `ratio` is over text in 75 languages,
`ascii_ratio` over English prose and web pages of which over 95 % is ASCII. Outputs must be
identical on both, on ftfy's own cases, and where a tenth of the lines is made mojibake.
"""

from __future__ import annotations

import json
import tarfile
from functools import partial

import ftfy

from tasks.repair import ftfy_options, repair_text
from tests.bench import inputs
from tests.bench.harness import Result, cpu_seconds
from tests.shared_data import ROOT

WRONG = ("latin-1", "cp1252", "cp1251", "cp1250", "mac_roman", "cp437")


def run(quick: bool) -> Result:
    options = ftfy_options()

    def repaired(texts: list[str]) -> list[str]:
        return [repair_text(text) for text in texts]

    def by_ftfy(texts: list[str]) -> list[str]:
        return [ftfy.fix_text(text, options) for text in texts]

    texts = {
        "multilingual": inputs.multilingual(3 if quick else 100),
        "ascii": [
            text
            for text in inputs.english(2 if quick else 100) + inputs.web_text(2 if quick else 100)
            if len(text.encode("ascii", "ignore")) > 0.95 * len(text)
        ],
    }
    repaired(["é\r"])
    figures, same = {}, {}
    for name, part in texts.items():
        ours_s, ours = cpu_seconds(partial(repaired, part), 5)
        peer_s, theirs = cpu_seconds(partial(by_ftfy, part), 2)
        size = inputs.size_mb(part)
        prefix = "" if name == "multilingual" else f"{name}_"
        figures |= {
            f"{prefix}ratio": peer_s / ours_s,
            f"{prefix}ours_mb_s": size / ours_s,
            f"{prefix}peer_mb_s": size / peer_s,
        }
        same[f"identical_{name}"] = ours == theirs
    for name, part in (("cases", cases()), ("mojibake", mojibake(texts["multilingual"]))):
        same[f"identical_{name}"] = repaired(part) == by_ftfy(part)
    ratio = figures.pop("ratio")
    return Result(
        ratio, 4.0, all(same.values()), {**figures, "ascii_target": 20.0}, same
    )  # fmt: skip


def cases() -> list[str]:
    """The texts of ftfy's own test cases."""
    with tarfile.open(ROOT / "clean/ftfy-test-cases.tar.gz") as archive:
        files = (archive.extractfile(item) for item in archive if item.isfile())
        return [str(row["original"]) for file in files if file for row in json.load(file)]


def mojibake(texts: list[str]) -> list[str]:
    """The texts with every tenth line read in one wrong encoding after another."""
    broken = []
    for place, text in enumerate(texts):
        lines = text.split("\n")
        encoding = WRONG[place % len(WRONG)]
        lines[::10] = [line.encode().decode(encoding, "replace") for line in lines[::10]]
        broken.append("\n".join(lines))
    return broken
