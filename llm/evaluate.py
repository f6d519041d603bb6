"""How well a model predicts a split, beside what needs no model at all.

The stream that is scored is that of `llm.data.validation_windows`: every token of the split once,
the `<|endoftext|>` between documents among them (a model must say where a text ends), each with
at most T tokens of context. Bits per byte divides the whole cost, the eots' included, by the
UTF-8 bytes of the documents' text, so that models with different tokenizers compare.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from llm.data import IGNORED, Prepared, validation_windows
from llm.errors import DataError
from llm.parallel import World, sum_over_ranks

_CHUNK = 1 << 22  # Tokens counted at a time.


@dataclass(frozen=True)
class Evaluation:
    """What predicting a text cost, on average and in all."""

    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    n_tokens: int
    """Tokens predicted, eots included."""
    n_bytes: int
    """UTF-8 bytes of the text that they stand for; an eot stands for none."""


def evaluate(
    model: torch.nn.Module,
    prepared: Prepared,
    *,
    context_length: int,
    batch_size: int,
    document_mask: bool = False,
    max_windows: int | None = None,
    device: torch.device | str = "cpu",
    world: World | None = None,
) -> Evaluation:
    """The cost of the split under `model(tokens_BT) -> logits_BTV`, in float32.

    With `document_mask` it is called with `documents_BT` as well and sees each document alone, as
    one that was so trained must be.
    `max_windows` (None or 0: all) scores only the first windows: a random sample of documents,
    because ids are hashes, and the same each time. The bytes of a document that it cuts off count
    in proportion to its tokens. The ranks of a `world` share the windows of each batch, and all
    get the whole cost. Raises DataError when there is nothing to predict.
    """
    world = world or World.single()
    windows = validation_windows(prepared, context_length)
    n_windows = min(len(windows), max_windows or len(windows))
    was_training = model.training
    model.eval()
    nats = 0.0
    with torch.no_grad():
        for first in range(0, n_windows, batch_size):
            rows = np.arange(first, min(first + batch_size, n_windows))
            mine = np.array_split(rows, world.world_size)[world.rank]
            inputs_BT, targets_BT = (
                torch.from_numpy(x).to(device)
                for x in windows.take(mine if len(mine) else rows[:1])
            )
            seen = _documents(inputs_BT, prepared.eot_id) if document_mask else {}
            # All ranks run the model equally often: a sharded one needs them all.
            logits_BTV = model(inputs_BT, **seen)
            if not len(mine):
                continue
            loss = F.cross_entropy(
                logits_BTV.flatten(0, 1).float(),
                targets_BT.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
            nats += loss.item()
    model.train(was_training)
    if world.world_size > 1:
        nats = sum_over_ranks(torch.tensor(nats, dtype=torch.float64)).item()
    n_tokens = min(n_windows * context_length, len(prepared.tokens_S) - 1)
    return _evaluation(nats, n_tokens, _bytes_of(prepared, n_tokens))


def _documents(inputs_BT: torch.Tensor, eot_id: int) -> dict[str, torch.Tensor]:
    """The number of each token's document in its window: an eot is the first of its own."""
    begun_BT = (inputs_BT == eot_id).cumsum(1)
    return {"documents_BT": begun_BT - begun_BT[:, :1]}


def uniform_baseline(vocab_size: int, prepared: Prepared) -> Evaluation:
    """Every token equally likely: what a model knows before it has seen anything."""
    n_tokens = len(prepared.tokens_S) - 1
    return _evaluation(n_tokens * math.log(vocab_size), n_tokens, _bytes_of(prepared, n_tokens))


def unigram_baseline(train: Prepared, validation: Prepared, vocab_size: int) -> Evaluation:
    """Tokens as likely as in the training split, whatever came before.

    Add-one smoothing (Laplace) over `vocab_size` tokens; each document of the training split
    counts its tokens and one eot.
    """
    return unigram_of_counts(_count_tokens(train.tokens_S, vocab_size), validation)


def unigram_of_counts(counts_V: np.ndarray, validation: Prepared) -> Evaluation:
    """`unigram_baseline`, given how often each token of a vocabulary is in the training split."""
    nats_by_token = np.log(counts_V.sum() + len(counts_V)) - np.log(counts_V + 1)
    targets = _count_tokens(validation.tokens_S[1:], len(counts_V))
    n_tokens = len(validation.tokens_S) - 1
    return _evaluation(float(targets @ nats_by_token), n_tokens, _bytes_of(validation, n_tokens))


def gzip_baseline(texts: Iterable[bytes]) -> Evaluation:
    """`gzip -9` of the texts one after the other, its header included. A byte is a token here.

    Byte for byte the same each time: the file's time is 0 and it has no name.
    """
    n_bytes = 0
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        for text in texts:
            n_bytes += file.write(text)
    return _evaluation(packed.tell() * 8 * math.log(2), n_bytes, n_bytes)


def _evaluation(nats: float, n_tokens: int, n_bytes: int) -> Evaluation:
    if n_tokens < 1 or n_bytes < 1:
        raise DataError(
            f"nothing to evaluate: {n_tokens} tokens and {n_bytes} bytes; the split needs at "
            "least one document with text"
        )
    nats_per_token = nats / n_tokens
    return Evaluation(
        nats_per_token=nats_per_token,
        perplexity=math.inf if nats_per_token > 700 else math.exp(nats_per_token),
        bits_per_byte=nats / math.log(2) / n_bytes,
        n_tokens=n_tokens,
        n_bytes=n_bytes,
    )


def _bytes_of(prepared: Prepared, n_tokens: int) -> int:
    """The bytes of text that the first `n_tokens` targets of the stream stand for."""
    lengths = np.diff(prepared.starts) - 1
    # Target i is token i + 1 of the stream, and a document's own tokens come after its eot.
    covered = np.clip(n_tokens - prepared.starts[:-1], 0, lengths)
    cut = covered < lengths
    whole = int(prepared.n_bytes[~cut].sum())
    return whole + round(float((prepared.n_bytes[cut] * covered[cut] / lengths[cut]).sum()))


def _count_tokens(tokens_S: np.ndarray, vocab_size: int) -> np.ndarray:
    """(vocab_size,) int64: how often each token occurs."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for first in range(0, len(tokens_S), _CHUNK):
        counts += np.bincount(tokens_S[first : first + _CHUNK], minlength=vocab_size)
    return counts
