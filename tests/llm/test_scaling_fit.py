from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import minimize

from llm.errors import DataError
from llm.scaling_fit import HUBER_DELTA, Point, fit, leave_one_out
from llm.scaling_law import CHINCHILLA, Law


def points(law: Law, noise: float = 0.0) -> list[Point]:
    """Runs of five sizes over four numbers of tokens, as the law says, with relative noise."""
    drawn = np.random.default_rng(0)
    return [
        Point(N, D, law.loss(N, D) * math.exp(noise * drawn.standard_normal()))
        for N in (10**7, 3 * 10**7, 10**8, 4 * 10**8, 10**9)
        for D in (10**8, 10**9, 10**10, 4 * 10**10)
    ]


def test_a_law_is_found_again_from_runs_that_follow_it() -> None:
    found = fit(points(CHINCHILLA))
    for name in ("E", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(CHINCHILLA, name), rel=0.02)
    assert found.loss(1e10, 2e11) == pytest.approx(CHINCHILLA.loss(1e10, 2e11), rel=1e-3)


def test_noise_of_a_percent_leaves_predictions_within_two() -> None:
    found = fit(points(CHINCHILLA, noise=0.01))
    assert found.loss(3e9, 1e11) == pytest.approx(CHINCHILLA.loss(3e9, 1e11), rel=0.02)


def test_one_run_gone_wrong_moves_little() -> None:
    good = points(CHINCHILLA)
    bad = [Point(good[0].parameters, good[0].tokens, 2 * good[0].loss), *good[1:]]
    assert fit(bad).loss(3e9, 1e11) == pytest.approx(CHINCHILLA.loss(3e9, 1e11), rel=0.01)


def _objective(x: Sequence[float], given: list[Point]) -> float:
    e, a, alpha, b, beta = x
    total = 0.0
    for p in given:
        terms = [a - alpha * math.log(p.parameters), b - beta * math.log(p.tokens), e]
        off = abs(float(np.logaddexp.reduce(terms)) - math.log(p.loss))
        total += off**2 / 2 if off <= HUBER_DELTA else HUBER_DELTA * (off - HUBER_DELTA / 2)
    return total


def test_scipy_from_hoffmanns_grid_finds_nothing_better() -> None:
    given = points(CHINCHILLA, noise=0.01)
    starts = [(e, a, x, b, y) for e in (-1, 0, 1) for a in (0, 10) for x in (0, 1) for b in (0, 10)
              for y in (0, 1)]  # fmt: skip
    best = min(minimize(_objective, s, args=(given,), method="L-BFGS-B").fun for s in starts)
    law = fit(given)
    ours = (math.log(law.E), math.log(law.A), law.alpha, math.log(law.B), law.beta)
    assert _objective(ours, given) <= best * 1.01


def test_leaving_one_out_gives_a_law_for_each_run() -> None:
    given = points(CHINCHILLA, noise=0.01)[:9]
    laws = leave_one_out(fit(given), given)
    assert len(laws) == 9
    assert all(law.loss(3e8, 3e9) == pytest.approx(3.07, rel=0.05) for law in laws)
    assert leave_one_out(fit(given[:6]), given[:6]) == []


def test_too_few_runs_say_how_many_are_needed() -> None:
    with pytest.raises(DataError, match="at least 6"):
        fit(points(CHINCHILLA)[:5])
    with pytest.raises(DataError, match="sizes 1,"):
        fit([Point(1000, tokens, 2.0) for tokens in range(1000, 9000, 1000)])
