from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from llm.scaling_law import CHINCHILLA

COMPUTES = st.floats(17, 25).map(lambda exponent: 10**exponent)


@given(COMPUTES)
def test_the_optimum_is_where_a_search_finds_it(compute: float) -> None:
    found = minimize_scalar(
        lambda log: CHINCHILLA.loss(10**log, compute / 6 / 10**log), bounds=(5, 13)
    )
    parameters, tokens = CHINCHILLA.optimum(compute)
    assert 6 * parameters * tokens == pytest.approx(compute)
    assert parameters == pytest.approx(10**found.x, rel=1e-2)
    assert CHINCHILLA.loss(parameters, tokens) <= found.fun + 1e-12


@given(COMPUTES)
def test_the_least_compute_for_a_loss_gives_that_loss(compute: float) -> None:
    loss = CHINCHILLA.loss(*CHINCHILLA.optimum(compute))
    assert CHINCHILLA.least_compute(loss) == pytest.approx(compute)


def test_chinchillas_own_compute_asks_for_about_twenty_tokens_a_parameter() -> None:
    # Hoffmann et al. 2022: 70 B parameters on 1.4 T tokens. Besiroglu et al. 2024, figure 4.
    parameters, tokens = CHINCHILLA.optimum(5.76e23)
    assert tokens / parameters == pytest.approx(20, rel=0.15)
    assert parameters == pytest.approx(70e9, rel=0.1)
