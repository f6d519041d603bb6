"""What a run shows of itself between two steps: its validation loss, and what it writes by now."""

from __future__ import annotations

from dataclasses import asdict

from llm import files, parallel
from llm.config_train import TrainSpec
from llm.environment import Environment
from llm.evaluate import evaluate
from llm.families import build_model
from llm.generate import generate, prompt_tokens
from llm.inputs import Inputs
from llm.metrics import Row
from llm.parallel import World
from llm.run_folder import json_bytes
from llm.run_state import Run
from llm.sampling import SamplingConfig

SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 0.8, 200
"""nanoGPT's defaults in `sample.py`."""


def validate(
    run: Run,
    inputs: Inputs,
    environment: Environment,
    world: World,
    *,
    batch_size: int,
    max_windows: int | None,
) -> Row:
    """Looks at the validation split, in the numbers training uses; figures for the log.

    `batch_size` windows at a time, up to `max_windows`; None: all of them.
    """
    with environment.autocast():
        found = evaluate(
            run.model,
            inputs.validation,
            context_length=inputs.model_config.context_length,
            batch_size=batch_size,
            max_windows=max_windows,
            device=environment.device,
            world=world,
        )
    run.validation = {"step": run.step} | asdict(found)
    best = run.best_validation
    if best is None or found.nats_per_token < best["nats_per_token"]:
        run.best_validation = run.validation
    return {"validation_loss": found.nats_per_token, "bits_per_byte": found.bits_per_byte}


def sample(run: Run, inputs: Inputs, world: World, spec: TrainSpec) -> None:
    """Writes what the model makes of each prompt now, drawn under the run's seed."""
    model = parallel.whole_model(run.model, world, build_model)
    if model is None:
        return
    prompts = spec.train.sample_prompts
    made = generate(
        model,
        [prompt_tokens(inputs.tokenizer, prompt) for prompt in prompts],
        SamplingConfig(
            max_new_tokens=spec.train.sample_tokens,
            temperature=SAMPLE_TEMPERATURE,
            top_k=SAMPLE_TOP_K,
            seed=spec.train.seed,
        ),
        inputs.tokenizer,
    )
    samples = [
        {"prompt": prompt, "text": one.text} for prompt, one in zip(prompts, made, strict=True)
    ]
    body = json_bytes({"step": run.step, "samples": samples})
    files.put(f"{spec.run_url}/samples/{run.step:08d}.json", body)
