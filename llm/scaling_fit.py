"""Fitting a scaling law to runs: approach 3 of Hoffmann et al. 2022 (section 3.3, appendix D.3).

The Huber loss (delta 1e-3) of log losses is minimized by L-BFGS from several starts. Theirs are a
grid over all five numbers; ours a grid over the two exponents, for given which the other three are
a linear least-squares problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.errors import DataError
from llm.scaling_law import Law

HUBER_DELTA = 1e-3
LEAST_RUNS = 6
"""One more than the numbers that are fitted."""

_EXPONENTS = np.linspace(0.05, 1.5, 30)
_STARTS = 4


@dataclass(frozen=True)
class Point:
    """What a run came to: parameters that count (`llm.sizing.law_parameters`), tokens it learnt
    from, nats per token of validation."""

    parameters: int
    tokens: int
    loss: float


def fit(points: Sequence[Point]) -> Law:
    """The law nearest to the points. Raises DataError where they do not determine one."""
    check_determined(points)
    polished = [_polish(start, points) for start in _starts(points)]
    return min(polished, key=lambda found: found[0])[1]


def check_determined(points: Sequence[Point]) -> None:
    """Raises DataError where runs of these parameters and tokens do not determine a law."""
    if not _determine(points) or len(points) < LEAST_RUNS:
        raise DataError(
            f"a law of five numbers takes at least {LEAST_RUNS} runs, of several sizes and several "
            f"numbers of tokens; found: runs {len(points)}, sizes "
            f"{len({p.parameters for p in points})}, numbers of tokens "
            f"{len({p.tokens for p in points})}"
        )


def leave_one_out(law: Law, points: Sequence[Point]) -> list[Law]:
    """The laws of all points but one, for each, from the law of all of them: how much a prediction
    hangs on a single run. None where the rest are too few."""
    rests = [[p for p in points if p is not left_out] for left_out in points]
    enough = [rest for rest in rests if len(rest) >= LEAST_RUNS and _determine(rest)]
    return [_polish(law, rest)[1] for rest in enough]


def _determine(points: Sequence[Point]) -> bool:
    return len({p.parameters for p in points}) > 1 and len({p.tokens for p in points}) > 1


def _starts(points: Sequence[Point]) -> list[Law]:
    """The laws that are best in squares of the loss, each of another pair of exponents."""
    N, D, loss = (
        np.array([float(getattr(p, name)) for p in points])
        for name in ("parameters", "tokens", "loss")
    )
    found: list[tuple[float, Law]] = []
    for alpha in _EXPONENTS:
        for beta in _EXPONENTS:
            # Relative to the smallest, so that the columns have one scale.
            columns = [np.ones_like(loss), (N / N.min()) ** -alpha, (D / D.min()) ** -beta]
            solved = np.linalg.lstsq(np.stack(columns, 1), loss, rcond=None)[0]
            E, A, B = np.maximum(solved, 1e-3)  # Nothing is negative: nothing gets better than E.
            law = Law(E, A * N.min() ** alpha, alpha, B * D.min() ** beta, beta)
            error = float(np.sum((E + A * columns[1] + B * columns[2] - loss) ** 2))
            found.append((error, law))
    return [law for _, law in sorted(found, key=lambda one: one[0])[:_STARTS]]


def _polish(start: Law, points: Sequence[Point]) -> tuple[float, Law]:
    """The objective and the law where L-BFGS ends from `start`."""
    log_N, log_D, log_loss = (
        torch.tensor([float(getattr(p, name)) for p in points], dtype=torch.float64).log()
        for name in ("parameters", "tokens", "loss")
    )
    given = [np.log(start.E), np.log(start.A), start.alpha, np.log(start.B), start.beta]
    x = torch.tensor(given, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [x], max_iter=400, tolerance_grad=1e-12, tolerance_change=1e-15, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        e, a, alpha, b, beta = x
        terms = torch.stack([a - alpha * log_N, b - beta * log_D, e.expand_as(log_N)])
        predicted = torch.logsumexp(terms, 0)
        return F.huber_loss(predicted, log_loss, reduction="sum", delta=HUBER_DELTA)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)
    e, a, alpha, b, beta = (float(value) for value in x.detach())
    law = Law(float(np.exp(e)), float(np.exp(a)), alpha, float(np.exp(b)), beta)
    return float(objective().detach()), law
