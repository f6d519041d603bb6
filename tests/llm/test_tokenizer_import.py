"""Tokenizers from outside: SentencePiece's models, GPT-2's files, anyone's `tokenizer.json`."""

from __future__ import annotations

import gzip
import io
import json
import time
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models

from llm.errors import ConfigError, DataError
from llm.sentencepiece_import import convert_sentencepiece
from llm.tokenizer import Tokenizer
from llm.tokenizer_import import import_tokenizer
from tests.llm.test_tokenizer import gpt2, sentences
from tests.shared_data import shared_data

ODD = [
    *("", " ", "  two  spaces  ", "tab\tand\n\nlines   end ", "水车 🌾🌾 \u200b", "½ ﬁ Ⅷ"),
    "a <s> b </s> <unk> <0x41>",
]
SETTINGS = {
    "as it comes": {},
    "byte fallback": {"byte_fallback": True},
    "text as it is": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
    },
    "no prefix": {"add_dummy_prefix": False},
}
KINDS = [(kind, name) for kind in ("bpe", "unigram") for name in SETTINGS]


@cache
def composed() -> list[str]:
    """Sentences in 75 languages in NFC, which is what the extract stage gives."""
    return [unicodedata.normalize("NFC", text) for text in sentences()]


@cache
def trained(kind: str, name: str = "as it comes") -> bytes:
    """A SentencePiece model, by SentencePiece; it does not know every character."""
    return sentencepiece_model(model_type=kind, character_coverage=0.995, **SETTINGS[name])


def sentencepiece_model(**options: object) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(composed()[::2]),
        model_writer=out,
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 4000, **options},
    )
    return out.getvalue()


def imported(tmp_path: Path, body: bytes, name: str = "x.model", end: str | None = None):
    (tmp_path / name).write_bytes(body)
    return Tokenizer.from_bytes(import_tokenizer(str(tmp_path / name), end))


@pytest.mark.parametrize("kind, name", KINDS)
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(tmp_path, kind: str, name: str):
    """Of Unigram's, all but near-equals: the few others are likelier than SentencePiece's own, by
    less than what float32 rounds off when so many scores are added up."""
    body = trained(kind, name)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=body)
    ours = imported(tmp_path, body)
    texts = [*composed(), "\n".join(composed()[:100]), *ODD[:-1]]
    pairs = zip(map(np.ndarray.tolist, ours.encode_batch(texts)), theirs.encode(texts), strict=True)
    different = [(mine, other) for mine, other in pairs if mine != other]
    assert len(different) <= (0 if kind == "bpe" else len(texts) / 200)
    for mine, other in different:
        assert sum(map(theirs.is_unknown, mine)) == sum(map(theirs.is_unknown, other))
        assert sum(map(theirs.is_byte, mine)) == sum(map(theirs.is_byte, other))
        more = sum(map(theirs.get_score, mine)) - sum(map(theirs.get_score, other))
        step = np.spacing(np.float32(abs(sum(map(theirs.get_score, other)))))
        assert 0 <= more <= len(other) * step
    assert (ours.eot_id, ours.vocab_size) == (theirs.eos_id(), theirs.vocab_size())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_that_knows_bytes_gives_the_text_back(tmp_path, kind: str):
    ours = imported(tmp_path, trained(kind, "text as it is"))
    texts = composed()[::5] + ODD
    assert [ours.decode(ids) for ids in ours.encode_batch(texts)] == texts


@pytest.mark.parametrize("kind, name", KINDS)
def test_no_text_spells_a_special_token_of_an_imported_model(tmp_path, kind: str, name: str):
    ours = imported(tmp_path, trained(kind, name))
    names = [*ours.special_ids, "</s>", "<pad>"]
    forbidden = set(ours.special_ids.values()) - {ours.unknown_id}
    texts = [f"{a}{one}{b}" for one in names for a in ("", "x", " ") for b in ("", "y", " ")]
    for ids in ours.encode_batch([*texts, "".join(names), *ODD]):
        assert not forbidden & set(ids.tolist())


@settings(deadline=None)
@given(
    st.text(st.sampled_from(sorted(set("".join(composed()[:200])))) | st.sampled_from(" \n▁<>0x"))
)
def test_any_text_gets_the_ids_of_sentencepiece(text: str):
    body = trained("bpe", "text as it is")
    theirs, ours = pair(body)
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)


@cache
def pair(body: bytes) -> tuple[sentencepiece.SentencePieceProcessor, tokenizers.Tokenizer]:
    """A model in SentencePiece and in tokenizers."""
    ours = tokenizers.Tokenizer.from_str(convert_sentencepiece(body).decode())
    ours.encode_special_tokens = True
    return sentencepiece.SentencePieceProcessor(model_proto=body), ours


