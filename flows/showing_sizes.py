"""How `loam size` shows a model: what it takes to train, to hold and to serve."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flows import showing
from flows.config import PipelineConfig
from flows.dial import model_to_count, trained_tokens
from flows.showing import NOTHING, say, show_table
from llm.budget import Budget, Fit, Sizes, Training
from llm.config_model import ModelConfig, n_active_parameters, n_parameters
from llm.config_train import TrainConfig
from llm.depth import recipe
from llm.presets import PRESETS
from llm.serving_cost import Decoding
from llm.sizing import law_parameters
from tasks.report_page import format_duration, format_percent, format_size

_DAY = 86400


def as_json(made: Sizes) -> dict[str, Any]:
    """The answer as plain data, with what the dial would train the model by."""
    train = recipe(made.config, tokens=round(made.asked.tokens))
    return asdict(made) | {
        "config": made.config.model_dump(mode="json"),
        "recipe": train.model_dump(mode="json", include=set(_RECIPE)),
    }


_RECIPE = ("steps", "batch_size", "accumulation_steps", "optim")


def show_sizes(made: Sizes) -> None:
    say(f"{made.name}: {shape_line(made.config)}")
    train = recipe(made.config, tokens=round(made.asked.tokens))
    say(f"the dial trains it by {recipe_line(made.config, train)}")
    say()
    _show_trainings(made)
    say()
    _show_fits(made)
    say()
    _show_devices(made)
    say()
    _show_serving(made)


def shape_line(config: ModelConfig) -> str:
    heads = f"{config.n_heads} heads of {config.head_dim}"
    if config.n_kv_heads != config.n_heads:
        heads += f" ({config.n_kv_heads} for keys and values)"
    active = experts = ""
    if config.n_experts:
        active = f", {n_active_parameters(config):,} of them for each token"
        experts = f" in {config.n_experts_per_token} of {config.n_experts} experts"
    return (
        f"{n_parameters(config):,} parameters{active}; {config.family}, {config.n_layers} layers x "
        f"{config.d_model}, {heads}, feed-forward {config.d_ff:,}{experts}, vocabulary "
        f"{config.vocab_size:,}{' (tied)' if config.tie_embeddings else ''}, context "
        f"{config.context_length:,}"
    )


def recipe_line(config: ModelConfig, train: TrainConfig) -> str:
    windows = train.batch_size * train.accumulation_steps
    tokens = windows * config.context_length
    optim = train.optim
    matrices = optim.muon_learning_rate if optim.optimizer == "muon" else optim.learning_rate
    return (
        f"{train.steps:,} steps of {tokens:,} tokens ({windows:,} windows), {optim.optimizer} "
        f"{matrices:g}, AdamW {optim.learning_rate:g}, head {optim.head_learning_rate:g}, weight "
        f"decay {optim.weight_decay:g}, warm-up {optim.warmup_steps:,}"
    )


def model_facts(pipeline: PipelineConfig) -> dict[str, Any] | None:
    """What a pipeline's model is and how it is trained, as plain data; None without a model."""
    if pipeline.model is None:
        return None
    config, train = model_to_count(pipeline), pipeline.train
    return {
        "parameters": n_parameters(config),
        "tokens": trained_tokens(train, config),
        "shape": config.model_dump(mode="json"),
        "recipe": train.model_dump(mode="json", include=set(_RECIPE)),
    }


def show_model(pipeline: PipelineConfig) -> None:
    """Two lines on a pipeline's model: its shape, and how it is trained."""
    facts = model_facts(pipeline)
    if facts is None:
        return
    config = model_to_count(pipeline)
    ratio = facts["tokens"] / law_parameters(config)
    say(f"\nmodel: {shape_line(config)}")
    say(
        f"trained by {recipe_line(config, pipeline.train)}; {amount(facts['tokens'])} tokens, "
        f"{ratio:.3g} a parameter"
    )


def _devices(budget: Budget) -> str:
    return f"{budget.n_devices} x {budget.gpu.name}"


def _show_trainings(made: Sizes) -> None:
    budget, asked = made.budget, made.asked
    others = [one for one in made.trainings if abs(one.tokens / asked.tokens - 1) > 0.01]
    rows = [
        _training_row("asked" if one is asked else "", one)
        for one in sorted([asked, *others], key=lambda one: one.tokens)
    ]
    columns = ["", ">tokens/param", ">tokens", ">FLOPs", ">time", ">GPU-hours", ">cost", ">loss*"]
    columns += [">above best", ">compute"]
    share = f"{budget.mfu:.1%}" if budget.mfu < 0.1 else format_percent(budget.mfu)
    title = (
        f"training on {_devices(budget)} at {share} of {budget.gpu.flops / 1e12:,.4g} TFLOP/s"
        f"{'' if budget.n_devices == 1 else ' each'}"
    )
    show_table(columns, rows, title=title)
    say(
        "* nats a token under Chinchilla's law (Besiroglu et al. 2024), which is of its own data:\n"
        "  read the differences. above best: than the best model for the same compute. compute:\n"
        "  as a multiple of the least that reaches the same loss."
    )
    if made.config.n_experts:
        say("  Of experts those count that a token goes to; the others lower the loss further.")


