"""How the CLI shows what a model writes: as it comes, with log-probabilities, or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flows import showing

if TYPE_CHECKING:
    from llm.generate import Completion, Piece
    from llm.tokenizer import Tokenizer

Shown = Callable[["Piece"], str]


def show_pieces(pieces: Iterable[Piece], begins: Sequence[str], shown: Shown) -> None:
    """Print texts, one after the other, while all are being written: the first as it comes.

    Each follows what it begins with, and a line stands between two.
    """
    n = len(begins)
    waiting: list[list[str]] = [[] for _ in range(n)]
    ended = [False] * n
    at = 0
    _write(begins[0])
    for piece in pieces:
        waiting[piece.row].append(shown(piece))
        ended[piece.row] = piece.finish is not None
        while at < n:
            _write("".join(waiting[at]))
            waiting[at].clear()
            if not ended[at]:
                break
            at += 1
            _write(f"\n\n---\n\n{begins[at]}" if at < n else "\n")


def _write(text: str) -> None:
    print(showing.printable(text), end="", flush=True)


def shown_logprobs(tokenizer: Tokenizer) -> Shown:
    """A token on a line of its own: its log-probability, and the likeliest ones in its place."""

    def shown(piece: Piece) -> str:
        if piece.token is None or piece.logprob is None:
            return "(end of text)"
        likeliest = "  ".join(f"{tokenizer.decode([i])!r} {p:.3f}" for i, p in piece.likeliest)
        line = f"{piece.logprob:8.3f}  {tokenizer.decode([piece.token])!r:16}  {likeliest}"
        return line.rstrip() + ("" if piece.finish else "\n")

    return shown


def described(completions: Sequence[Completion], tokenizer: Tokenizer) -> dict[str, Any]:
    """The texts for JSON, why each ended, and its tokens where log-probabilities were told."""
    found: dict[str, Any] = {
        "texts": [one.text for one in completions],
        "finish": [one.finish for one in completions],
    }
    if any(one.logprobs for one in completions):
        found["tokens"] = [_tokens(one, tokenizer) for one in completions]
    return found


def _tokens(completion: Completion, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    def described_token(i: int, logprob: float) -> dict[str, Any]:
        return {"id": i, "token": tokenizer.decode([i]), "logprob": logprob}

    each = zip(completion.tokens, completion.logprobs, completion.likeliest, strict=True)
    return [
        described_token(token, logprob)
        | {"likeliest": [described_token(i, p) for i, p in likeliest]}
        for token, logprob, likeliest in each
    ]
