"""Settings of the optimizers of a run. No torch here: planning reads these."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm.config import Config


class OptimConfig(Config):
    """Optimizers, their rates, and how the rates move over a run."""

    optimizer: Literal["adamw", "muon"] = "muon"
    """What moves the matrices inside the blocks: `adamw` (Loshchilov and Hutter 2019) or `muon`
    (Jordan et al. 2024). Everything else is always moved by AdamW."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """AdamW's peak rate for the norms and, with `adamw`, for the matrices. Ours: the best of those
    tried on nanoGPT's character task."""
    muon_learning_rate: float = Field(default=0.02, gt=0)
    """Muon's peak rate (Jordan et al. 2024)."""
    embedding_learning_rate: float = Field(default=3e-3, gt=0)
    """Peak rate of the embedding, tied or not. Ours, as `learning_rate`."""
    head_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of an output layer of its own. Ours, as `learning_rate`."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean gradient (Kingma and Ba 2015)."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """AdamW's decay of the mean square; nanoGPT's choice for small batches."""
    eps: float = Field(default=1e-10, gt=0)
    """AdamW's term against division by zero; small, as gradients of rare tokens are small
    (modded-nanogpt, Jordan et al. 2024)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of the matrices inside the blocks, and of nothing else. Zero, as a short run
    does not overfit; 0.1 is usual for long ones (Brown et al. 2020)."""
    weight_decay_kind: Literal["decoupled", "cautious"] = "decoupled"
    """Decay every weight (Loshchilov and Hutter 2019), or only those that the update moves towards
    zero anyway (Chen et al. 2025, "Cautious Weight Decay"; nanochat)."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the rates rise linearly to their peak; nanoGPT's choice for small models."""
    decay: Literal["linear", "cosine", "wsd"] = "linear"
    """After warm-up: a straight line down (Bergsma et al. 2025), half a cosine (Loshchilov and
    Hutter 2017), or constant and then a line over the last `decay_fraction` (Hu et al. 2024)."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of all steps in which `wsd` decays (Hägele et al. 2024)."""
    min_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak at which decay ends; zero is best (Bergsma et al. 2025)."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient (Pascanu et al. 2013); 0 means no limit."""
