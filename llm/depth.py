"""One dial: from the number of layers to everything else that a run needs. No torch here.

What a config leaves out follows from `depth`; whatever it says stays.

| what | rule | from |
|---|---|---|
| layers | depth | |
| width | 64 x depth | nanochat's aspect ratio (Karpathy, `scripts/base_train.py`) |
| width of a head | the largest of 128, 64, 32, 16 with 6 heads or more | nanochat's; ours |
| tokens | 20 for each parameter, embeddings counted, idle experts not | Hoffmann et al. 2022 |
| tokens of an update | 0.58 D^0.571, or D / 2,000 | Li et al. 2025, "Step Law"; nanoGPT |
| AdamW's rates | as at width 128, times (128 / width)^0.5 | nanochat's muP-like rule |
| Muon's rate | the same at every width | Yang et al. 2023 (the spectral condition) |
| weight decay | 1 / (0.2 x rate x steps), of 2,000 steps or more | Wang and Aitchison 2024 |
| warm-up | 5 % of the steps, at most 2,000 | nanoGPT; Touvron et al. 2023 |

Rates do not fall with the number of tokens. A longer run alone would ask for it (Bjorck et al.
2024: D^-0.32), but its larger batch asks for the opposite (the square root of the batch: D^0.29).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm.config_model import ModelConfig
from llm.config_optim import OptimConfig
from llm.config_train import TrainConfig
from llm.errors import ConfigError
from llm.sizing import law_parameters

ASPECT_RATIO = 64
HEAD_DIMS, LEAST_HEADS = (128, 64, 32, 16), 6
TOKENS_PER_PARAMETER = 20
MOST_LAYERS = 256
"""No published model is deeper; a larger depth is a slip of the hand."""

REFERENCE_WIDTH = 128
"""Width at which the defaults of `OptimConfig` were tried: nanoGPT's character task."""
SCALED_RATES = ("learning_rate", "embedding_learning_rate", "head_learning_rate")

DECAY_TIMESCALE = 0.2
"""Share of a run over which weight decay forgets: 1 / (rate x decay x steps). Wang and Aitchison
2024 find it the same at every scale; Bergsma et al. 2025 find about 0.2 at 20 tokens for each
parameter."""
WARMUP_FRACTION, LONGEST_WARMUP = 0.05, 2000

LEAST_STEPS = 2000
"""Updates below which a run is short of updates rather than of tokens: those of nanoGPT's
documented CPU task. Tried on tinyshakespeare by characters, 90,000 parameters on 400,000 tokens:
2,084 updates reach 1.840 nats, 1,042 reach 1.872 and 521, near the law's batch, 1.934."""

MICRO_BATCH_TOKENS = 1 << 15
"""Most tokens of a micro-batch, so that activations fit; half of nanochat's 32 windows of 2,048,
which fill 80 GB."""


def shape(depth: int, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Fields of a `ModelConfig` of that depth; what is `given` stays as it is.

    Raises ConfigError where no depth or no head is possible.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= MOST_LAYERS:
        raise ConfigError(
            f"model.depth is {depth!r}: expected a whole number of layers from 1 to {MOST_LAYERS}"
        )
    fields = {"n_layers": depth, "d_model": ASPECT_RATIO * depth, **(given or {})}
    width, heads, head_dim = (fields.get(name) for name in ("d_model", "n_heads", "head_dim"))
    if fields.get("family", "llama") == "llama":
        fields.setdefault("qk_norm", True)  # The rates are those of a model that has it.
    if isinstance(width, int) and heads is None:
        fields["n_heads"] = _n_heads(width, head_dim)
    return fields


def _n_heads(width: int, head_dim: Any) -> int:
    """How many heads a model of that width has."""
    if head_dim is not None:
        if not isinstance(head_dim, int) or head_dim < 1 or width % head_dim:
            raise ConfigError(
                f"model.head_dim is {head_dim!r}, which does not divide d_model = {width}: "
                "choose one that does, or give n_heads too"
            )
        return width // head_dim
    possible = [dim for dim in HEAD_DIMS if width % dim == 0]
    if not possible:
        raise ConfigError(
            f"model.d_model is {width}, which no width of a head out of {HEAD_DIMS} divides: "
            "choose a multiple of 16, or give n_heads too"
        )
    return width // next((d for d in possible if width // d >= LEAST_HEADS), possible[-1])


def batch_tokens(tokens: float) -> float:
    """Best number of tokens in an update for a run over so many.

    The law of Li et al. 2025 (section 1), which was fitted to runs over billions, as long as that
    leaves `LEAST_STEPS` updates; the smaller batch that does where it would not.
    """
    return min(0.58 * tokens**0.571, tokens / LEAST_STEPS)


def token_budget(model: ModelConfig) -> int:
    """Tokens to train a model of this shape on. Raises ConfigError without a `vocab_size`."""
    return TOKENS_PER_PARAMETER * law_parameters(model)


def recipe(
    model: ModelConfig, given: TrainConfig | None = None, tokens: int | None = None
) -> TrainConfig:
    """How to train a model of this shape on `tokens` tokens, by default on its budget.

    Fields that `given` sets stay; the others that the dial knows are derived, steps from the
    tokens and the batch. Raises ConfigError without a `vocab_size` to count parameters by.
    """
    given = given or TrainConfig()
    tokens = tokens or token_budget(model)
    settings = given.model_dump(exclude_unset=True)
    settings |= _batch(model.context_length, tokens, given)
    per_update = settings["batch_size"] * settings["accumulation_steps"] * model.context_length
    settings.setdefault("steps", math.ceil(tokens / per_update))
    settings["optim"] = _optim(model.d_model, settings["steps"], given.optim)
    return TrainConfig.model_validate(settings)


def _batch(context_length: int, tokens: int, given: TrainConfig) -> dict[str, int]:
    """Windows of a micro-batch and how many of them make an update."""
    windows = _rounded(batch_tokens(tokens) / context_length)
    size, accumulation = given.batch_size, given.accumulation_steps
    if "batch_size" in given.model_fields_set:
        if "accumulation_steps" not in given.model_fields_set:
            accumulation = max(1, round(windows / size))
    elif "accumulation_steps" in given.model_fields_set:
        size = max(1, windows // accumulation)
    else:
        size = windows
        while size * context_length > MICRO_BATCH_TOKENS and size % 2 == 0:
            size //= 2
        accumulation = windows // size
    return {"batch_size": size, "accumulation_steps": accumulation}


def _rounded(windows: float) -> int:
    """A whole number near, of three binary digits: it halves well into micro-batches."""
    unit = 1 << max(0, math.floor(math.log2(max(1.0, windows))) - 2)
    return max(1, round(windows / unit)) * unit


def _optim(width: int, steps: int, given: OptimConfig) -> dict[str, Any]:
    scale = math.sqrt(REFERENCE_WIDTH / width)
    settings = {
        name: float(f"{getattr(OptimConfig(), name) * scale:.3g}") for name in SCALED_RATES
    } | given.model_dump(exclude_unset=True)
    muon = given.optimizer == "muon"
    rate = given.muon_learning_rate if muon else settings["learning_rate"]
    # A run of few steps sees few tokens, and has little to forget.
    decay = 1 / (DECAY_TIMESCALE * rate * max(steps, LEAST_STEPS))
    settings.setdefault("weight_decay", float(f"{decay:.3g}"))
    settings.setdefault("warmup_steps", min(math.ceil(WARMUP_FRACTION * steps), LONGEST_WARMUP))
    return settings
