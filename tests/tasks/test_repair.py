from __future__ import annotations

import json
import re
import tarfile

import ftfy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.repair import FAMILIES, filter_characters, ftfy_options, repair_text
from tests.bench.inputs import english, html_pages, multilingual
from tests.shared_data import shared_data

WRONG = (
    "latin-1",
    "cp1252",
    "cp1251",
    "cp1250",
    "cp1253",
    "cp1254",
    "cp1257",
    "mac_roman",
    "cp437",
)
# What ftfy's expressions look for, and what stands beside it.
DAMAGE = (
    "ÃÂâ€™œŸšžà¡°©ž×²³вЂГўРС√≈‚Äóβā\x80\x85\x92\x9f\xa0\xadﬁĳ\ufeff\ufffd\u2028\r\n"
    "\x1b[0m e\u0301a?"
)


def as_ftfy(text: str, fix_encoding: bool = True) -> str:
    return ftfy.fix_text(text, ftfy_options(fix_encoding))


def damaged(text: str, encoding: str) -> str:
    """The text as UTF-8 read in another encoding."""
    return text.encode().decode(encoding, "replace")


def test_ftfys_own_cases_come_out_as_ftfy_says():
    found = []
    with tarfile.open(shared_data("clean/ftfy-test-cases.tar.gz")) as archive:
        for item in archive:
            if item.isfile():
                found += [row["original"] for row in json.loads(archive.extractfile(item).read())]
    assert len(found) > 70
    for text in found:
        assert repair_text(text) == as_ftfy(text)
        assert repair_text(f"before\n{text}\nafter") == as_ftfy(f"before\n{text}\nafter")
    everything = "\n".join(found)
    assert repair_text(everything) == as_ftfy(everything)


def test_real_text_in_75_languages_comes_out_as_ftfy_says():
    shared_data("lid")
    texts = multilingual(1.0) + english(0.2)
    assert [repair_text(text) for text in texts] == [as_ftfy(text) for text in texts]


@pytest.mark.parametrize("encoding", WRONG)
def test_mojibake_of_real_text_comes_out_as_ftfy_says(encoding):
    shared_data("lid")
    for text in multilingual(1.0)[::25]:
        lines = text.split("\n")
        lines[::2] = [damaged(line, encoding) for line in lines[::2]]
        mixed = "\n".join(lines)
        assert repair_text(mixed) == as_ftfy(mixed)
        twice = damaged(damaged(text[:300], encoding), encoding)
        assert repair_text(twice) == as_ftfy(twice)


def test_html_source_with_wrong_bytes_comes_out_as_ftfy_says():
    shared_data("deb")
    for _, body in html_pages(8)[::40]:
        text = body[:5000].decode("latin-1")
        assert repair_text(text) == as_ftfy(text)


@settings(max_examples=1000, deadline=None)
@given(st.text(st.sampled_from(DAMAGE), max_size=30) | st.text(st.characters(), max_size=30))
@example("Ã\r\n©")
@example("ł\r\r\nåσ")
@example("œ\n\n Ã€")
@example("A\u0300¦")
@example("\ud83d\udca9 x")
def test_any_text_comes_out_as_ftfy_says(text):
    assert repair_text(text) == as_ftfy(text)
    assert repair_text(text, False) == as_ftfy(text, False)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20), st.sampled_from(WRONG), st.text(max_size=5), st.text(max_size=5))
def test_any_mojibake_comes_out_as_ftfy_says(text, encoding, before, after):
    broken = before + damaged(text.encode("utf-8", "replace").decode(), encoding) + after
    assert repair_text(broken) == as_ftfy(broken)


def test_a_line_longer_than_ftfy_takes_at_once_comes_out_as_ftfy_says():
    for text in ("x" * 999_999 + "schÃ¶n", "e" * 999_999 + "e\u0301 schÃ¶n"):
        assert repair_text(text) == as_ftfy(text)


def test_what_is_not_damaged_is_not_given_to_ftfy(monkeypatch):
    shared_data("lid")
    sizes: list[int] = []
    fix = ftfy.fix_text
    monkeypatch.setattr(
        ftfy, "fix_text", lambda text, options: sizes.append(len(text)) or fix(text, options)
    )
    texts = multilingual(1.0)
    for text in texts:
        repair_text(text)
    assert 0 < sum(sizes) < 0.02 * sum(map(len, texts))


# Special characters

SAMPLES = {
    "noncharacters": "\ufdd0\uffff\U0010fffe",
    "soft_hyphens": "\xad",
    "zero_width": "\u200b\u2060",
    "joiners": "\u200c\u200d",
    "bidi_controls": "\u200f\u202e\u2066",
    "private_use": "\ue000\uf8ff\U0010fffd",
    "replacement": "\ufffd",
    "variation_selectors": "\ufe0f\U000e0100",
    "tags": "\U000e0067",
    "box_drawing": "│█",
    "spaces": "\xa0\u2009\u3000",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_taken_out_and_the_others_stay(family):
    replacement = " " if family in ("box_drawing", "spaces") else ""
    for name, characters in SAMPLES.items():
        for character in characters:
            wanted = f"é{replacement}b" if name == family else f"é{character}b"
            assert filter_characters(f"é{character}b", (family,)) == wanted


def test_text_is_composed_where_what_parted_it_is_gone():
    assert filter_characters("e\u200b\u0301", ("zero_width",)) == "é"


def test_families_do_not_overlap():
    everything = "".join(map(chr, range(0x110000)))
    found = [
        c for characters, _ in FAMILIES.values() for c in re.findall(f"[{characters}]", everything)
    ]
    assert len(found) == len(set(found)) > 137_000
