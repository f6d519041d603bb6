"""The ladder: language models one idea apart, trained, sampled and evaluated alike on one corpus.

All but the first see the same batches in the same order, by the step that trains any model here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from llm.config_train import TrainConfig, TrainSpec
from llm.decoder import Decoder
from llm.environment import Environment, begin
from llm.evaluate import Evaluation, evaluate, unigram_baseline
from llm.families import build_model
from llm.generate import unwritten_ids
from llm.guards import Guard
from llm.inputs import Inputs, micro_batches, open_inputs
from llm.ladder.bigram import NeuralBigram, check_table, count_bigram
from llm.ladder.gru import Gru
from llm.ladder.mlp import N_TOKENS, Mlp
from llm.ladder.rung import Rung
from llm.looking import SAMPLE_TEMPERATURE
from llm.loss_scale import LossScale
from llm.optim import build_optimizers
from llm.parallel import World, Wrapped
from llm.run_state import Run
from llm.train import update

TELL_EVERY_S = 30.0
"""How long a rung may train before it says how far it is, again and again."""


@dataclass(frozen=True)
class Kind:
    """A rung before it is built."""

    name: str
    adds: str
    """What the one below it does not do."""
    build: Callable[[Inputs, int], Rung | Decoder]
    """A new one, from what a run reads and a seed."""


def _vocab_size(inputs: Inputs) -> int:
    return inputs.model_config.vocab_size


LADDER = (
    Kind("count bigram", "looks at the token before", lambda inputs, seed: count_bigram(
        inputs.train, _vocab_size(inputs))),
    Kind("neural bigram", "learns by gradient what the other counts", lambda inputs, seed:
        NeuralBigram(_vocab_size(inputs))),
    Kind("MLP", f"looks at the last {N_TOKENS} tokens, each a vector", lambda inputs, seed: Mlp(
        _vocab_size(inputs), inputs.model_config.d_model, seed)),
    Kind("GRU", "carries a state through all tokens so far", lambda inputs, seed: Gru(
        _vocab_size(inputs), inputs.model_config.d_model, seed)),
    Kind("transformer", "looks back at any of them, in layers", lambda inputs, seed:
        build_model(inputs.model_config, seed)),
)  # fmt: skip
"""From the lowest rung to the highest."""


@dataclass(frozen=True)
class Climbed:
    """One rung, trained."""

    name: str
    adds: str
    parameters: int
    """Numbers that it holds; of the count bigram, its table."""
    seconds: float
    """To train it, or to count."""
    tokens: int
    """That it was trained on, as often as each was seen."""
    validation: Evaluation
    """Of the whole validation split."""
    bought: float
    """Bits per byte less than the rung below; the lowest: than tokens by their frequency alone."""
    sample: str


@dataclass(frozen=True)
class Ladder:
    """All rungs, and what they stand on: each token as likely as it is frequent."""

    unigram: Evaluation
    rungs: tuple[Climbed, ...]


def climb(spec: TrainSpec, sample_tokens: int, say: Callable[[str], None]) -> Ladder:
    """Trains every rung on the spec's data, for its number of steps; the highest is its model.

    The other rungs take their widths from that model's, and each the rates that suit it. Equal
    specs give equal results, in one environment class, but for the seconds.

    `say` is told which rung is trained, and while it takes long how far it is. Raises ConfigError
    for a vocabulary that is too large for a bigram's table.
    """
    environment, inputs = begin(spec.train), open_inputs(spec)
    check_table(_vocab_size(inputs))
    unigram = unigram_baseline(inputs.train, inputs.validation, _vocab_size(inputs))
    rungs: list[Climbed] = []
    for number, kind in enumerate(LADDER, 1):
        say(f"rung {number} of {len(LADDER)}: {kind.name}")
        below = rungs[-1].validation if rungs else unigram
        rungs.append(_climb(kind, inputs, spec.train, environment, below, sample_tokens, say))
    return Ladder(unigram, tuple(rungs))


def _climb(
    kind: Kind,
    inputs: Inputs,
    config: TrainConfig,
    environment: Environment,
    below: Evaluation,
    sample_tokens: int,
    say: Callable[[str], None],
) -> Climbed:
    began = time.perf_counter()
    model = kind.build(inputs, config.seed).to(environment.device)
    counted = not any(parameter.requires_grad for parameter in model.parameters())
    tokens = inputs.train.n_tokens if counted else _fit(model, inputs, config, environment, say)
    seconds = time.perf_counter() - began
    context_length = inputs.model_config.context_length
    with environment.autocast():
        validation = evaluate(
            model,
            inputs.validation,
            context_length=context_length,
            batch_size=config.batch_size,
            document_mask=config.data.document_mask,
            device=environment.device,
        )
    start, never = inputs.tokenizer.eot_id, unwritten_ids(inputs.tokenizer, _vocab_size(inputs))
    ids = write(model, start, never, sample_tokens, context_length, config.seed)
    return Climbed(
        name=kind.name,
        adds=kind.adds,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=seconds,
        tokens=tokens,
        validation=validation,
        bought=below.bits_per_byte - validation.bits_per_byte,
        sample=inputs.tokenizer.decode(ids),
    )


def _fit(
    model: Rung | Decoder,
    inputs: Inputs,
    config: TrainConfig,
    environment: Environment,
    say: Callable[[str], None],
) -> int:
    """Trains a model as `llm.train` does; the number of tokens that it saw."""
    if isinstance(model, Rung):
        config = config.model_copy(update={"optim": model.optim})
    learner = cast(Decoder, model)  # A rung has all that a step asks of one.
    run = Run(
        Wrapped(learner, learner.loss),
        build_optimizers(learner, config.optim),
        Guard(config.guards),
        LossScale(needed=environment.dtype == "float16"),
    )
    began = told = time.monotonic()
    while run.step < config.steps:
        batches = micro_batches(inputs, config, run.step, World.single(), config.batch_size)
        update(run, batches, environment, config)
        if (now := time.monotonic()) - told > TELL_EVERY_S:
            told, left = now, (now - began) / run.step * (config.steps - run.step)
            say(f"  step {run.step:,} of {config.steps:,}, {left / 60:.1f} min left")
    return run.tokens


@torch.no_grad()
def write(
    model: Rung | Decoder,
    start: int,
    never: list[int],
    n_tokens: int,
    context_length: int,
    seed: int,
) -> list[int]:
    """What the model adds to the token `start`: each drawn given the last `context_length`, and
    none that is one of `never`.

    They are read anew for each, so that nothing is asked of a model but its logits.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = [start]
    model.eval()
    for _ in range(n_tokens):
        tokens_1T = torch.tensor([ids[-context_length:]], device=device)
        logits_V = model(tokens_1T)[0, -1].float().cpu() / SAMPLE_TEMPERATURE
        logits_V[never] = -torch.inf
        ids.append(int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator)))
    return ids[1:]
