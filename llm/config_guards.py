"""Settings of what watches over a run and may skip a step or end it. No torch here."""

from __future__ import annotations

from pydantic import Field

from llm.config import Config


class GuardConfig(Config):
    """When a step is skipped, and when a run ends before its last step."""

    window: int = Field(default=128, ge=8)
    """Steps that a loss and a gradient's norm are compared with (OLMo 2: OLMo team 2025, 128)."""
    skip_above: float = Field(default=10.0, ge=0)
    """Skip the update of a step whose loss or gradient norm lies above the window's median by more
    than this many robust standard deviations (Iglewicz and Hoaglin 1993); 0: never. OLMo 2 skips
    above 6 plain ones; gradient norms of small batches have longer tails."""
    most_skips: int = Field(default=16, ge=1)
    """Steps skipped one after the other before the run is said to diverge. Ours: what lasts that
    long is no bad batch."""
    divergence: float = Field(default=0.5, ge=0)
    """Stop once the window's median loss has risen from its lowest by more than this share of what
    was learnt since the first step, and by more than this many nats; 0: never. Ours."""
    patience: int = Field(default=0, ge=0)
    """Looks at the validation split without a better one after which the run ends, its weights
    those of the best look (early stopping: Prechelt 1998); 0: train to the last step."""
