"""A tokenizer from outside, made into one that Loam can hold.

Taken are a `tokenizer.json`, a SentencePiece model (`*.model`), and the pair that GPT-2 came with
(`*merges.txt`, and `*vocab.json` beside it); any of them may be gzipped. What it lacks is told
before it is pinned: a token that ends a document, and tokens that no text can spell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import fsspec
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from llm import files
from llm.config_tokenizer import END_OF_TEXT
from llm.errors import ConfigError, DataError
from llm.sentencepiece_import import convert_sentencepiece
from llm.tokenizer import Tokenizer

# What ends a text in SentencePiece's models and in those made after them.
_USUAL_END = "</s>"


def import_tokenizer(url: str, end_of_text: str | None = None) -> bytes:
    """The `tokenizer.json` of the tokenizer at `url`, whose token `end_of_text` ends a document.

    A file that has `<|endoftext|>` is taken as it is. Else the token named, or `</s>`, goes by
    that name from then on and keeps its id; a template of special tokens around texts is left out.
    Raises ConfigError when there is no such file or token, DataError when it is no tokenizer, or
    one that some text stops, or one whose special tokens a text can spell.
    """
    name = url.removesuffix(".gz")
    if name.endswith(".model"):
        body = convert_sentencepiece(_read(url))
    elif name.endswith("merges.txt"):
        body = _gpt2(_read(_vocab_url(url)), _read(url))
    else:
        body = _read(url)
    body = _ending(body, end_of_text)
    tokenizer = Tokenizer.from_bytes(body)
    _check_takes_any_text(tokenizer, url)
    if spelled := _spelled(tokenizer):
        body = _out_of_reach(body, tokenizer.special_ids)
        tokenizer = Tokenizer.from_bytes(body)
        spelled = _spelled(tokenizer)
    if spelled:
        raise DataError(
            f"{url}: a text that spells {spelled[0]} would get that special token; take a "
            "tokenizer that splits or escapes it"
        )
    return body


def _read(url: str) -> bytes:
    try:
        with (
            files.explained(url, "reading"),
            fsspec.open(url, "rb", compression="infer") as file,
        ):
            body: bytes = file.read()
            return body
    except FileNotFoundError:
        raise ConfigError(f"tokenizer: there is no file at {url}") from None


def _vocab_url(merges_url: str) -> str:
    folder, slash, name = merges_url.rpartition("/")
    return folder + slash + name.replace("merges.txt", "vocab.json")


def _gpt2(vocab: bytes, merges: bytes) -> bytes:
    """GPT-2's two files as one (openai/gpt-2, src/encoder.py)."""
    try:
        ids: dict[str, int] = json.loads(vocab)
        lines = [line for line in merges.decode().split("\n") if line]
        pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines[1:])]
        tokenizer = tokenizers.Tokenizer(models.BPE(ids, pairs))
    except Exception as error:  # The library raises plain Exception.
        raise DataError(f"not a vocab.json and merges.txt as GPT-2 has them: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if END_OF_TEXT in ids:
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return tokenizer.to_str(pretty=False).encode()


def _ending(body: bytes, end_of_text: str | None) -> bytes:
    """`body` with its end-of-text token by the name of `<|endoftext|>`."""
    try:
        file: dict[str, Any] = json.loads(body)
        special = {token["content"] for token in file["added_tokens"] if token["special"]}
        vocabulary = file["model"]["vocab"]
        names = set(_names(vocabulary))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"not a tokenizer.json of Hugging Face's tokenizers: {error!r} stands in the way"
        ) from error
    name = end_of_text or (END_OF_TEXT if END_OF_TEXT in special else _USUAL_END)
    if name not in special:
        raise ConfigError(
            f"the tokenizer has no special token {name} to end a document with; set "
            f"tokenizer.end_of_text to one that it has: {', '.join(sorted(special)) or 'none'}"
        )
    if name == END_OF_TEXT:
        return body
    if END_OF_TEXT in special or END_OF_TEXT in names:
        raise ConfigError(
            f"tokenizer.end_of_text is {name}, but the tokenizer has {END_OF_TEXT}: leave it out"
        )
    for token in file["added_tokens"]:
        token["content"] = END_OF_TEXT if token["content"] == name else token["content"]
    if isinstance(vocabulary, dict):
        renamed: Any = {END_OF_TEXT if k == name else k: i for k, i in vocabulary.items()}
    else:
        renamed = [[END_OF_TEXT if k == name else k, score] for k, score in vocabulary]
    file["model"]["vocab"] = renamed
    file["post_processor"] = None
    return json.dumps(file, ensure_ascii=False, separators=(",", ":")).encode()


def _names(vocabulary: Any) -> Iterable[str]:
    return vocabulary if isinstance(vocabulary, dict) else (name for name, _ in vocabulary)


def _check_takes_any_text(tokenizer: Tokenizer, url: str) -> None:
    """Raises DataError where the library gives up on a character: it could stop any run later."""
    step = 0x800  # of which the surrogates are one
    places = (place for place in range(0, 0x110000, step) if place != 0xD800)
    try:
        tokenizer.encode_batch(["".join(map(chr, range(at, at + step))) for at in places])
    except BaseException as error:
        # What the library throws over a damaged table is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"{url}: tokenizers cannot encode every character with it ({error}): fetch it again, "
            "or take one that has a token for what it does not know"
        ) from error


def _spelled(tokenizer: Tokenizer) -> list[str]:
    """The special tokens that a text gets which spells them, but for the unknown one."""
    unknown = tokenizer.unknown_id
    special = {name: i for name, i in tokenizer.special_ids.items() if i != unknown}
    texts = [text for name in special for text in (name, f"a {name} b", f"a{name}b")]
    found = {int(i) for ids in tokenizer.encode_batch(texts) for i in ids}
    return [name for name, i in special.items() if i in found]


def _out_of_reach(body: bytes, names: Iterable[str]) -> bytes:
    """`body`, but texts are split after the first character of what spells a special token.

    Unigram takes any token of its vocabulary from text, and no other kind needs it.
    """
    tokenizer = tokenizers.Tokenizer.from_str(body.decode())
    spelled = "|".join(f"{re.escape(one[0])}(?={re.escape(one[1:])})" for one in names if one)
    split = pre_tokenizers.Split(Regex(spelled), behavior="isolated")
    before = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([before, split]) if before else split
    return tokenizer.to_str(pretty=False).encode()
