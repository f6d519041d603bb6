"""At which rates does this model learn on these data: `python -m llm.lr_finder SPEC.json`.

The learning-rate range test (Smith 2017, section 3.3): from new weights the rates grow at every
step, by the same factor each time, until the loss rises. All rates of `train.optim` keep their
proportions, so that one number is found: the factor to multiply them with. The curve is printed,
and written to `{run}/lr_finder/curve.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from llm import files
from llm.config_guards import GuardConfig
from llm.config_optim import OptimConfig
from llm.config_train import TrainSpec
from llm.environment import begin
from llm.errors import DataError, LoamError
from llm.inputs import micro_batches, open_inputs
from llm.parallel import World, seed_step
from llm.process import read_spec
from llm.run_state import fresh
from llm.settling import settle
from llm.train import update

STEPS, LOWEST, HIGHEST = 150, 1e-3, 1e2
"""Steps that the test takes, and the factors of its first and last."""
SMOOTHING = 0.9
"""Decay of the mean of losses, corrected for its beginning as Adam's means are."""
RISEN = 0.5
"""Share of what was learnt that the loss has lost again when the test ends."""
SPAN = 5
"""Steps to each side over which the fall of the loss is measured."""
RATES = (
    "learning_rate",
    "muon_learning_rate",
    "embedding_learning_rate",
    "head_learning_rate",
)


@dataclass(frozen=True)
class Tried:
    """One step of the test."""

    factor: float
    """What all rates were multiplied by."""
    loss: float
    """In nats per token, smoothed over the steps before."""


def range_test(
    spec: TrainSpec, steps: int = STEPS, lowest: float = LOWEST, highest: float = HIGHEST
) -> list[Tried]:
    """The loss at factors from `lowest` on, up to `highest` or to where it has risen."""
    tried: list[Tried] = []
    mean, weight = 0.0, 0.0
    for factor, loss in _losses(spec, steps, lowest, highest):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        if not math.isfinite(mean):
            break
        tried.append(Tried(factor, mean / weight))
        first, least = tried[0].loss, min(each.loss for each in tried)
        if tried[-1].loss > least + max(RISEN * (first - least), RISEN):
            break
    return tried


def _losses(
    spec: TrainSpec, steps: int, lowest: float, highest: float
) -> Iterator[tuple[float, float]]:
    """Factor and loss of each step of a run whose rates grow."""
    # No warm-up, no decay, no guard: what is looked for is where it goes wrong.
    optim = {"warmup_steps": 0, "decay": "wsd", "decay_fraction": 1e-9}
    settings = {
        "steps": steps + 1,
        "optim": spec.train.optim.model_copy(update=optim),
        "guards": GuardConfig(skip_above=0, divergence=0),
    }
    config = spec.train.model_copy(update=settings)
    spec = spec.model_copy(update={"train": config, "run_url": f"{spec.run_url}/lr_finder"})
    environment = begin(config)
    world = World.single(environment.device)
    inputs = open_inputs(spec)
    run = fresh(inputs.model_config, config, environment)
    size, environment = settle(run, spec, inputs, environment, world)
    peaks = [
        (group, group["initial_lr"])
        for optimizer in run.optimizers
        for group in optimizer.param_groups
    ]
    for step in range(steps):
        factor = lowest * (highest / lowest) ** (step / max(1, steps - 1))
        for group, peak in peaks:
            group["initial_lr"] = peak * factor
        seed_step(config.seed, step, world)
        batches = micro_batches(inputs, config, step, world, size)
        yield factor, update(run, batches, environment, config).loss


def advice(tried: Sequence[Tried]) -> float:
    """The factor to multiply the rates with: where the loss falls fastest.

    Not where it is lowest, where the rates begin to do harm (Smith 2017; fastai's `steep`).
    Raises DataError where the loss never fell.
    """
    if not tried or min(each.loss for each in tried) > tried[0].loss - 0.01:
        raise DataError(
            "the loss did not fall at any rate: look at the data, or begin with lower ones (--from)"
        )

    def fall(i: int) -> float:
        return tried[max(0, i - SPAN)].loss - tried[min(len(tried) - 1, i + SPAN)].loss

    return tried[max(range(len(tried)), key=fall)].factor


def table(tried: Sequence[Tried], optim: OptimConfig, factor: float, rows: int = 24) -> Table:
    """The curve: a bar for each of a few steps, longer where the loss is lower."""
    drawn = Table("factor", f"{optim.optimizer}'s rate", "loss", "learnt")
    rate = optim.muon_learning_rate if optim.optimizer == "muon" else optim.learning_rate
    least, most = min(each.loss for each in tried), max(each.loss for each in tried)
    chosen = min(tried, key=lambda each: abs(math.log(each.factor / factor)))
    every = -(-len(tried) // rows)
    for i, each in enumerate(tried):
        if i % every and each is not chosen:
            continue
        learnt = (most - each.loss) / ((most - least) or 1)
        mark = " <- advised" if each is chosen else ""
        drawn.add_row(
            f"{each.factor:.3g}",
            f"{rate * each.factor:.2g}",
            f"{each.loss:.3f}",
            "█" * round(40 * learnt) + mark,
        )
    return drawn


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 when it cannot run or nothing is learnt."""
    parser = argparse.ArgumentParser(
        prog="python -m llm.lr_finder",
        description="Finds what to multiply the rates of train.optim with.",
    )
    parser.add_argument("spec", help="path or URL of a run's spec or its run.json")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps to take ({STEPS})")
    parser.add_argument(
        "--from", type=float, default=LOWEST, dest="lowest", help=f"first factor ({LOWEST})"
    )
    parser.add_argument(
        "--to", type=float, default=HIGHEST, dest="highest", help=f"last factor ({HIGHEST:g})"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    console = Console(highlight=False)
    try:
        spec = read_spec(options.spec)
        tried = range_test(spec, options.steps, options.lowest, options.highest)
        body = json.dumps([asdict(each) for each in tried], indent=1) + "\n"
        files.put(f"{spec.run_url}/lr_finder/curve.json", body.encode())
        factor = advice(tried)
    except LoamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(table(tried, spec.train.optim, factor))
    console.print(f"Multiply the rates by about {factor:.2g}:\n\n\\[train.optim]")
    for name in RATES:
        console.print(f"{name} = {getattr(spec.train.optim, name) * factor:.2g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
