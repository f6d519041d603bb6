from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config_guards import GuardConfig
from llm.guards import Guard, robust_z

CONFIG = GuardConfig(window=16, most_skips=4)


def healthy(n: int, seed: int = 0) -> list[tuple[float, float]]:
    """Losses that fall, and gradient norms, both with noise."""
    draw = random.Random(seed)
    return [(3 - i / 100 + draw.gauss(0, 0.05), math.exp(draw.gauss(0, 0.2))) for i in range(n)]


def watch(guard: Guard, steps: list[tuple[float, float]], first: int = 1) -> list[bool]:
    return [guard.allows(first + i, *step) for i, step in enumerate(steps)]


def test_a_healthy_run_is_left_alone() -> None:
    guard = Guard(CONFIG)
    assert all(watch(guard, healthy(500)))
    assert guard.skipped == 0
    assert guard.divergence(500, 3.0) is None


@pytest.mark.parametrize("spike", [(9.0, 1.0), (2.8, 40.0), (2.8, math.inf), (2.8, math.nan)])
def test_a_spike_of_the_loss_or_of_the_norm_is_skipped_and_the_run_goes_on(
    spike: tuple[float, float],
) -> None:
    guard = Guard(CONFIG)
    assert watch(guard, [*healthy(20), spike, *healthy(5)]) == [True] * 20 + [False] + [True] * 5
    assert guard.skipped == 1
    assert guard.divergence(26, 2.8) is None


def test_what_is_far_below_is_no_reason_to_skip() -> None:
    assert watch(Guard(CONFIG), [*healthy(20), (0.1, 0.001)])[-1]


def test_nothing_is_skipped_before_half_a_window_is_known_or_when_told_so() -> None:
    assert watch(Guard(CONFIG), [*healthy(7), (90.0, 90.0)])[-1]
    never = Guard(CONFIG.model_copy(update={"skip_above": 0.0}))
    assert watch(never, [*healthy(20), (90.0, 90.0)])[-1]


def test_many_outliers_in_a_row_are_a_divergence_from_before_the_first() -> None:
    guard = Guard(CONFIG)
    watch(guard, healthy(20))
    for step in range(21, 25):
        assert guard.divergence(step - 1, 2.8) is None
        guard.allows(step, 2.8, 50.0 * step)
    reason, good_until = guard.divergence(24, 2.8) or ("", 0)
    assert "last 4 steps were far outside" in reason
    assert good_until == 19  # Step 20 may have done it: 21 is the first that was bad.


def test_a_loss_that_is_not_a_number_is_a_divergence_at_once() -> None:
    guard = Guard(CONFIG)
    guard.allows(1, 3.0, 1.0)
    assert not guard.allows(2, math.nan, math.nan)
    assert guard.divergence(2, math.nan) == ("the loss is nan", 0)


def test_gradients_that_stay_infinite_are_a_divergence() -> None:
    guard = Guard(CONFIG)
    watch(guard, [(3.0, 1.0), (3.0, math.inf), (3.0, math.inf)])
    assert guard.divergence(3, 3.0) is None
    guard.allows(4, 3.0, math.nan)
    assert guard.divergence(4, 3.0) == ("the last 3 gradients were not finite", 0)


def test_a_loss_that_creeps_up_is_a_divergence_since_its_lowest() -> None:
    guard = Guard(CONFIG)
    learnt = [(4 - 0.02 * i, 1.0) for i in range(100)]  # From 4 to 2.
    lost = [(2.02 + 0.02 * i, 1.0) for i in range(100)]
    watch(guard, learnt)
    for i, step in enumerate(lost):
        assert guard.allows(101 + i, *step)  # No step alone is an outlier.
        if found := guard.divergence(101 + i, step[0]):
            break
    else:
        pytest.fail("it was never noticed")
    reason, good_until = found
    assert 100 <= good_until <= 110
    assert 2.9 < lost[i][0] < 3.4  # Half of the two nats that it had learnt are gone.
    assert f"at step {good_until}" in reason


def test_data_that_become_harder_for_good_are_taken_up_again() -> None:
    guard = Guard(GuardConfig(window=16, most_skips=16, divergence=0))
    watch(guard, healthy(20))
    harder = [(loss + 2, norm) for loss, norm in healthy(40, seed=1)]
    taken = watch(guard, harder, 21)
    assert not taken[0]
    assert all(taken[12:])
    assert guard.divergence(60, 4.0) is None


def test_a_guard_that_is_saved_and_restored_goes_on_as_if_nothing_had_happened() -> None:
    steps = [*healthy(30), (9.0, 30.0), *healthy(20, seed=2), (math.pi, math.inf), (3.0, 1.0)]
    whole, first, second = Guard(CONFIG), Guard(CONFIG), Guard(CONFIG)
    expected = watch(whole, steps)
    found = watch(first, steps[:31])
    second.restore(json.loads(json.dumps(first.state())))
    assert found + watch(second, steps[31:], 32) == expected
    assert second.state() == whole.state()


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=60), st.floats(-1000, 1000))
def test_the_robust_z_score_is_that_of_its_definition(recent: list[float], x: float) -> None:
    median = np.median(recent)
    deviation = 1.4826 * np.median(np.abs(np.array(recent) - median))
    spread = max(deviation, 0.01 * abs(median), 1e-12)
    assert robust_z(x, recent) == pytest.approx((x - median) / spread, rel=1e-9, abs=1e-9)
