"""The families of models, and the one function that builds any of them."""

from __future__ import annotations

from collections.abc import Callable

from llm.config_model import ModelConfig
from llm.decoder import Decoder
from llm.gpt2 import GPT2
from llm.model import Model
from llm.speedrun import Speedrun

__all__ = ["Decoder", "build_model"]

_FAMILIES: dict[str, Callable[[ModelConfig, int], Decoder]] = {
    "llama": Model,
    "gpt2": GPT2,
    "speedrun": Speedrun,
}


def build_model(config: ModelConfig, seed: int = 0) -> Decoder:
    """A new model of the config's family, on the CPU in fp32, its weights drawn from `seed`.

    Raises ConfigError while `vocab_size` is still to be taken from a tokenizer.
    """
    return _FAMILIES[config.family](config, seed)
