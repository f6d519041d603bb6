"""What a budget buys, and what a model costs: training, memory and service in one answer.

No torch here: `loam size` is arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm.config_model import ModelConfig, n_active_parameters, n_parameters
from llm.depth import MOST_LAYERS, TOKENS_PER_PARAMETER, shape, token_budget
from llm.errors import ConfigError
from llm.gpus import GPUS, Gpu
from llm.scaling_law import CHINCHILLA
from llm.serving_cost import (
    PRECISIONS,
    SECONDS_PER_HOUR,
    Decoding,
    Lifetime,
    decoding,
    lifetime,
)
from llm.sizing import (
    Dtype,
    Memory,
    Optimizer,
    activation_bytes,
    largest_batch,
    law_parameters,
    training_flops_per_token,
    training_memory,
    training_seconds,
)

MFU = 0.4
"""Share of the peak that training reaches where nothing is said: between the 39 % of torchtitan's
8B (6,667 tokens a second on an H100) and the 44 % of Llama 2 7B and 46 % of nanochat."""

RATIOS = (TOKENS_PER_PARAMETER, 50, 100, 200, 1000)
"""Tokens a parameter that are compared: Chinchilla's, and what models that are served a lot are
trained on (Sardana et al. 2024, "Beyond Chinchilla-Optimal"; Llama 3 8B saw 1,870)."""

FARTHEST = 2
"""Ratio of parameters up to which a depth may stand for a number of them: depth 2 has about twice
those of depth 1."""

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "muon")


@dataclass(frozen=True)
class Budget:
    """What there is to spend, on which devices."""

    gpu: Gpu
    n_devices: int = 1
    mfu: float = MFU
    price: float | None = None
    """Money for an hour of one device."""
    hours: float | None = None
    money: float | None = None

    def device_hours(self) -> float | None:
        """Hours of a device that hours and money allow; None where neither is given.

        Raises ConfigError where money is given without a price.
        """
        if self.money is not None and self.price is None:
            raise ConfigError("money buys hours at a price: give price, of a device for an hour")
        limits = [] if self.hours is None else [self.hours * self.n_devices]
        if self.money is not None and self.price:
            limits.append(self.money / self.price)
        return min(limits, default=None)

    def flops(self) -> float | None:
        """Operations that the budget pays for; None where it has no end."""
        hours = self.device_hours()
        return None if hours is None else hours * SECONDS_PER_HOUR * self.gpu.flops * self.mfu


@dataclass(frozen=True)
class Training:
    """A run over so many tokens."""

    tokens: float
    tokens_per_parameter: float
    flops: float
    seconds: float
    device_hours: float
    cost: float | None
    loss: float
    """What Chinchilla's law gives, in nats per token of its data."""
    above_best: float
    """Nats above the best model for the same compute under that law."""
    times_least: float
    """Compute, as a multiple of what the cheapest way to the same loss takes."""


@dataclass(frozen=True)
class Fit:
    """How training fits one of the devices, in one precision with one optimizer."""

    dtype: Dtype
    optimizer: Optimizer
    memory: Memory
    """Of micro-batches of one window, activations kept."""
    checkpointed: float
    """Bytes of those activations with activation checkpointing."""
    batch_size: int
    """Windows of the largest micro-batch that fits; 0 where none does."""
    checkpointed_batch_size: int


@dataclass(frozen=True)
class OnDevice:
    """The asked-for run on one kind of device."""

    gpu: Gpu
    seconds: float
    batch_size: int
    """Windows of the largest micro-batch that fits, activations checkpointed; 0 where none does."""


@dataclass(frozen=True)
class Sizes:
    """Everything that `loam size` says."""

    name: str
    config: ModelConfig
    parameters: int
    active_parameters: int
    """Of a mixture of experts those that one token meets, which decide its operations, its tokens
    and its loss."""
    budget: Budget
    asked: Training
    trainings: tuple[Training, ...]
    fits: tuple[Fit, ...]
    devices: tuple[OnDevice, ...]
    decodings: tuple[Decoding, ...]
    lifetime: Lifetime | None


def training(config: ModelConfig, tokens: float, budget: Budget) -> Training:
    """What learning from so many tokens takes, and what it brings."""
    size, flops = law_parameters(config), training_flops_per_token(config) * tokens
    seconds = training_seconds(config, tokens, budget.gpu, budget.n_devices, budget.mfu)
    hours = seconds * budget.n_devices / SECONDS_PER_HOUR
    loss, compute = CHINCHILLA.loss(size, tokens), 6.0 * size * tokens
    return Training(
        tokens=tokens,
        tokens_per_parameter=tokens / size,
        flops=flops,
        seconds=seconds,
        device_hours=hours,
        cost=None if budget.price is None else hours * budget.price,
        loss=loss,
        above_best=loss - CHINCHILLA.loss(*CHINCHILLA.optimum(compute)),
        times_least=compute / CHINCHILLA.least_compute(loss),
    )


