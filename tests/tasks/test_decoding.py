from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.decoding import looks_binary, parse_content_type, to_utf8

JAPANESE = "これは日本語の文章です。吾輩は猫である。名前はまだ無い。"
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастлива по-своему."
FRENCH = "Déjà l'été s'achève à la plage où naît une forêt rêvée, près d'Orléans."


def read(payload: bytes, charset: str | None = None) -> str | None:
    utf8 = to_utf8(payload, charset, max_bad_share=0.05, max_control_share=0.01)
    return None if utf8 is None else utf8.decode()


@pytest.mark.parametrize(
    "text, encoding",
    [
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (JAPANESE, "iso2022_jp"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "windows-1251"),
        (FRENCH, "windows-1252"),
        (FRENCH, "utf-16-le"),
        (FRENCH, "utf-8"),
    ],
)
def test_a_declared_encoding_is_read_from_header_and_from_meta_tag(text, encoding):
    body = text.encode(encoding)
    labels = {"iso2022_jp": "iso-2022-jp", "euc_jp": "euc-jp", "utf-16-le": "utf-16le"}
    label = labels.get(encoding, encoding)
    assert read(body, label) == text
    if not encoding.startswith("utf-16"):
        meta = f'<meta charset="{label}">'.encode()
        assert read(meta + body) == meta.decode() + text


def test_a_meta_tag_outranks_an_xml_declaration():
    text = f'<?xml version="1.0" encoding="UTF-8"?><meta charset="iso-8859-15">{FRENCH} Un œuf.'
    assert read(text.encode("iso-8859-15")) == text


def test_a_byte_order_mark_outranks_the_header():
    assert read(b"\xef\xbb\xbf" + FRENCH.encode(), "windows-1252") == FRENCH
    assert read(b"\xff\xfe" + FRENCH.encode("utf-16-le"), "utf-8") == FRENCH


def test_valid_utf8_is_utf8_whatever_the_server_says():
    assert read(RUSSIAN.encode(), "iso-8859-1") == RUSSIAN


def test_undeclared_legacy_encodings_are_detected():
    assert read(JAPANESE.encode("shift_jis")) == JAPANESE
    assert read(RUSSIAN.encode("windows-1251")) == RUSSIAN


def test_latin1_means_windows_1252_as_on_the_web():
    assert read("“quoted”".encode("windows-1252"), "iso-8859-1") == "“quoted”"


def test_a_page_cut_inside_a_character_keeps_all_but_that_character():
    cut = (RUSSIAN * 5).encode()[:-1]
    assert read(cut, "utf-8") == cut.decode("utf-8", "replace")


def test_an_unknown_charset_falls_through_to_the_next():
    assert read(FRENCH.encode(), "klingon-8") == FRENCH


def test_random_bytes_are_undecodable():
    rng = random.Random(0)
    for _ in range(50):
        assert read(bytes(rng.randrange(1, 256) for _ in range(2000))) is None


def test_content_types_are_taken_apart():
    assert parse_content_type('Text/HTML; charset="UTF-8"') == ("text/html", "utf-8")
    assert parse_content_type("text/plain") == ("text/plain", None)
    assert parse_content_type(" ") == (None, None)
    assert parse_content_type(None) == (None, None)


def test_binary_files_are_known_by_their_first_bytes():
    assert looks_binary(b"%PDF-1.7\n", None)
    assert looks_binary(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", None)
    assert not looks_binary("<p>été".encode("utf-16"), None)
    assert not looks_binary("<p>x".encode("utf-16-le"), "utf-16le")
    assert not looks_binary(b"<!doctype html>", None)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff")))
def test_utf8_text_comes_back_as_it_was(text):
    assert read(text.encode()) == text


@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "shift_jis", "utf-16", "x", ""]))
def test_no_bytes_raise(payload, charset):
    looks_binary(payload, charset)
    read(payload, charset)
