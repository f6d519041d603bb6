"""SentencePiece models (`x.model`, BPE or Unigram) as a `tokenizer.json` of the same ids.

The file is a protocol buffer, `sentencepiece_model.proto` of google/sentencepiece; the few fields
that decide the ids are read here. What `tokenizers` cannot do in the same way is refused. Two
differences stay. SentencePiece adds up the scores of Unigram in float32, so that of two ways to
split which are nearer than its rounding it may take the less likely; `tokenizers` adds in float64.
And where the model changes characters (nmt_nfkc), marks are put in Unicode's order before: text in
NFC, which is what Loam's extract stage gives, has them so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from llm.errors import DataError

SPACE = "▁"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What of a model decides its ids. A piece's id is its place."""

    pieces: tuple[Piece, ...]
    algorithm: int
    byte_fallback: bool
    charsmap: bytes
    dummy_prefix: bool
    squeeze_spaces: bool


def read_model(body: bytes) -> SentencePieceModel:
    """Raises DataError when `body` is no SentencePiece model, or one that cannot be followed."""
    try:
        model = _parsed(body)
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise DataError(f"not a SentencePiece model: {error}") from error
    odd = [piece.text for piece in model.pieces if piece.kind in (_USER_DEFINED, _UNUSED)]
    if odd:
        raise DataError(
            f"the SentencePiece model has user-defined or unused pieces ({odd[0]!r} and "
            f"{len(odd) - 1} more), which tokenizers would split by in another way; take the "
            "tokenizer.json that is published with it"
        )
    if model.algorithm not in (_UNIGRAM, _BPE):
        raise DataError("expected a SentencePiece model of type BPE or Unigram, not words or chars")
    return model


def convert_sentencepiece(body: bytes) -> bytes:
    """The `tokenizer.json` of a SentencePiece model. Raises DataError as `read_model` does."""
    model = read_model(body)
    try:
        built = _bpe(model) if model.algorithm == _BPE else _unigram(model)
        normalizer = _normalizer(model)
    except Exception as error:  # The library raises plain Exception.
        raise DataError(f"the SentencePiece model is damaged: {error}; fetch it again") from error
    tokenizer = tokenizers.Tokenizer(built)
    tokenizer.normalizer = normalizer
    if model.algorithm == _UNIGRAM and model.byte_fallback:
        # The library's Unigram takes the names of bytes from text, SentencePiece does not.
        spelled = Regex("<(?=0x[0-9A-F]{2}>)")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(spelled, behavior="isolated")
    # The space that was put first goes again; byte pieces become bytes, then characters.
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, decoders.Strip(" ", 1, 0)] if model.dummy_prefix else steps
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(piece.text, special=True, normalized=False)
            for piece in model.pieces
            if piece.kind in (_CONTROL, _UNKNOWN)
        ]
    )
    return tokenizer.to_str(pretty=False).encode()


def _bpe(model: SentencePieceModel) -> models.BPE:
    """SentencePiece joins the two neighbours that make the piece of the highest score."""
    ids = {piece.text: place for place, piece in enumerate(model.pieces)}
    normal = {piece.text: piece.score for piece in model.pieces if piece.kind == _NORMAL}
    merges = []
    for text in sorted(normal, key=lambda text: (-normal[text], ids[text])):
        splits = ((text[:i], text[i:]) for i in range(1, len(text)))
        merges += [(a, b) for a, b in splits if a in normal and b in normal]
    return models.BPE(
        ids,
        merges,
        unk_token=_unknown(model).text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePieceModel) -> models.Unigram:
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    return models.Unigram(pieces, model.pieces.index(_unknown(model)), model.byte_fallback)


def _unknown(model: SentencePieceModel) -> Piece:
    return next(piece for piece in model.pieces if piece.kind == _UNKNOWN)


def _normalizer(model: SentencePieceModel) -> normalizers.Sequence:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        # The library looks characters up in the map where SentencePiece looks for the longest
        # run of them: letters and marks written apart are to be put together before.
        steps += [normalizers.NFC(), normalizers.Precompiled(model.charsmap)]
    if model.squeeze_spaces:
        steps += [
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _parsed(body: bytes) -> SentencePieceModel:
    """Field numbers are those of the proto; what is absent has the proto's default."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] | None = None
    normalizer: dict[int, int | bytes] | None = None
    for number, value in _fields(body):
        if number == 1:
            piece = dict(_fields(_bytes(value)))
            (score,) = struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0")))
            pieces.append(Piece(_bytes(piece[1]).decode(), score, int(piece.get(3, _NORMAL))))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    if trainer is None or normalizer is None:
        raise ValueError("it does not say how it was trained or how text is normalized")
    if sum(piece.kind == _UNKNOWN for piece in pieces) != 1:
        raise ValueError("it has no unknown piece, or several")
    if trainer.get(24) or not normalizer.get(5, 1):
        raise ValueError("white space stands after words in it, or is not escaped")
    return SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=int(trainer.get(3, _UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=_bytes(normalizer.get(2, b"")),
        dummy_prefix=bool(normalizer.get(3, 1)),
        squeeze_spaces=bool(normalizer.get(4, 1)),
    )


def _fields(body: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message, in the protocol buffers' wire format."""
    at = 0
    while at < len(body):
        key, at = _varint(body, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(body, at)
            yield key >> 3, number
            continue
        if wire == 2:
            size, at = _varint(body, at)
        else:
            size = {1: 8, 5: 4}[wire]
        if at + size > len(body):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, body[at : at + size]
        at += size


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = body[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError("a number in it has more than 64 bits")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field holds a number where bytes are expected")
    return value