def tokens_for(config: ModelConfig, budget: Budget) -> float:
    """Tokens that the budget pays for, or Chinchilla's where it has no end."""
    flops = budget.flops()
    if flops is None:
        return float(token_budget(config))
    return flops / training_flops_per_token(config)


def depth_for(budget: Budget, vocab_size: int, context_length: int) -> int:
    """The deepest model of the dial that the budget trains on 20 tokens a parameter and the
    devices hold (micro-batches of one window, activations checkpointed).

    Raises ConfigError where the budget has no end, or does not pay for depth 1.
    """
    flops = budget.flops()
    if flops is None:
        raise ConfigError("say what to size: a preset, a number of parameters, or a budget")
    deepest = 0
    for depth in range(1, MOST_LAYERS + 1):
        config = dialled(depth, vocab_size, context_length)
        needed = training_flops_per_token(config) * token_budget(config)
        fits = largest_batch(config, budget.gpu, checkpointing=True, n_devices=budget.n_devices)
        if needed > flops or not fits:
            break
        deepest = depth
    if not deepest:
        raise ConfigError(
            f"{flops:.2g} operations on {budget.n_devices} x {budget.gpu.name} do not train even "
            f"depth 1 with {vocab_size:,} tokens of vocabulary: take more hours, or a smaller "
            "vocabulary"
        )
    return deepest


def dialled(depth: int, vocab_size: int, context_length: int) -> ModelConfig:
    """The model of that depth."""
    given = {"vocab_size": vocab_size, "context_length": context_length}
    return ModelConfig.model_validate(shape(depth, given))


def nearest_depth(parameters: float, vocab_size: int, context_length: int) -> int:
    """The depth whose model is nearest in parameters, by ratio.

    Raises ConfigError where none is within a factor of `FARTHEST`.
    """

    def apart(depth: int) -> float:
        size = n_parameters(dialled(depth, vocab_size, context_length))
        return max(size / parameters, parameters / size)

    nearest = min(range(1, MOST_LAYERS + 1), key=apart)
    if apart(nearest) > FARTHEST:
        size = n_parameters(dialled(nearest, vocab_size, context_length))
        raise ConfigError(
            f"no depth has {parameters:,.0f} parameters or near: with {vocab_size:,} tokens of "
            f"vocabulary the nearest is {nearest}, of {size:,}; give another vocab-size"
        )
    return nearest


def sizes(
    name: str,
    config: ModelConfig,
    budget: Budget,
    tokens: float | None = None,
    tokens_per_day: float | None = None,
    years: float = 1.0,
) -> Sizes:
    """Everything about training and serving a model; `tokens` default to what the budget buys."""
    asked = training(config, tokens or tokens_for(config, budget), budget)
    decodings = tuple(decoding(config, budget.gpu, precision) for precision in PRECISIONS)
    lengths = [ratio * law_parameters(config) for ratio in RATIOS]
    served = next(one for one in decodings if one.precision == "bfloat16")
    return Sizes(
        name=name,
        config=config,
        parameters=n_parameters(config),
        active_parameters=n_active_parameters(config),
        budget=budget,
        asked=asked,
        trainings=tuple(training(config, float(n), budget) for n in lengths),
        fits=tuple(_fit(config, budget, d, o) for d in DTYPES for o in OPTIMIZERS),
        devices=tuple(_on_device(config, asked.tokens, budget, gpu) for gpu in GPUS.values()),
        decodings=decodings,
        lifetime=None
        if tokens_per_day is None
        else lifetime(config, served, tokens_per_day, years, budget.price),
    )


def _fit(config: ModelConfig, budget: Budget, dtype: Dtype, optimizer: Optimizer) -> Fit:
    n = budget.n_devices
    plain, checkpointed = (
        largest_batch(
            config, budget.gpu, optimizer=optimizer, dtype=dtype, checkpointing=on, n_devices=n
        )
        for on in (False, True)
    )
    return Fit(
        dtype=dtype,
        optimizer=optimizer,
        memory=training_memory(config, 1, optimizer=optimizer, dtype=dtype, n_devices=n),
        checkpointed=activation_bytes(config, 1, dtype, checkpointing=True),
        batch_size=plain,
        checkpointed_batch_size=checkpointed,
    )


def _on_device(config: ModelConfig, tokens: float, budget: Budget, gpu: Gpu) -> OnDevice:
    n = budget.n_devices
    return OnDevice(
        gpu=gpu,
        seconds=training_seconds(config, tokens, gpu, n, budget.mfu),
        batch_size=largest_batch(config, gpu, checkpointing=True, n_devices=n),
    )
