"""fastText classifiers over documents: which language a text is in, how good it looks.

The models are pins: bytes brought from outside and held by digest. `LanguageModel` is for
lid.176 (Joulin et al., "Bag of tricks for efficient text classification", 2016), whose 176 labels
are Wikipedia's codes: ISO 639-1 where there is one, else ISO 639-3.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

from llm.errors import DataError

LABEL = "__label__"

# Wikipedia's one code that means another language in ISO 639-3 (there `als` is Tosk Albanian).
_ISO = {"als": "gsw"}


class FastTextModel:
    """A supervised fastText model held in memory, from the bytes of its .bin or .ftz file.

    A document is one line to fastText: line breaks count as spaces, and the whole text is read.
    """

    def __init__(self, payload: bytes) -> None:
        """Raises DataError where `payload` is no supervised fastText model."""
        import fasttext

        # The library reads files alone, and crashes on some that are not models: look first.
        magic = int.from_bytes(payload[:4], "little")
        if magic != 793712314:
            raise DataError(
                "found no fastText model (its first four bytes differ); expected the bytes of a "
                ".bin or .ftz file such as lid.176.ftz: check the path, URL and sha256"
            )
        handle, path = tempfile.mkstemp(suffix=".fasttext")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
            self._model = fasttext.load_model(path)
        except ValueError as error:
            raise DataError(f"fastText refuses the model: {error}; is the file whole?") from error
        finally:
            os.unlink(path)

    def top(self, texts: Sequence[str]) -> tuple[list[str], list[float]]:
        """The most probable label of each text, without its prefix, and its probability."""
        if not texts:
            return [], []
        labels, scores = self._model.predict([_line(text) for text in texts], k=1)
        names = [row[0].removeprefix(LABEL) for row in labels]
        return names, [_probability(row[0]) for row in scores]

    def probability(self, texts: Sequence[str], label: str) -> list[float]:
        """The probability of `label` for each text. Raises DataError for an unknown label."""
        name, known = LABEL + label, list(self._model.labels)
        if name not in known:
            found = ", ".join(sorted(item.removeprefix(LABEL) for item in known)[:8])
            raise DataError(f"the classifier has no label {label!r}; it knows {found}")
        if not texts:
            return []
        labels, scores = self._model.predict([_line(text) for text in texts], k=len(known))
        return [
            _probability(dict(zip(names, values, strict=True)).get(name, 0.0))
            for names, values in zip(labels, scores, strict=True)
        ]


class LanguageModel(FastTextModel):
    """lid.176, telling languages apart by their ISO codes."""

    def predict(self, texts: Sequence[str]) -> tuple[list[str], list[float]]:
        """The language of each text and its probability; of a blank text, "" and 0."""
        codes, scores = self.top(texts)
        for i, text in enumerate(texts):
            if not text.strip():
                codes[i], scores[i] = "", 0.0
        return [_ISO.get(code, code) for code in codes], scores


def _line(text: str) -> str:
    return text.replace("\n", " ")


def _probability(score: float) -> float:
    # Single precision leaves some a hair above 1; 6 decimals as every signal.
    return round(min(max(float(score), 0.0), 1.0), 6)
