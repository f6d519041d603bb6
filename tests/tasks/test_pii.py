"""What finding promises: Presidio's own findings, in windows that are few."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import phonenumbers
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.phone_digits import phone_automaton
from tasks.pii import Finder
from tasks.scrub import ScrubConfig
from tests.presidio import presidio_findings
from tests.shared_data import shared_data

# Published samples: the IBAN registry's, Visa's test card, Bitcoin's first address, Google's DNS,
# the numbers that the NANPA and Ofcom keep free for fiction, RFC 2606's domains.
SAMPLES = {
    "CREDIT_CARD": "4111 1111 1111 1111",
    "CRYPTO": "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",
    "EMAIL_ADDRESS": "ann@example.com",
    "IBAN_CODE": "GB29 NWBK 6016 1331 9268 19",
    "IP_ADDRESS": "2001:4860:4860::8888",
    "MAC_ADDRESS": "00-1B-44-11-3A-B7",
    "PHONE_NUMBER": "+44 20 7946 0958",
    "US_SSN": "219-09-9998",
}
# Pieces of what is scrubbed and of what looks like it; joined, they overlap, touch and nest.
FRAGMENTS = [
    *SAMPLES.values(),
    *("8.8.8.8", "fe80::1", "(212) 555-0199", "+1 212-555-0199 x12", "212.555.0187", "1642"),
    *("x@y.example.org", "a@b.de", "@", "::", "1.2.3.4.5", "aa:bb:cc:dd:ee:ff", "b@1.2.3.4"),
    *("<EMAIL_1>", "<PHONE_2>", "<IP_01>", "<EMAIL_", "_1>", "<", ">", "٠١٢٣٤٥٦٧٨٩", "K"),
    *("0049 30 901820", "DE89370400440532013000", "1-2-3-4-5-6-7", "ext. 12", "and then some"),
    *(
        "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq",
        "0012.3456.789A",
        "::ffff:1.2.3.4",
        "1800",
        "16424 x357389",
    ),
    *("2012-01-02 08", ":00", "/24", "%eth0", "x", "X", "ext", "anexo 4", "int 7", "#12", "＋"),
    *(
        "12345678901234567890",
        "２１２５５５０１９９",
        "доб 5",
        "Eſ9121000418450200051332",
        "ı",
        "中",
    ),
    *("651-234-2345/332-445-1234", "1:2:3:4:5:6:7:8", "123-456788", "12345-6788", "0x40353000"),
]
texts = st.lists(
    st.one_of(
        st.sampled_from(FRAGMENTS), st.text(" \n\t-.,:;<>@/+()0123456789abcxXZé", max_size=9)
    ),
    max_size=12,
).flatmap(lambda parts: st.sampled_from(["", " ", "\n", "-"]).map(lambda glue: glue.join(parts)))


ENTITIES = ScrubConfig().entities


def sentences() -> list[dict]:
    """Presidio's own synthetic sentences, with the place of each thing planted in them."""
    path = shared_data("pii/presidio-research-synth_dataset_v2.json.gz")
    return json.loads(gzip.decompress(path.read_bytes()))


@pytest.fixture(scope="module")
def finder() -> Finder:
    """With no threshold and no least length, so that all that Presidio finds is compared."""
    return Finder(ENTITIES, 0.0, "en")


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_findings_are_those_of_presidio_on_the_whole_text(text, finder):
    assert sorted(finder.find(text)) == presidio_findings(text, ENTITIES, 0.0)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
def test_findings_in_any_unicode_are_those_of_presidio(text, finder):
    assert sorted(finder.find(text)) == presidio_findings(text, ENTITIES, 0.0)


def test_findings_are_those_of_presidio_on_real_sentences(finder):
    text = "\n".join(sample["full_text"] for sample in sentences()[:300])
    for variant in (text, text.replace("\n", " ")):
        assert sorted(finder.find(variant)) == presidio_findings(variant, ENTITIES, 0.0)


@pytest.mark.slow
def test_findings_are_those_of_presidio_on_ordinary_text(finder):
    from tests.bench.inputs import english, multilingual, web_text

    for text in [*english(3)[::3], *web_text(4), *multilingual()]:
        assert sorted(finder.find(text)) == presidio_findings(text, ENTITIES, 0.0)


@settings(max_examples=50, deadline=None)
@given(batch=st.lists(texts, max_size=6), cut=st.integers(0, 3))
def test_only_suspects_hold_findings(batch, cut, finder):
    rows = finder.suspects(pa.array(batch, pa.large_string())[cut:])
    assert rows == sorted(set(rows))
    for row, text in enumerate(batch[cut:]):
        assert row in rows or not finder.find(text)


CLEAN = """
2014-11-22 08:15:33 is a time. On 2003-10-12 and from 1939-1945, in 1918 1920, 12.05.1998 or
10.3.2011 the price rose by 3.50 to 1,234,567 (0xb7e35300), version 2.39.5 or 1.2.3, at 12:30:45.
std::vector and Foo::Bar, 4.2.1, @you, a@b, pp. 211-227, 99 bottles, 10-20-30, dead-beef-cafe,
sha 3f7a0bc2de.
"""


def test_dates_versions_and_amounts_are_not_even_read():
    finder = Finder(ENTITIES, 0.4, "en", least_phone_digits=7)
    assert finder.suspects(pa.array([CLEAN, "8.8.8.8", ""], pa.large_string())) == [1]


def test_a_value_longer_than_a_window_is_read_in_parts(finder):
    text = "a." * 30_000 + "@example.com and b@example.com"
    assert ("EMAIL_ADDRESS", 60_017, 60_030, 1.0) in finder.find(text)


REGIONS = ("US", "GB", "DE", "FR", "IL", "IN", "CA", "BR")
PREFIXES = ("", "0", "00", "011", "49", "44", "33", "972", "91", "55", "1", "90", "0800", "1800")


def _accepted(digits: str) -> bool:
    automaton = phone_automaton(REGIONS)
    for state in automaton.starts.tolist():
        for digit in digits:
            state = automaton.steps[state, int(digit)] if state >= 0 else -1
        if state >= 0 and automaton.accepts[state]:
            return True
    return False


def test_no_number_that_libphonenumber_takes_is_refused_by_its_digits():
    draw = random.Random(7)
    taken = refused = 0
    for _ in range(1500):
        digits = draw.choice(PREFIXES) + "".join(draw.choices("0123456789", k=draw.randint(4, 12)))
        matchers = (phonenumbers.PhoneNumberMatcher(digits, region, 1) for region in REGIONS)
        if any(match.raw_string == digits for matcher in matchers for match in matcher):
            taken += 1
            assert _accepted(digits), digits
        refused += not _accepted(digits)
    assert taken > 200
    assert refused > 400


@pytest.mark.parametrize("region", sorted(phonenumbers.SUPPORTED_REGIONS & set(REGIONS)))
def test_example_numbers_are_accepted_and_with_other_digits_missing_are_not(region):
    number = phonenumbers.example_number(region)
    national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    digits = "".join(filter(str.isdigit, national))
    assert _accepted(digits)
    assert not _accepted(digits[:3])


def test_the_states_of_an_automaton_are_within_it():
    steps, accepts, starts, regions = phone_automaton(REGIONS)
    assert steps.shape == (len(accepts), 10)
    assert np.isin(steps, np.arange(-1, len(accepts))).all()
    assert sorted(sum(regions, ())) == sorted(REGIONS)
    assert len(starts) == len(regions) == 7, "the United States and Canada share a calling code"
