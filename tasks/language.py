"""fastText classifiers over documents: which language a text is in, how good it looks, its topic.

The models are pins: bytes brought from outside or learnt once, and held by digest. `LanguageModel`
is for lid.176 (Joulin et al., "Bag of tricks for efficient text classification", 2016), whose 176
labels are Wikipedia's codes: ISO 639-1 where there is one, else ISO 639-3.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import DataError
from tasks.fasttext_file import read_fasttext

# Wikipedia's one code that means another language in ISO 639-3 (there `als` is Tosk Albanian).
_ISO = {"als": "gsw"}


class FastTextModel:
    """A supervised fastText model held in memory, from the bytes of its .bin or .ftz file.

    It says what the library says; line breaks count as spaces, and the whole text is read.
    `texts` are Arrow strings without nulls throughout.
    """

    def __init__(self, payload: bytes) -> None:
        """Raises DataError where `payload` is no supervised fastText model."""
        self._model = read_fasttext(payload)

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels, without their prefix."""
        return self._model.labels

    def top(self, texts: pa.Array) -> tuple[list[str], list[float]]:
        """The most probable label of each text and its probability; "" and 0 where a text holds
        nothing that the model knows."""
        found = self._probabilities(texts)
        best = found.argmax(axis=1)
        scores = found[np.arange(len(found)), best]
        names = [self.labels[i] if score else "" for i, score in zip(best, scores, strict=True)]
        return names, scores.tolist()

    def probability(self, texts: pa.Array, label: str) -> npt.NDArray[np.float64]:
        """The probability of `label` for each text. Raises DataError for an unknown label."""
        if label not in self.labels:
            known = ", ".join(sorted(self.labels)[:8])
            raise DataError(f"the classifier has no label {label!r}; it knows {known}")
        return self._probabilities(texts)[:, self.labels.index(label)]

    def _probabilities(self, texts: pa.Array) -> npt.NDArray[np.float64]:
        """(texts, labels), rounded to 6 decimals as every signal is."""
        from tasks.kernels.classify import flat_probabilities, hidden_states, tree_probabilities

        model = self._model
        hidden = hidden_states(model.input, *_buffers(texts))
        found: npt.NDArray[np.float64]
        if model.children is not None:
            found = tree_probabilities(hidden, model.output, model.children)
        else:
            found = flat_probabilities(hidden, model.output, model.one_of)
        found = np.clip(np.nan_to_num(found), 0.0, 1.0)
        return found.round(6)


WINDOW = 200
"""Characters at the beginning, the middle and the end of a text that tell its language."""


class LanguageModel(FastTextModel):
    """lid.176, telling languages apart by their ISO codes."""

    def predict(self, texts: pa.Array) -> tuple[list[str], list[float]]:
        """The language of each text and its probability; of a blank text, "" and 0.

        Of a long text only its `language_windows` are read.
        """
        codes, scores = self.top(language_windows(texts))
        blank = pc.equal(pc.utf8_trim_whitespace(texts), "")
        for i in np.flatnonzero(blank.to_numpy(zero_copy_only=False)):
            codes[i], scores[i] = "", 0.0
        return [_ISO.get(code, code) for code in codes], scores


def language_windows(texts: pa.Array) -> pa.Array:
    """What of each text tells its language: three windows of 200 characters, or all of a text that
    is not longer than they are. Line breaks are spaces."""
    from tasks.kernels.windows import cut_windows

    starts, lines = cut_windows(*_buffers(texts), WINDOW)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(starts), pa.py_buffer(lines))


def _buffers(texts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Where each text starts and ends (texts + 1), and the bytes."""
    column = texts.cast(pa.large_string())
    _, offsets, data = column.buffers()
    bounds = np.zeros(1, np.int64)
    if len(column):
        bounds = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1]
    return bounds, np.frombuffer(data or b"", np.uint8)
