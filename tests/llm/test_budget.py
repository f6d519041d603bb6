from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.budget import Budget, depth_for, dialled, nearest_depth, sizes, tokens_for, training
from llm.config_model import n_active_parameters, n_parameters
from llm.errors import ConfigError
from llm.gpus import GPUS
from llm.presets import PRESETS
from llm.sizing import training_flops_per_token

H100 = GPUS["h100"]
CONFIG = PRESETS["smollm2-135m"].config


def test_hours_and_money_buy_the_lesser_of_both() -> None:
    assert Budget(H100).device_hours() is None
    assert Budget(H100, 8, hours=3).device_hours() == 24
    assert Budget(H100, 8, hours=3, money=20, price=2).device_hours() == 10
    with pytest.raises(ConfigError, match="price"):
        Budget(H100, money=20).device_hours()


@given(st.floats(0.1, 1000), st.integers(1, 64), st.floats(0.1, 0.9))
def test_a_run_over_the_tokens_that_a_budget_buys_takes_that_long(
    hours: float, n_devices: int, mfu: float
) -> None:
    budget = Budget(H100, n_devices, mfu, hours=hours)
    run = training(CONFIG, tokens_for(CONFIG, budget), budget)
    assert run.seconds == pytest.approx(hours * 3600)
    assert run.device_hours == pytest.approx(hours * n_devices)


def test_money_spent_is_the_money_given() -> None:
    budget = Budget(H100, 4, price=2.5, money=100)
    run = training(CONFIG, tokens_for(CONFIG, budget), budget)
    assert run.cost == pytest.approx(100)


def test_without_a_budget_a_run_is_chinchillas() -> None:
    assert tokens_for(CONFIG, Budget(H100)) == 20 * n_parameters(CONFIG)


@given(st.floats(0.5, 500), st.sampled_from(["h100", "l4", "rtx-4090"]))
def test_a_budget_chooses_the_deepest_model_it_trains_and_holds(hours: float, gpu: str) -> None:
    budget = Budget(GPUS[gpu], hours=hours)
    depth = depth_for(budget, 32768, 1024)
    run = {d: dialled(d, 32768, 1024) for d in (depth, depth + 1)}
    bought = {d: tokens_for(config, budget) / n_parameters(config) for d, config in run.items()}
    assert bought[depth] >= 20
    held = sizes("x", run[depth + 1], budget).devices
    fits = next(one.batch_size for one in held if one.gpu is budget.gpu)
    assert bought[depth + 1] < 20 or not fits


def test_a_budget_for_nothing_says_so() -> None:
    with pytest.raises(ConfigError, match="do not train even depth 1"):
        depth_for(Budget(H100, hours=1e-4), 32768, 1024)
    with pytest.raises(ConfigError, match="say what to size"):
        depth_for(Budget(H100), 32768, 1024)


@pytest.mark.parametrize("depth", [1, 4, 9, 20, 40])
def test_a_count_finds_the_depth_it_came_from(depth: int) -> None:
    assert nearest_depth(n_parameters(dialled(depth, 32768, 1024)), 32768, 1024) == depth


def test_a_mixture_learns_20_tokens_for_each_parameter_that_a_token_meets() -> None:
    mixture = PRESETS["qwen3-30b-a3b"].config
    made = sizes("x", mixture, Budget(H100))
    assert made.parameters == n_parameters(mixture)
    assert made.active_parameters == n_active_parameters(mixture)
    assert made.asked.tokens == 20 * n_active_parameters(mixture)
    assert made.asked.tokens_per_parameter == 20
    assert made.asked.times_least < 1.1  # Chinchilla's law finds that length near its best.


def test_training_on_more_than_is_best_costs_loss_for_its_compute() -> None:
    runs = [
        training(CONFIG, ratio * n_parameters(CONFIG), Budget(H100)) for ratio in (25, 100, 900)
    ]
    assert [run.loss for run in runs] == sorted((run.loss for run in runs), reverse=True)
    assert 0 <= runs[0].above_best < runs[1].above_best < runs[2].above_best
    assert 1 <= runs[0].times_least < runs[1].times_least < runs[2].times_least


def test_serving_dominates_what_a_small_model_costs_once_it_is_used() -> None:
    made = sizes("x", CONFIG, Budget(H100, price=2.0), tokens_per_day=1e9, years=3)
    assert made.lifetime is not None
    assert made.lifetime.tokens == 1e9 * 365 * 3
    assert made.lifetime.flops > made.asked.flops
    assert made.lifetime.cost == made.lifetime.devices * 24 * 365 * 3 * 2.0
    assert training_flops_per_token(CONFIG) * made.asked.tokens == made.asked.flops
