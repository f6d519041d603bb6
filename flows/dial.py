"""`[model] depth = 8` in a pipeline's config: what the sections leave out, filled in on reading.

What comes out is an ordinary config without a `depth`, so that a run is known by what it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue

from llm.config_model import ModelConfig
from llm.config_tokenizer import N_BYTES
from llm.config_train import TrainConfig
from llm.depth import MOST_LAYERS, recipe, shape
from llm.errors import ConfigError
from tasks.tokenise import TokeniseConfig

if TYPE_CHECKING:
    from flows.config import PipelineConfig

DIAL_KEYS: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {
    ("model",): {
        "depth": {
            "title": "Depth",
            "description": "Number of blocks, from which follows what model and train leave "
            "out: empty their fields that are to follow.",
            "type": "integer",
            "minimum": 1,
            "maximum": MOST_LAYERS,
        }
    },
    ("train",): {
        "tokens": {
            "title": "Tokens",
            "description": "Tokens to train on, in the place of steps; with model.depth only.",
            "type": "integer",
            "minimum": 1,
        }
    },
}
"""Keys that a config's sections may hold beside their fields, and hold no more once it is read, as
JSON schemas."""


def turn_the_dial(data: dict[str, Any]) -> dict[str, Any]:
    """The config's data with `model.depth` and `train.tokens` turned into what follows from them.

    Raises ValueError, for pydantic to tell, where they contradict the rest. Other mistakes are left
    for the validation of the sections, which names their keys.
    """
    model, train = data.get("model"), data.get("train", {})
    tokens = train.get("tokens") if isinstance(train, dict) else None
    if not isinstance(model, dict) or "depth" not in model:
        if tokens is not None:
            raise ValueError("train.tokens needs model.depth; without it, give train.steps")
        return data
    if isinstance(train, dict):
        train = {name: value for name, value in train.items() if name != "tokens"}
    model = {name: value for name, value in model.items() if name != "depth"}
    try:
        _check_layers(data["model"]["depth"], model)
        model = shape(data["model"]["depth"], model)
        _check_tokens(tokens, train)
        vocabulary = _vocabulary(model, data.get("tokenizer", {}))
        counted = ModelConfig.model_validate(model | {"vocab_size": vocabulary})
        train = recipe(counted, TrainConfig.model_validate(train), tokens)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    except ValidationError:
        pass
    return data | {"model": model, "train": train}


def add_the_dial(schema: JsonSchemaValue, handler: GetJsonSchemaHandler) -> None:
    """Adds `DIAL_KEYS` to a pipeline's JSON schema, of which a deployment's form is made."""
    properties = handler.resolve_ref_schema(schema)["properties"]
    for (section,), keys in DIAL_KEYS.items():
        # An optional section is one or null.
        one, *_ = properties[section].get("anyOf", [properties[section]])
        handler.resolve_ref_schema({"$ref": one["$ref"]})["properties"] |= keys


def model_to_count(pipeline: PipelineConfig) -> ModelConfig:
    """The pipeline's model with a vocabulary to count by. Raises ConfigError without a model."""
    if pipeline.model is None:
        raise ConfigError("the config has no [model]: add its shape, or [model] depth = N")
    vocab_size = pipeline.model.vocab_size or _size_of(pipeline.tokenizer)
    return pipeline.model.model_copy(update={"vocab_size": vocab_size})


def trained_tokens(train: TrainConfig, model: ModelConfig) -> int:
    """Tokens that a run learns from, its windows full."""
    return train.steps * train.batch_size * train.accumulation_steps * model.context_length


def _check_layers(depth: Any, model: dict[str, Any]) -> None:
    if model.get("n_layers", depth) != depth:
        raise ConfigError(
            f"model.depth = {depth} and model.n_layers = {model['n_layers']} both say how many "
            "layers: leave out n_layers, and what else is to follow from depth"
        )


def _check_tokens(tokens: Any, train: Any) -> None:
    if tokens is None:
        return
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"train.tokens is {tokens!r}: expected a whole number of at least 1")
    if "steps" in train:
        raise ConfigError(
            f"train.tokens = {tokens} and train.steps = {train['steps']} both say how long to "
            "train: give one of them"
        )


def _vocabulary(model: dict[str, Any], tokenizer: Any) -> int:
    """Tokens to count the model's parameters by, before there is a tokenizer."""
    if model.get("vocab_size"):
        return model["vocab_size"]
    config = TokeniseConfig.model_validate(tokenizer)
    if config.path is not None:
        raise ConfigError(
            f"model.depth sets the tokens to train on by the number of parameters, and how many "
            f"tokens {config.path} knows is not read here: give model.vocab_size"
        )
    return _size_of(config)


def _size_of(tokenizer: TokeniseConfig) -> int:
    # Characters are as many as the text has; bytes are as good a guess.
    return N_BYTES if tokenizer.kind == "characters" else tokenizer.vocab_size
