"""What surrounds a run and stays as it is while the run goes on."""

from __future__ import annotations

from dataclasses import dataclass

from llm.config_train import TrainConfig, TrainSpec
from llm.environment import Environment
from llm.inputs import Inputs
from llm.parallel import World


@dataclass(frozen=True)
class Setup:
    """What a run is told, what it reads, and where it trains."""

    spec: TrainSpec
    inputs: Inputs
    environment: Environment
    world: World
    micro_batch_size: int
    """Windows that each rank learns from at a time."""

    @property
    def config(self) -> TrainConfig:
        return self.spec.train
