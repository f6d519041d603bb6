"""Text out of tokens that come one at a time: whole characters only, and nothing after a stop."""

from __future__ import annotations

from collections.abc import Sequence

from llm.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""


class TextStream:
    """The text that follows a prompt, as far as it is certain after each token.

    Held back are the bytes of a character whose last ones are still to come, and what may turn out
    to begin a stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._held = ""
        # The tokens that are decoded together: those since the last whole character but one, so
        # that what a decoder does at a text's beginning (it may drop a space) is done before.
        self._ids = list(prompt)
        self._n_before = len(self._ids)
        self._n_told = len(tokenizer.decode(self._ids).rstrip(REPLACEMENT))
        self.stopped = False
        """Whether a stop string was found; the text ended before it."""

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith(REPLACEMENT):
            return ""
        new = text[self._n_told :]
        self._ids = self._ids[self._n_before :]
        self._n_before = len(self._ids)
        self._n_told = len(self._tokenizer.decode(self._ids))
        return self._before_stop(new, is_last=False)

    def end(self) -> str:
        """What was held back, as no token follows."""
        if self.stopped:
            return ""
        return self._before_stop(self._tokenizer.decode(self._ids)[self._n_told :], is_last=True)

    def _before_stop(self, new: str, *, is_last: bool) -> str:
        text = self._held + new
        # The stop string that is complete first, whatever the tokens are.
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        n_held = 0 if is_last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may begin `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