def _training_row(label: str, one: Training) -> tuple[object, ...]:
    return (
        label,
        f"{one.tokens_per_parameter:,.3g}" if one.tokens_per_parameter < 1000
        else f"{one.tokens_per_parameter:,.0f}",
        amount(one.tokens),
        f"{one.flops:.2e}",
        long_duration(one.seconds),
        amount(one.device_hours),
        money(one.cost),
        f"{one.loss:.3f}",
        f"{one.above_best:+.3f}",
        f"{one.times_least:.2f} x",
    )  # fmt: skip


def _show_fits(made: Sizes) -> None:
    columns = ("precision", "optimizer", ">weights", ">gradients", ">moments", ">one window",
               ">total", ">with checkpointing", ">windows that fit",
               ">with checkpointing")  # fmt: skip
    split = "" if made.budget.n_devices == 1 else ", weights, gradients and moments split"
    title = (
        f"memory to train, on each {made.budget.gpu.name} of "
        f"{format_size(round(made.budget.gpu.memory))}{split}"
    )
    show_table(columns, [_fit_row(fit) for fit in made.fits], title=title)


def _fit_row(fit: Fit) -> tuple[object, ...]:
    memory = fit.memory
    held = memory.total - memory.activations
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations)
    return (
        fit.dtype,
        fit.optimizer,
        *(format_size(round(part)) for part in parts),
        format_size(round(memory.total)),
        format_size(round(held + fit.checkpointed)),
        fit.batch_size or "none",
        fit.checkpointed_batch_size or "none",
    )


def _show_devices(made: Sizes) -> None:
    budget = made.budget
    rows = [
        (
            one.gpu.name,
            format_size(round(one.gpu.memory)),
            f"{one.gpu.flops / 1e12:,.4g}",
            long_duration(one.seconds),
            one.batch_size or "does not fit",
        )
        for one in made.devices
    ]
    title = f"the asked-for {amount(made.asked.tokens)} tokens on {budget.n_devices} of each"
    columns = ("device", ">memory", ">TFLOP/s", ">time", ">windows that fit (checkpointing)")
    show_table(columns, rows, title=title)


def _show_serving(made: Sizes) -> None:
    price = made.budget.price
    rows = [_decoding_row(one, made.config, price) for one in made.decodings]
    columns = ("precision", ">weights", ">KV a token", ">GPUs", ">sequences", ">tokens/s alone",
               ">tokens/s together", ">GPU-hours/M tokens", ">cost/M tokens")  # fmt: skip
    length = f"{made.config.context_length:,}"
    title = f"serving on {made.budget.gpu.name}, sequences of up to {length} tokens"
    show_table(columns, rows, title=title)
    life = made.lifetime
    if life is None:
        return
    share = life.flops / (life.flops + made.asked.flops)
    cost = "" if life.cost is None else f", which cost {money(life.cost)}"
    say(
        f"served over its life: {amount(life.tokens)} tokens, {life.flops:.2e} FLOPs "
        f"({format_percent(share)} of all it takes), {amount(life.device_hours)} GPU-hours in "
        f"bfloat16; {showing.counted(life.devices, 'GPU')} on all day{cost}"
    )


def _decoding_row(one: Decoding, config: ModelConfig, price: float | None) -> tuple[object, ...]:
    hours = one.hours(1e6)
    return (
        one.precision,
        format_size(round(one.weights)),
        format_size(round(one.kv_per_token)),
        one.devices,
        one.sequences,
        f"{one.single:,.0f}",
        f"{one.full:,.0f}",
        f"{hours:.3g}",
        money(None if price is None else hours * price),
    )


def show_presets(json: bool) -> None:
    """The presets: their names, counts, shapes and sources."""
    if json:
        showing.say_json(
            {name: {"parameters": one.parameters, "source": one.source,
                    "config": one.config.model_dump(mode="json")} for name, one in PRESETS.items()}
        )  # fmt: skip
        return
    rows = [
        (name, one.parameters, one.config.family, one.config.n_layers, one.config.d_model,
         one.config.n_heads, one.config.n_kv_heads, one.config.vocab_size,
         one.config.context_length, one.source)
        for name, one in PRESETS.items()
    ]  # fmt: skip
    columns = ("preset", ">parameters", "family", ">layers", ">width", ">heads", ">KV heads",
               ">vocabulary", ">context", "from")  # fmt: skip
    show_table(columns, rows)


def amount(value: float) -> str:
    """1.23e9 as 1.23 B: three digits and a thousand's letter."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {letter}"
    return f"{value:.3g}"


def long_duration(seconds: float) -> str:
    """As a person says it, days and years too."""
    if seconds < 2 * _DAY:
        return format_duration(seconds)
    days = seconds / _DAY
    return f"{days:,.1f} days" if days < 730 else f"{days / 365:,.1f} years"


def money(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
