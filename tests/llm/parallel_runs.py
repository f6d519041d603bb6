"""Small trainings of one or several processes, each step's loss and gradient norm recorded.

    torchrun --nproc-per-node 2 -m tests.llm.parallel_runs JOBS.json

runs the jobs one after the other; the first rank writes what each recorded beside its checkpoints.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llm import checkpoint, parallel
from llm.config_model import ModelConfig
from llm.config_optim import OptimConfig
from llm.families import build_model
from llm.optim import build_optimizers
from llm.parallel import World
from llm.resharding import like_parameters

# Odd sizes: no tensor is cut evenly by two ranks everywhere.
SHAPE: dict[str, Any] = {
    "vocab_size": 61, "context_length": 16, "n_layers": 2, "d_model": 30, "n_heads": 3,
    "d_ff": 65, "qk_norm": True,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "experts": {"n_experts": 5, "n_experts_per_token": 2, "d_ff": 24, "balance_coefficient": 0.05},
    "gpt2": {"family": "gpt2", "qk_norm": False},
    "speedrun": {"family": "speedrun"},
}
BATCH, MICRO_BATCHES, STEPS, SAVED_AT = 4, 2, 8, 4


@dataclass(frozen=True)
class Job:
    """One training: how its model is held, where it saves, and whose checkpoint it begins from."""

    kind: parallel.Kind
    folder: str
    start: str | None = None
    optimizer: str = "adamw"
    model: str = "llama"


def run(job: Job, world: World) -> list[dict[str, float]]:
    """Trains to the last step, with a checkpoint on the way; what it recorded of each step."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(**(SHAPE | FAMILIES[job.model])), seed=3)
    wrapped = parallel.wrap(model, job.kind)
    config = OptimConfig(optimizer=job.optimizer, weight_decay=0.1)  # type: ignore[arg-type]
    optimizers = build_optimizers(model, config)
    step, rows = 0, []
    if job.start is not None:
        found = checkpoint.latest(job.start, like_parameters(model, optimizers))
        assert found is not None
        model.load_state_dict(found.state["model"])
        for optimizer, saved in zip(optimizers, found.state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = found.state["progress"]["step"]
    with checkpoint.Writer(job.folder, world=world) as writer:
        while step < STEPS:
            rows.append(update(wrapped, optimizers, step, world))
            step += 1
            if step == SAVED_AT:
                state = {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "progress": {"step": step},
                }
                writer.save(step, state)
    return rows


def update(
    wrapped: parallel.Wrapped, optimizers: list[torch.optim.Optimizer], step: int, world: World
) -> dict[str, float]:
    """One step on this rank's rows of the global batch; its loss and gradient norm, over all."""
    generator = torch.Generator().manual_seed(step)
    share = BATCH // world.world_size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    shape = (MICRO_BATCHES, BATCH, SHAPE["context_length"] + 1)
    tokens = torch.randint(SHAPE["vocab_size"], shape, generator=generator)
    inputs, targets = tokens[..., :-1], tokens[..., 1:].clone()
    targets[0, 0, 3:] = -100  # Padding: ranks have different numbers of targets.
    n_targets = int((targets != -100).sum())
    total = torch.zeros(())
    for i in range(MICRO_BATCHES):
        with wrapped.micro_batch(last=i == MICRO_BATCHES - 1):
            loss = wrapped.loss(inputs[i, mine], targets[i, mine], "sum") / n_targets
            loss.backward()
        total += loss.detach()
    norm = parallel.clip_grad_norm(wrapped.model.parameters(), 0.5)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": parallel.sum_over_ranks(total).item(), "norm": norm.item()}


def record(jobs: list[Job], world: World) -> None:
    """Runs the jobs, and leaves what each recorded in its folder."""
    for job in jobs:
        rows = run(job, world)
        if world.is_main:
            (Path(job.folder) / "rows.json").write_text(json.dumps(rows))


def write_jobs(path: Path, jobs: list[Job]) -> None:
    path.write_text(json.dumps([asdict(job) for job in jobs]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    here = parallel.begin("cpu")
    record([Job(**job) for job in json.loads(Path(sys.argv[1]).read_text())], here)
    parallel.end()
