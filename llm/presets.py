"""Shapes by name, from one million to eight billion parameters, and a mixture. No torch here.

Published shapes carry the count of their model card or paper, which the tests hold them to; the
small ones are ours, for what the published ones begin above. Context lengths are those of the main
part of their pre-training, which is what its cost is counted by.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm.config_model import ModelConfig, n_parameters


@dataclass(frozen=True)
class Preset:
    """A shape, the number of parameters it must have, and where it comes from."""

    config: ModelConfig
    parameters: int
    source: str


def _llama(
    vocab_size: int, context_length: int, n_layers: int, d_model: int, n_heads: int,
    n_kv_heads: int, d_ff: int, *, tied: bool = False, rope_theta: float = 10000.0,
) -> ModelConfig:  # fmt: skip
    return ModelConfig(
        vocab_size=vocab_size, context_length=context_length, n_layers=n_layers, d_model=d_model,
        n_heads=n_heads, n_kv_heads=n_kv_heads, d_ff=d_ff, tie_embeddings=tied,
        rope_theta=rope_theta,
    )  # fmt: skip


def _gpt2(n_layers: int, d_model: int, n_heads: int) -> ModelConfig:
    return ModelConfig(
        family="gpt2", vocab_size=50257, context_length=1024, n_layers=n_layers, d_model=d_model,
        n_heads=n_heads,
    )  # fmt: skip


_QWEN3 = ModelConfig(
    vocab_size=151936, context_length=4096, n_layers=28, d_model=1024, n_heads=16, n_kv_heads=8,
    head_dim=128, d_ff=3072, qk_norm=True, tie_embeddings=True, rope_theta=1e6, norm_eps=1e-6,
)  # fmt: skip

PRESETS = {
    "llama-1m": Preset(_llama(2048, 256, 4, 128, 4, 4, 320, tied=True), 1_016_960, "ours"),
    "llama-10m": Preset(_llama(8192, 512, 6, 320, 5, 5, 896, tied=True), 10_244_160, "ours"),
    "llama-50m": Preset(_llama(32768, 1024, 9, 576, 9, 9, 1536, tied=True), 54_717_120, "ours"),
    "gpt2": Preset(_gpt2(12, 768, 12), 124_439_808, "Radford et al. 2019"),
    "smollm2-135m": Preset(
        _llama(49152, 2048, 30, 576, 9, 3, 1536, tied=True, rope_theta=100000.0),
        134_515_008, "Allal et al. 2025",
    ),
    "gpt2-medium": Preset(_gpt2(24, 1024, 16), 354_823_168, "Radford et al. 2019"),
    "smollm2-360m": Preset(
        _llama(49152, 2048, 32, 960, 15, 5, 2560, tied=True, rope_theta=100000.0),
        361_821_120, "Allal et al. 2025",
    ),
    "qwen3-0.6b": Preset(_QWEN3, 596_049_920, "Yang et al. 2025"),
    "gpt2-large": Preset(_gpt2(36, 1280, 20), 774_030_080, "Radford et al. 2019"),
    "tinyllama-1.1b": Preset(
        _llama(32000, 2048, 22, 2048, 32, 4, 5632), 1_100_048_384, "Zhang et al. 2024"
    ),
    "llama-3.2-1b": Preset(
        _llama(128256, 8192, 16, 2048, 32, 8, 8192, tied=True, rope_theta=500000.0),
        1_235_814_400, "Llama 3.2's model card",
    ),
    "gpt2-xl": Preset(_gpt2(48, 1600, 25), 1_557_611_200, "Radford et al. 2019"),
    "llama-3.2-3b": Preset(
        _llama(128256, 8192, 28, 3072, 24, 8, 8192, tied=True, rope_theta=500000.0),
        3_212_749_824, "Llama 3.2's model card",
    ),
    "llama-2-7b": Preset(
        _llama(32000, 4096, 32, 4096, 32, 32, 11008), 6_738_415_616, "Touvron et al. 2023"
    ),
    "llama-3-8b": Preset(
        _llama(128256, 8192, 32, 4096, 32, 8, 14336, rope_theta=500000.0),
        8_030_261_248, "Grattafiori et al. 2024",
    ),
    "qwen3-30b-a3b": Preset(
        ModelConfig(
            vocab_size=151936, context_length=4096, n_layers=48, d_model=2048, n_heads=32,
            n_kv_heads=4, head_dim=128, n_experts=128, n_experts_per_token=8, d_ff=768,
            qk_norm=True, rope_theta=1e6, norm_eps=1e-6,
        ),
        30_532_122_624, "Yang et al. 2025",
    ),
}  # fmt: skip
"""By name, from small to large."""

NEAR = 1 / 8
"""A count within this share of a preset's means that preset: 7B is Llama 2's 6.7. Not a mixture's,
which has two counts."""


def nearest_preset(parameters: float) -> str | None:
    """The name of the preset whose count is nearest, if it is within `NEAR` of `parameters`."""
    dense = [name for name, one in PRESETS.items() if not one.config.n_experts]
    name = min(dense, key=lambda one: abs(PRESETS[one].parameters - parameters))
    return name if abs(PRESETS[name].parameters / parameters - 1) <= NEAR else None


def count(name: str) -> int:
    """The parameters of a preset, counted."""
    return n_parameters(PRESETS[name].config)
