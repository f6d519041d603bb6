"""Encoding with 32k tokens of byte-level BPE: Loam against `encode_batch` of tokenizers."""

from __future__ import annotations

import os

import pyarrow as pa

from tests.bench.harness import ONE_THREAD, Result, cpu_seconds
from tests.bench.inputs import english, multilingual, size_mb, web_text

TARGET = 5.0
VOCAB_SIZE = 32_000


def run(quick: bool) -> Result:
    """The same texts on both sides, a third each of English prose, of web pages and of 75
    languages; tokens as arrays on our side, as the library's own objects on the other. Ours again
    with digests and lengths as a table, which is what the stage does, is `stage_mb_s`."""
    os.environ.update(ONE_THREAD)
    import tokenizers

    from llm.config_tokenizer import TokenizerConfig
    from llm.tokenizer import Tokenizer, train_tokenizer
    from tasks.tokenise import tokens_of

    part = 1.0 if quick else 3.4
    texts = english(part) + web_text(part) + multilingual(part)
    megabytes = size_mb(texts)
    body = train_tokenizer(texts[::2] if quick else texts, TokenizerConfig(vocab_size=VOCAB_SIZE))
    theirs = tokenizers.Tokenizer.from_str(body.decode())
    theirs.encode_special_tokens = True
    ours = Tokenizer.from_bytes(body)
    ours.encode_batch(["ready"])
    documents = pa.table({"id": list(map(str, range(len(texts)))), "text": texts})

    repeats = 3 if quick else 2
    # In turn, so that a busy moment of the machine does not meet one side only.
    seconds = {"theirs": float("inf"), "ours": float("inf"), "stage": float("inf")}
    for _ in range(repeats):
        once, encodings = cpu_seconds(
            lambda: theirs.encode_batch(texts, add_special_tokens=False), 1
        )
        seconds["theirs"] = min(seconds["theirs"], once)
        once, encoded = cpu_seconds(lambda: ours.encode_batch(texts), 1)
        seconds["ours"] = min(seconds["ours"], once)
        once, _ = cpu_seconds(lambda: tokens_of(documents, ours), 1)
        seconds["stage"] = min(seconds["stage"], once)
    different = sum(
        ids.tolist() != encoding.ids for ids, encoding in zip(encoded, encodings, strict=True)
    )
    return Result(
        ratio=seconds["theirs"] / seconds["ours"],
        target=TARGET,
        ok=different == 0 and ours.fast is not None,
        figures={
            "ours_mb_s": megabytes / seconds["ours"],
            "stage_mb_s": megabytes / seconds["stage"],
            "peer_mb_s": megabytes / seconds["theirs"],
            "input_mb": megabytes,
        },
        quality={
            "documents": len(texts),
            "different_documents": different,
            "tokens": sum(map(len, encoded)),
        },
    )
