"""How documents become windows, and in which order. No torch here: planning reads these."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from llm.config import Config

PLACES = frozenset({"buckets_url", "cache_gb"})
"""Fields of `DataConfig` that say where the tokens lie, and leave batches and weights alone."""


class DataConfig(Config):
    """What training makes of a dataset: windows, their order, and how much of each source."""

    packing: Literal["stream", "best_fit"] = "stream"
    """How documents share windows. `stream` lays them end to end and cuts every `context_length`
    tokens, as nanoGPT does (Karpathy). `best_fit` cuts only what is longer than a window and packs
    the rest so that nearly none is cut (Ding et al. 2024, "Fewer Truncations Improve Language
    Modeling")."""

    document_mask: bool = False
    """Keep attention inside each document, with positions that begin anew, in training and when the
    model is measured. Off, since at ordinary lengths it changes little (Dubey et al. 2024, section
    3.2) and a mask costs time; wanted for long contexts, and where documents must not be told by
    their neighbours."""

    weights: dict[str, float] = Field(default_factory=dict)
    """Part of the windows, and so of the tokens, that each source gets, by its name; what they sum
    to does not matter. A source that is used up begins anew, in another order, whatever the others
    do. Every source of the dataset must be named, with 0 to leave it out: one that was added since
    is then not trained on, or left out, unseen. Without weights, every document comes once in an
    epoch."""

    curriculum: Literal["none", "length", "difficulty"] = "none"
    """Order of an epoch: `length` goes from short documents to long ones, `difficulty` from few
    tokens a byte to many, in eight levels of equally many tokens with a random order in each
    (Bengio et al. 2009; Li et al. 2022 for length)."""

    buckets_url: str = ""
    """Where the training split lies in buckets, written there first unless they are there, for
    datasets that are larger than the local disk; the batches are the same. Empty: the split is
    copied to the local disk. What lies there can be deleted between runs, and must be where a
    document of an older dataset is to be erased."""

    cache_gb: float = Field(default=8.0, ge=0)
    """Gigabytes of such buckets that stay on the local disk where they come from S3. Ours: an epoch
    of four billion tokens."""

    @field_validator("weights")
    @classmethod
    def _are_parts(cls, weights: dict[str, float]) -> dict[str, float]:
        negative = [name for name, weight in weights.items() if weight < 0]
        if negative:
            raise ValueError(f"the weight of {negative[0]} is below 0: leave it out with 0")
        if weights and not any(weights.values()):
            raise ValueError("all weights are 0, so that there is nothing to train on")
        return weights
