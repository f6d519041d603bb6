"""The tokenizer's settings, and the tokens that no text can spell."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llm.config import Config

END_OF_TEXT = "<|endoftext|>"
RESERVED = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>")
UNKNOWN = "<|unknown|>"
N_BYTES = 256


class TokenizerConfig(Config):
    """How a tokenizer is trained. Ids begin with the reserved tokens, then the spare ones."""

    kind: Literal["bpe", "unigram", "wordpiece", "characters"] = "bpe"
    """`bpe`: byte-level BPE (Radford et al. 2019, section 2.2), which can spell any text.
    `unigram`: the likeliest pieces of bytes (Kudo 2018); it trains differently each time, so that
    only its pin can be relied on. `wordpiece`: the longest pieces of bytes first (Wu et al. 2016);
    words of over 1,000 bytes are unknown. `characters`: one token for each character seen, as in
    karpathy/char-rnn."""

    vocab_size: int = Field(default=8192, ge=1)
    """Most tokens, the reserved ones included; a small corpus may yield fewer. 2^13 keeps the
    embeddings of a model of a few million parameters a minor part of it (Tao et al. 2024,
    "Scaling Laws with Vocabulary", find that the best vocabulary grows with the model)."""

    min_frequency: int = Field(default=2, ge=1)
    """How often a pair must occur to be merged: what was seen once teaches nothing. 2 is the
    default of ByteLevelBPETokenizer.train in Hugging Face's tokenizers. `unigram` has its own
    measure, and `characters` keeps all."""

    n_spare_tokens: int = Field(default=16, ge=0)
    """Reserved tokens without a meaning yet, so that later training can name new ones without
    changing the size of the model; our choice, after the reserved tokens of Llama 3."""

    @property
    def reserved_tokens(self) -> tuple[str, ...]:
        """The tokens with ids 0, 1, 2, ..., in this order, whatever the corpus."""
        return RESERVED + tuple(f"<|spare_{i}|>" for i in range(self.n_spare_tokens))

    @model_validator(mode="after")
    def _holds_every_byte(self) -> Self:
        n_reserved = len(self.reserved_tokens) + (self.kind == "wordpiece")  # and the unknown one
        if self.kind != "characters" and self.vocab_size < n_reserved + N_BYTES:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but {self.kind} needs at least "
                f"{n_reserved + N_BYTES}: {N_BYTES} bytes and {n_reserved} reserved tokens"
            )
        return self
