"""The command that sizes a model before it is trained: size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import showing, showing_sizes
from flows.cli_options import Json, load
from flows.dial import model_to_count, trained_tokens
from llm.budget import MFU, Budget, depth_for, dialled, nearest_depth, sizes
from llm.config_model import ModelConfig
from llm.errors import ConfigError
from llm.gpus import find_gpu
from llm.pace import measured_flops
from llm.presets import PRESETS, nearest_preset

Positive = Annotated[float | None, Parameter(validator=Number(gt=0), show_default=False)]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
CountOrNone = Annotated[int | None, Parameter(validator=Number(gte=1), show_default=False)]

VOCAB_SIZE, CONTEXT_LENGTH = 32768, 2048
"""Of a model that only its depth or its number of parameters is known of: nanochat's."""

_SIZES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def size(
    what: str | None = None,
    /,
    *,
    gpu: str = "h100",
    gpus: Count = 1,
    mfu: Annotated[float, Parameter(validator=Number(gt=0, lte=1))] = MFU,
    like: str | None = None,
    hours: Positive = None,
    money: Positive = None,
    price: Positive = None,
    tokens: str | None = None,
    tokens_per_day: str | None = None,
    years: Annotated[float, Parameter(validator=Number(gt=0))] = 1.0,
    vocab_size: CountOrNone = None,
    context_length: CountOrNone = None,
    json: Json = False,
) -> None:
    """What a model takes to train and to serve: operations, tokens, memory, time and money.

    By arithmetic alone; nothing is trained. Without anything to size, a budget chooses the model:
    the deepest of the dial that it trains on 20 tokens a parameter.

        loam size 124m --gpu rtx-4090
        loam size llama-2-7b --tokens 2t --gpu a100 --gpus 64 --price 1.5
        loam size --hours 24 --gpu h100 --gpus 8
        loam size --money 100 --price 2.5
        loam size depth=12 --tokens-per-day 50m --years 2
        loam size my.toml --like .loam/store/runs/0123456789abcdef

    Args:
        what: A preset, a number of parameters (7b), depth=N, or a pipeline's TOML file; `presets`
            lists the presets.
        gpu: The device, such as h100, a100, rtx-4090 or l4; or TFLOPS:GB:GB/s of another.
        gpus: How many of them; weights, gradients and optimizer are split among them.
        mfu: Share of their peak that training reaches.
        like: Take the rate from the log of this run, a folder or URL, instead of mfu.
        hours: Train for so many hours.
        money: Train for so much money.
        price: What an hour of one device costs.
        tokens: Train on so many tokens (10b); where left out as many as the budget pays for, those
            of the config, or 20 a parameter.
        tokens_per_day: Tokens to be served a day, for the cost of serving.
        years: How long it is served.
        vocab_size: Tokens that the model knows; the preset's or config's, else 32,768.
        context_length: Tokens of a sequence; the preset's or config's, else 2,048.
        json: Print everything as JSON.
    """
    if what == "presets":
        showing_sizes.show_presets(json)
        return
    device = find_gpu(gpu)
    if like is not None:
        mfu = measured_flops(like) / device.flops
    budget = Budget(device, gpus, mfu, price, hours, money)
    if tokens is not None and budget.device_hours() is not None:
        raise ConfigError(
            "tokens and hours or money both say how long to train: give one of them (price alone "
            "tells what the tokens cost)"
        )
    name, config, own_tokens = _sized(what, budget, vocab_size, context_length)
    if budget.device_hours() is not None:
        own_tokens = None
    made = sizes(
        name,
        config,
        budget,
        own_tokens if tokens is None else parse_amount("tokens", tokens),
        None if tokens_per_day is None else parse_amount("tokens-per-day", tokens_per_day),
        years,
    )
    if json:
        showing.say_json(showing_sizes.as_json(made))
    else:
        showing_sizes.show_sizes(made)


def parse_amount(name: str, text: str) -> float:
    """A number with a unit, such as 124m, 1.5b or 2e12. Raises ConfigError."""
    found = re.fullmatch(r"([0-9][0-9_,]*\.?[0-9]*(?:e[0-9]+)?)([kmbt]?)", text.strip().lower())
    value = float(re.sub("[_,]", "", found[1])) * _SIZES.get(found[2], 1) if found else 0.0
    if not value:
        raise ConfigError(f"{name} is {text!r}: expected a number, such as 124m, 1.5b or 2e12")
    return value


def _sized(
    what: str | None, budget: Budget, vocab_size: int | None, context_length: int | None
) -> tuple[str, ModelConfig, int | None]:
    """What to call the model to size, its shape, and its own number of tokens if it has one."""
    given = {"vocab_size": vocab_size, "context_length": context_length}
    changes = {name: value for name, value in given.items() if value is not None}
    dial = (vocab_size or VOCAB_SIZE, context_length or CONTEXT_LENGTH)
    if what is None:
        depth = depth_for(budget, *dial)
        return f"depth {depth}", dialled(depth, *dial), None
    if depth_given := re.fullmatch(r"d(?:epth)?=?(\d+)", what):
        depth = int(depth_given[1])
        return f"depth {depth}", dialled(depth, *dial), None
    if what.endswith(".toml"):
        return _of_config(Path(what), changes)
    preset = what.lower() if what.lower() in PRESETS else None
    if preset is None:
        parameters = _parameters(what)
        preset = nearest_preset(parameters)
        if preset is None:
            depth = nearest_depth(parameters, *dial)
            return f"depth {depth}", dialled(depth, *dial), None
    return preset, PRESETS[preset].config.model_copy(update=changes), None


def _parameters(what: str) -> float:
    try:
        return parse_amount("parameters", what)
    except ConfigError:
        raise ConfigError(
            f"{what!r} is neither a preset ({', '.join(PRESETS)}), nor a number of parameters "
            "(7b), nor depth=N, nor a .toml file"
        ) from None


def _of_config(path: Path, changes: dict[str, int]) -> tuple[str, ModelConfig, int]:
    _, pipeline = load(path)
    config = model_to_count(pipeline).model_copy(update=changes)
    return pipeline.name, config, trained_tokens(pipeline.train, config)
