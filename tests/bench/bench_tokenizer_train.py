"""Learning 32k tokens of byte-level BPE: Loam's stage against the trainer of tokenizers."""

from __future__ import annotations

import json
import os

from tests.bench.harness import ONE_THREAD, Result, cpu_seconds
from tests.bench.inputs import english, multilingual, size_mb, web_text

TARGET = 1.0
VOCAB_SIZE = 32_000


def run(quick: bool) -> Result:
    """Loam uses the library's trainer, so that what is seen here is what feeding it costs."""
    os.environ.update(ONE_THREAD)
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from llm.bpe_fast import WORD_PATTERN
    from llm.config_tokenizer import TokenizerConfig
    from llm.tokenizer import train_tokenizer

    part = 0.7 if quick else 3.4
    texts = english(part) + web_text(part) + multilingual(part)
    config = TokenizerConfig(vocab_size=VOCAB_SIZE)

    def theirs() -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
        into_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, into_bytes])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            min_frequency=config.min_frequency,
            special_tokens=list(config.reserved_tokens),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    def ours() -> bytes:
        return train_tokenizer(iter(texts), config)

    ours_s = theirs_s = float("inf")
    # In turn, and each as often before the other as after it, since the same work swings by a
    # fifth on a busy machine.
    for _ in range(2):
        once, body = cpu_seconds(ours, 1)
        ours_s = min(ours_s, once)
        once, tokenizer = cpu_seconds(theirs, 2)
        theirs_s = min(theirs_s, once)
        once, body = cpu_seconds(ours, 1)
        ours_s = min(ours_s, once)
    model, reference = json.loads(body)["model"], json.loads(tokenizer.to_str())["model"]
    megabytes = size_mb(texts)
    return Result(
        ratio=theirs_s / ours_s,
        target=TARGET,
        ok=model["merges"] == reference["merges"],
        figures={
            "ours_mb_s": megabytes / ours_s,
            "peer_mb_s": megabytes / theirs_s,
            "input_mb": megabytes,
        },
        quality={
            "merges": len(model["merges"]),
            "same_merges": model["merges"] == reference["merges"],
        },
    )
