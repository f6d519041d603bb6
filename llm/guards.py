"""What watches over a run: steps that are skipped, and runs that end before their last step.

A guard sees each step's loss and gradient norm before the update is made. All it knows is plain
numbers in `state`, so that a run that is resumed is watched as if nothing had happened; and ranks,
which see the same numbers, decide alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llm.config_guards import GuardConfig
from llm.errors import LoamError

NORMAL_PER_MAD = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""
LEAST_SPREAD = 0.01
"""Share of the median that a standard deviation is taken to be at least."""


MOST_NOT_FINITE = 3
"""Steps in a row without a finite gradient that no batch alone explains."""


class Diverged(LoamError):
    """The run no longer learns; the message names the checkpoint to go back to."""


def robust_z(x: float, recent: Sequence[float]) -> float:
    """By how many standard deviations `x` lies above the median of the numbers before it.

    The deviation is taken from the median absolute one, which outliers do not move (Iglewicz and
    Hoaglin 1993).
    """
    median = statistics.median(recent)
    deviation = NORMAL_PER_MAD * statistics.median([abs(each - median) for each in recent])
    return (x - median) / max(deviation, LEAST_SPREAD * abs(median), 1e-12)


@dataclass
class Guard:
    """Recent losses (nats per token) and gradient norms, and what they say of the next step."""

    config: GuardConfig
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    first_loss: float | None = None
    lowest: float | None = None
    """The lowest median that a full window of losses had, after `lowest_at` steps."""
    lowest_at: int = 0
    skipped: int = 0
    """Steps skipped so far."""
    in_a_row: int = 0
    """Steps skipped since the last that was not."""
    not_finite: int = 0
    """Steps without a finite gradient since the last that had one."""

    def allows(self, step: int, loss: float, norm: float) -> bool:
        """Whether step number `step` may move the weights. To be asked once for each step."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        fits = finite and not (self._far(loss, self.losses) or self._far(norm, self.norms))
        if finite:
            # Those of skipped steps too: if the data have become harder for good, the window
            # learns it before `most_skips` is reached.
            self._remember(step, loss, norm)
        self.in_a_row = 0 if fits else self.in_a_row + 1
        self.not_finite = 0 if finite else self.not_finite + 1
        self.skipped += not fits
        return fits

    def _far(self, x: float, recent: list[float]) -> bool:
        limit = self.config.skip_above
        # Half a window says what is usual (as OLMo 2 has it); before, nothing is skipped.
        return bool(limit) and 2 * len(recent) >= self.config.window and robust_z(x, recent) > limit

    def _remember(self, step: int, loss: float, norm: float) -> None:
        for x, recent in ((loss, self.losses), (norm, self.norms)):
            recent.append(x)
            del recent[: -self.config.window]
        if self.first_loss is None:
            self.first_loss = loss
        median = statistics.median(self.losses)
        full = len(self.losses) == self.config.window
        if full and (self.lowest is None or median < self.lowest):
            self.lowest, self.lowest_at = median, step

    def divergence(self, step: int, loss: float) -> tuple[str, int] | None:
        """Why the run diverges, and after how many updates it was still well; None if it does not.

        To be asked after `allows` of the same step.
        """
        if not math.isfinite(loss):
            # The update before did it, and none mends it.
            return f"the loss is {loss}", step - 2
        if self.not_finite >= MOST_NOT_FINITE:
            return (
                f"the last {self.not_finite} gradients were not finite",
                step - 1 - self.not_finite,
            )
        if self.in_a_row >= self.config.most_skips:
            reason = f"the last {self.in_a_row} steps were far outside their window and skipped"
            return reason, step - self.in_a_row - 1
        share = self.config.divergence
        if not share or self.first_loss is None or self.lowest is None:
            return None
        median = statistics.median(self.losses)
        if median - self.lowest <= share * max(1.0, self.first_loss - self.lowest):
            return None
        return (
            f"the median loss of the last {len(self.losses)} steps is {median:.4f}, after "
            f"{self.lowest:.4f} at step {self.lowest_at}",
            self.lowest_at,
        )

    def state(self) -> dict[str, Any]:
        """Everything but the settings, as plain numbers."""
        return {name: value for name, value in vars(self).items() if name != "config"}

    def restore(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
