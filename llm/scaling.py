"""Small models by the dial, a law fitted to them, and what it predicts for a larger one.

Each run has a folder of its own, named after what it trains, and is found again there: whoever is
killed goes on where it was. The law is of the validation loss after the last step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llm import files
from llm.config_model import ModelConfig, n_parameters
from llm.config_train import TrainConfig, TrainSpec
from llm.dataset_file import documents_of, read_dataset
from llm.depth import recipe, shape
from llm.errors import ConfigError
from llm.preflight import MANY_EPOCHS
from llm.scaling_fit import Point, check_determined, fit, leave_one_out
from llm.scaling_law import Law
from llm.sizing import law_parameters
from llm.tokenizer import Tokenizer
from llm.train import train

SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")
"""What the dial decides of a model; the rest of its config is the same for all sizes."""


@dataclass(frozen=True)
class Size:
    """One run to be: a depth of the dial and a number of tokens."""

    depth: int
    tokens: int


@dataclass(frozen=True)
class Trained:
    """A run that is done."""

    depth: int
    width: int
    point: Point


@dataclass(frozen=True)
class Prediction:
    """What the law says of a run, and the least and most it says without one of its points."""

    parameters: int
    tokens: int
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Scaling:
    """Runs, the law of their losses, and a larger run: predicted, and trained where asked for."""

    runs: tuple[Trained, ...]
    law: Law
    prediction: Prediction
    check: Trained | None


def spec_of(base: TrainSpec, size: Size, width_per_layer: int, vocab_size: int) -> TrainSpec:
    """The run of one size: the dial's shape and recipe, in a folder of its own below the base's.

    The base gives the data, the environment, and everything about the model that the dial does not
    decide. Raises ConfigError for a size that cannot be.
    """
    kept = base.model.model_dump(exclude_unset=True, exclude={*SHAPE, "vocab_size"})
    width = {"d_model": width_per_layer * size.depth, "vocab_size": vocab_size}
    model = ModelConfig.model_validate(shape(size.depth, kept | width))
    train = recipe(model, _watched_at_the_end(base.train, model, size.tokens), size.tokens)
    spec = base.model_copy(update={"model": model, "train": train})
    digest = hashlib.sha256(json.dumps(spec.decisive(), sort_keys=True).encode()).hexdigest()
    name = f"d{size.depth}-{size.tokens}-{digest[:8]}"
    return spec.model_copy(update={"run_url": f"{base.run_url}/{name}"})


def _watched_at_the_end(given: TrainConfig, model: ModelConfig, tokens: int) -> TrainConfig:
    """Settings without what the dial derives, evaluated and sampled after the last step only."""
    steps = recipe(model, tokens=tokens).steps
    quiet = {"eval_every": steps, "sample_every": steps, "sample_tokens": 1}
    derived = {"steps", "batch_size", "accumulation_steps", "optim"}
    settings = given.model_dump(exclude_unset=True, exclude=derived)
    optim = {"optim": {"optimizer": given.optim.optimizer}}
    return TrainConfig.model_validate(settings | quiet | optim)


def train_sizes(
    base: TrainSpec,
    sizes: Sequence[Size],
    width_per_layer: int,
    vocab_size: int,
    say: Callable[[str], None],
) -> list[Trained]:
    """Trains every size that is not trained already, the smallest first."""
    specs = [(size, spec_of(base, size, width_per_layer, vocab_size)) for size in sizes]
    specs.sort(key=lambda one: (n_parameters(one[1].model) * one[0].tokens, one[0].depth))
    done = []
    for number, (size, spec) in enumerate(specs, 1):
        model = spec.model
        what = f"depth {size.depth}, {n_parameters(model):,} parameters, {size.tokens:,} tokens"
        say(f"run {number} of {len(specs)}: {what}")
        done.append(_trained(size, model, train(spec)))
    return done


def _trained(size: Size, model: ModelConfig, result: dict[str, Any]) -> Trained:
    point = Point(law_parameters(model), result["tokens"], result["validation"]["nats_per_token"])
    return Trained(size.depth, model.d_model, point)


def scaling(
    base: TrainSpec,
    sizes: Sequence[Size],
    next_size: Size,
    *,
    width_per_layer: int,
    check: bool = False,
    say: Callable[[str], None] = print,
) -> Scaling:
    """Trains the sizes, fits the law, predicts the next size, and with `check` trains that too.

    The prediction is made before the larger run is looked at. Raises DataError where the sizes do
    not determine a law, ConfigError where the next size is among them or the dataset is too small.
    """
    if next_size in sizes:
        raise ConfigError(
            f"depth {next_size.depth} on {next_size.tokens:,} tokens is among the runs that the "
            "law is fitted to: predict a larger one"
        )
    vocab_size = Tokenizer.from_bytes(files.read_bytes(base.tokenizer_url)).vocab_size
    _check_before(base, sizes, next_size, width_per_layer, vocab_size)
    runs = train_sizes(base, sizes, width_per_layer, vocab_size, say)
    points = [run.point for run in runs]
    law = fit(points)
    spec = spec_of(base, next_size, width_per_layer, vocab_size)
    per_step = spec.train.batch_size * spec.train.accumulation_steps * spec.model.context_length
    prediction = predict(law, points, law_parameters(spec.model), spec.train.steps * per_step)
    say(f"the law predicts {prediction.loss:.4f} for depth {next_size.depth}")
    trained = train_sizes(base, [next_size], width_per_layer, vocab_size, say)[0] if check else None
    return Scaling(tuple(runs), law, prediction, trained)


def _check_before(
    base: TrainSpec, sizes: Sequence[Size], next_size: Size, width_per_layer: int, vocab_size: int
) -> None:
    """Raises, before anything is trained, where there could be no law, or not one of fresh data."""
    models = [spec_of(base, size, width_per_layer, vocab_size).model for size in sizes]
    check_determined(
        [
            Point(law_parameters(model), size.tokens, math.nan)
            for model, size in zip(models, sizes, strict=True)
        ]
    )
    body = read_dataset(base.dataset_url)
    documents, _ = documents_of(body, "train", base.dataset_url, base.base_url)
    most = max(size.tokens for size in [*sizes, next_size])
    if most > MANY_EPOCHS * documents.n_tokens:
        raise ConfigError(
            f"{most:,} tokens are {most / documents.n_tokens:,.0f} passes over the dataset's "
            f"{documents.n_tokens:,}, and what is repeated so often teaches less than the law says "
            f"(Muennighoff et al. 2023): give {MANY_EPOCHS * documents.n_tokens:,} at most"
        )


def predict(law: Law, points: Sequence[Point], parameters: int, tokens: int) -> Prediction:
    """The law's loss for a run, and its range when one of the points is left out."""
    losses = [one.loss(parameters, tokens) for one in (law, *leave_one_out(law, points))]
    return Prediction(parameters, tokens, losses[0], min(losses), max(losses))
