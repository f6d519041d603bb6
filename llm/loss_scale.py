"""A factor on the loss that keeps float16 gradients in range (Micikevicius et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FIRST, LEAST, MOST = 2.0**16, 1.0, 2.0**24
GROW_AFTER = 2000
"""Steps without an overflow after which the factor doubles, as in torch's GradScaler."""


class LossScale:
    """Halves when a gradient overflows, doubles when none has for long. Powers of two: exact.

    Not torch's GradScaler, which finds overflows by optimizer: of the two that hold a model here,
    one could take a step that the other leaves out, and so could the shards of two ranks. This one
    goes by the norm of the whole gradient. Where it is not needed the factor is 1 for good.
    """

    def __init__(self, needed: bool) -> None:
        self.factor = FIRST if needed else 1.0
        self.needed, self._good_steps = needed, 0

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divides the gradients by the factor."""
        if self.factor != 1.0:
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1 / self.factor)

    def overflowed(self, finite: bool) -> bool:
        """Whether this step's gradient is lost to a factor that was too large; adapts it."""
        if not self.needed:
            return False
        lost = not finite and self.factor > LEAST
        self._good_steps = self._good_steps + 1 if finite else 0
        if lost:
            self.factor /= 2
        elif self._good_steps == GROW_AFTER:
            self.factor, self._good_steps = min(MOST, 2 * self.factor), 0
        return lost

    def state(self) -> dict[str, float | int]:
        return {"factor": self.factor, "good_steps": self._good_steps}

    def restore(self, state: dict[str, float | int]) -> None:
        self.factor, self._good_steps = float(state["factor"]), int(state["good_steps"])