def test_what_tokenizers_cannot_follow_is_refused():
    user = sentencepiece_model(model_type="bpe", user_defined_symbols=["<sep>"])
    with pytest.raises(DataError, match=r"user-defined or unused pieces \('<sep>' and 0 more"):
        convert_sentencepiece(user)
    words = sentencepiece_model(model_type="char", vocab_size=1000, hard_vocab_limit=False)
    with pytest.raises(DataError, match="BPE or Unigram"):
        convert_sentencepiece(words)
    suffix = sentencepiece_model(model_type="unigram", treat_whitespace_as_suffix=True)
    with pytest.raises(DataError, match="white space"):
        convert_sentencepiece(suffix)


@given(st.binary() | st.integers(0, 2000).map(lambda n: trained("bpe")[:n]))
def test_what_is_no_sentencepiece_model_is_refused(body: bytes):
    with pytest.raises(DataError, match="SentencePiece model"):
        convert_sentencepiece(body[:2000])


def field(number: int, value: bytes) -> bytes:
    """A field of bytes, fewer than 128, of a message."""
    return bytes([number << 3 | 2, len(value)]) + value


def model_with_map(charsmap: bytes) -> bytes:
    """A SentencePiece model of the pieces that it must have and the letter a."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("a", 1)]
    body = b"".join(field(1, field(1, text.encode()) + bytes([24, kind])) for text, kind in pieces)
    return body + field(2, b"") + field(3, field(2, charsmap))


def test_a_number_without_end_in_a_sentencepiece_model_takes_no_time_with_its_square():
    body = b"\xff" * 3_000_000
    began = time.process_time()
    with pytest.raises(DataError, match="64 bits"):
        convert_sentencepiece(body)
    assert time.process_time() - began < 1


def test_a_tokenizer_that_some_text_stops_is_refused(tmp_path):
    file = tmp_path / "x.model"
    file.write_bytes(model_with_map(b"no map"))
    with pytest.raises(DataError, match=r"the SentencePiece model is damaged: .*fetch it again"):
        import_tokenizer(str(file))
    file.write_bytes(model_with_map(b"\x08\0\0\0" + b"leads astray"))
    with pytest.raises(DataError, match=r"x.model: tokenizers cannot encode every character"):
        import_tokenizer(str(file))
    words = tokenizers.Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<unk>"))
    words.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(DataError, match=r"words.json: tokenizers cannot encode every character"):
        import_tokenizer(str(tmp_path / "words.json"))


def test_a_vocabulary_that_is_none_is_refused(tmp_path):
    added = [{"content": "</s>", "special": True}]
    body = json.dumps({"added_tokens": added, "model": {"type": "BPE", "vocab": [1, 2]}})
    (tmp_path / "odd.json").write_text(body)
    with pytest.raises(DataError, match=r"not a tokenizer.json"):
        import_tokenizer(str(tmp_path / "odd.json"))


def test_gpt2_is_read_from_its_two_files():
    ours = Tokenizer.from_bytes(import_tokenizer(str(shared_data("tokenizer/gpt2-merges.txt.gz"))))
    texts = sentences()[:100]
    assert ours.fast is not None
    for mine, theirs in zip(ours.encode_batch(texts), gpt2().encode_batch(texts), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert ours.encode_batch(["Hello world"])[0].tolist() == [15496, 995]
    assert ours.special_ids == {"<|endoftext|>": 50256}


def test_a_tokenizer_that_can_be_held_is_held_byte_for_byte():
    path = shared_data("tokenizer/pythia-20B_tokenizer.json.gz")
    assert import_tokenizer(str(path)) == gzip.decompress(path.read_bytes())


def outside(*special: str) -> bytes:
    tokenizer = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in special])
    return tokenizer.to_str().encode()


def test_the_token_named_ends_a_document_and_keeps_its_id(tmp_path):
    body = outside("[CLS]", "[SEP]")
    ours = imported(tmp_path, body, "tokenizer.json", "[SEP]")
    assert (ours.eot_id, ours.special_ids) == (3, {"[CLS]": 2, "<|endoftext|>": 3})
    assert imported(tmp_path, outside("<s>", "</s>"), "tokenizer.json").eot_id == 3


def test_a_tokenizer_without_an_end_or_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no special token </s> .* it has: \[CLS\], \[SEP\]"):
        imported(tmp_path, outside("[CLS]", "[SEP]"), "tokenizer.json")
    with pytest.raises(ConfigError, match=r"no special token \[END\]"):
        imported(tmp_path, outside("[CLS]"), "tokenizer.json", "[END]")
    with pytest.raises(ConfigError, match=r"has <\|endoftext\|>: leave it out"):
        imported(tmp_path, outside("</s>", "<|endoftext|>"), "tokenizer.json", "</s>")
    for body in (b"", b"[]", b"{}", json.dumps({"added_tokens": [], "model": 1}).encode()):
        with pytest.raises(DataError, match=r"not a tokenizer\.json"):
            imported(tmp_path, body, "tokenizer.json")
    with pytest.raises(ConfigError, match=r"there is no file at .*absent\.json"):
        import_tokenizer(str(tmp_path / "absent.json"))
    (tmp_path / "merges.txt").write_text("#version\n")
    with pytest.raises(ConfigError, match=r"there is no file at .*vocab\.json"):
        import_tokenizer(str(tmp_path / "merges.txt"))
