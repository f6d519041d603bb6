"""Reading the library fastText's files of supervised models, .bin and quantized .ftz.

The format is what `FastText::saveModel` of the library writes, version 12; numbers are
little-endian. Models are read once and applied by `tasks/kernels/classify.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm.errors import DataError

if TYPE_CHECKING:
    from tasks.kernels.classify import InputLayer

Matrix = npt.NDArray[np.float32]
LABEL = "__label__"

_MAGIC, _VERSION, _SUPERVISED = 793712314, 12, 3
_TREE, _SOFTMAX = 1, 3
_CENTROIDS = 256
# Longest character n-gram of a model: a bound, so that a file cannot ask for any amount of work.
_LONGEST_NGRAM = 64


@dataclass(frozen=True)
class Classifier:
    """A supervised model: its labels without their prefix, and its layers.

    With `children` the output is a tree (hierarchical softmax); else `one_of` says whether it is a
    softmax or a sigmoid for each label.
    """

    labels: tuple[str, ...]
    input: InputLayer
    output: Matrix
    children: npt.NDArray[np.int32] | None
    one_of: bool


def read_fasttext(payload: bytes) -> Classifier:
    """The model in the bytes of a file.

    Whatever it says is checked before it is applied, since compiled code looks rows up unchecked.

    Raises:
        DataError: these are not the bytes of such a file, or not all of them.
    """
    if int.from_bytes(payload[:4], "little") != _MAGIC:
        raise DataError(
            "found no fastText model (its first four bytes differ); expected the bytes of a "
            ".bin or .ftz file such as lid.176.ftz: check the path, URL and sha256"
        )
    try:
        return _read(_Bytes(payload))
    except (ValueError, IndexError) as error:
        raise DataError(f"the fastText model is damaged: {error}; is the file whole?") from error


class _Bytes:
    """Takes values from the front of a file."""

    def __init__(self, payload: bytes) -> None:
        self.payload, self.place = payload, 0

    def numbers(self, kind: str, count: int) -> npt.NDArray[Any]:
        found = np.frombuffer(self.payload, kind, count, self.place)
        self.place += found.nbytes
        return found

    def ints(self, count: int, kind: str = "<i4") -> list[int]:
        return [int(value) for value in self.numbers(kind, count)]

    def word(self) -> bytes:
        start = self.place
        self.place = self.payload.index(b"\0", start) + 1
        return self.payload[start : self.place - 1]


def _read(file: _Bytes) -> Classifier:
    from tasks.kernels.classify import InputLayer, entry_slots

    _, version = file.ints(2)
    (dim, _, _, _, _, word_run, loss, kind, buckets, shortest, longest, _) = file.ints(12)
    file.numbers("<f8", 1)
    if (version, kind) != (_VERSION, _SUPERVISED):
        raise DataError(
            f"found a fastText model of format {version} and kind {kind}; expected a supervised "
            f"one ({_SUPERVISED}) of format {_VERSION}: save it with a current fastText"
        )
    n_entries, n_words, n_labels = file.ints(3)
    _, n_kept = file.ints(2, "<i8")
    fits = n_entries == n_words + n_labels and min(dim, n_words, n_labels) > 0
    if not fits or not 0 <= longest <= _LONGEST_NGRAM or buckets < (longest > 0 or word_run > 1):
        raise ValueError("its settings and counts are none that the library writes")
    entries: list[bytes] = []
    counts: list[int] = []
    for _ in range(n_entries):
        entries.append(file.word())
        counts += file.ints(1, "<i8")
        file.place += 1
    kept, places = _pruned(file, n_kept, buckets)
    rows, output = _matrix(file), _matrix(file)
    n_rows = n_words + (buckets if n_kept < 0 else n_kept)
    shapes = (rows.shape, output.shape)
    if file.place != len(file.payload) or shapes != ((n_rows, dim), (n_labels, dim)):
        raise ValueError("its parts do not fit together")
    # Numba compiles for read-only arrays, which a file's bytes are, and no second time.
    rows.flags.writeable = output.flags.writeable = False
    starts = np.cumsum([0, *map(len, entries)])
    words = np.frombuffer(b"".join(entries), np.uint8)
    end = entries.index(b"</s>") if b"</s>" in entries[:n_words] else -1
    layer = InputLayer(
        words, starts, entry_slots(words, starts), n_words, end, buckets, shortest, longest,
        word_run, kept, places, rows.ravel(), dim,
    )  # fmt: skip
    labels = tuple(entry.decode().removeprefix(LABEL) for entry in entries[n_words:])
    children = _tree(counts[n_words:]) if loss == _TREE else None
    return Classifier(labels, layer, output, children, loss == _SOFTMAX)


def _pruned(
    file: _Bytes, n_kept: int, buckets: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Which buckets a model has kept, as bits, and where if it was pruned."""
    if n_kept < 0:
        return np.full(buckets // 8 + 1, 255, np.uint8), np.empty(0, np.int32)
    pairs = file.numbers("<i4", 2 * n_kept).reshape(-1, 2)
    if len(pairs) and (pairs.min() < 0 or pairs[:, 1].max() >= n_kept):
        raise ValueError("it leads to rows that it does not have")
    flags, places = np.zeros(buckets, np.bool_), np.zeros(buckets, np.int32)
    flags[pairs[:, 0]] = True
    places[pairs[:, 0]] = pairs[:, 1]
    return np.packbits(flags, bitorder="little"), places


def _matrix(file: _Bytes) -> Matrix:
    """(rows, dim), decoded where it was stored as codes of a product quantizer."""
    if not file.ints(1, "u1")[0]:
        n_rows, dim = file.ints(2, "<i8")
        return file.numbers("<f4", n_rows * dim).reshape(n_rows, dim)
    (normed,) = file.ints(1, "u1")
    n_rows, dim = file.ints(2, "<i8")
    (size,) = file.ints(1)
    codes = file.numbers("u1", size).reshape(n_rows, -1)
    decoded = _decoded(file, codes)
    if normed:
        norms = file.numbers("u1", n_rows).reshape(n_rows, 1)
        decoded *= _decoded(file, norms)
    return np.ascontiguousarray(decoded)


def _decoded(file: _Bytes, codes: npt.NDArray[np.uint8]) -> Matrix:
    """The vectors that codes (rows, parts) stand for, with the quantizer that comes next."""
    dim, n_parts, width, last_width = file.ints(4)
    centroids = file.numbers("<f4", dim * _CENTROIDS)
    parts: list[Matrix] = []
    place = 0
    for part in range(n_parts):
        here = last_width if part == n_parts - 1 else width
        table = centroids[place : place + _CENTROIDS * here].reshape(_CENTROIDS, here)
        parts.append(table[codes[:, part]])
        place += _CENTROIDS * here
    return np.concatenate(parts, axis=1)


def _tree(counts: list[int]) -> npt.NDArray[np.int32]:
    """Huffman's tree over labels in descending order of count: children (labels - 1, 2)."""
    n = len(counts)
    weights = [*counts, *[10**15] * (n - 1)]
    children: list[list[int]] = []
    leaf, inner = n - 1, n
    for _ in range(n - 1):
        pair: list[int] = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[inner]:
                pair.append(leaf)
                leaf -= 1
            else:
                pair.append(inner)
                inner += 1
        weights[n + len(children)] = sum(weights[node] for node in pair)
        children.append(pair)
    return np.array(children, np.int32).reshape(-1, 2)
