"""A run between two steps: everything that decides the rest of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from llm import parallel
from llm.config_model import ModelConfig
from llm.config_train import TrainConfig
from llm.decoder import Decoder
from llm.environment import Environment, rng_state, set_rng_state
from llm.families import build_model
from llm.guards import Guard
from llm.loss_scale import LossScale
from llm.optim import build_optimizers
from llm.parallel import Wrapped

_PROGRESS = ("step", "tokens", "validation", "best_validation", "environments")


@dataclass
class Run:
    """Everything that decides the rest of a run, all of it in its checkpoints.

    Position in the data and in the schedule are functions of `step`.
    """

    wrapped: Wrapped
    optimizers: list[torch.optim.Optimizer]
    guard: Guard
    loss_scale: LossScale
    step: int = 0
    """Steps behind it, skipped ones included."""
    tokens: int = 0
    """Targets seen so far."""
    validation: dict[str, Any] | None = None
    """The last look at the validation split."""
    best_validation: dict[str, Any] | None = None
    environments: list[dict[str, Any]] = field(default_factory=list)
    """The environment classes it has run in, in order."""

    @property
    def model(self) -> Decoder:
        return self.wrapped.model

    def stopped_early(self, config: TrainConfig) -> bool:
        """Whether the last `patience` looks at the validation split were worse than one before."""
        patience = config.guards.patience
        if not patience or self.validation is None or self.best_validation is None:
            return False
        waited = self.validation["step"] - self.best_validation["step"]
        return waited >= patience * config.eval_every

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": rng_state(),
            "guards": {"guard": self.guard.state(), "loss_scale": self.loss_scale.state()},
            "progress": {name: getattr(self, name) for name in _PROGRESS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        set_rng_state(state["rng"])
        self.guard.restore(state["guards"]["guard"])
        self.loss_scale.restore(state["guards"]["loss_scale"])
        for name in _PROGRESS:
            setattr(self, name, state["progress"][name])


def fresh(model_config: ModelConfig, config: TrainConfig, environment: Environment) -> Run:
    """A run before its first step: weights from the seed, optimizers without memory."""
    model = build_model(model_config, config.seed).to(environment.device)
    model.checkpoint_activations = config.checkpoint_activations
    kind = parallel.kind_of(config.parallel, environment.world_size)
    wrapped = parallel.wrap(model, kind, config.reshard_after_forward)
    scale = LossScale(needed=environment.dtype == "float16")
    return Run(wrapped, build_optimizers(model, config.optim), Guard(config.guards), scale)
