"""What a run shows of itself between two steps: its validation loss, and what it writes by now."""

from __future__ import annotations

from dataclasses import asdict

from llm import files, parallel
from llm.config_train import TrainConfig
from llm.evaluate import evaluate
from llm.families import build_model
from llm.generate import generate, prompt_tokens
from llm.metrics import Row
from llm.run_folder import json_bytes
from llm.run_state import Run
from llm.sampling import SamplingConfig
from llm.setup import Setup

SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 0.8, 200
"""nanoGPT's defaults in `sample.py`."""


def validate(run: Run, setup: Setup, max_windows: int | None) -> Row:
    """Looks at the validation split, in the numbers training uses; figures for the log.

    At the first `max_windows` of it; None: at all of it.
    """
    with setup.environment.autocast():
        found = evaluate(
            run.model,
            setup.inputs.validation,
            context_length=run.model.config.context_length,
            batch_size=setup.micro_batch_size * setup.world.world_size,
            document_mask=setup.config.data.document_mask,
            max_windows=max_windows,
            device=setup.environment.device,
            world=setup.world,
        )
    run.validation = {"step": run.step} | asdict(found)
    best = run.best_validation
    if best is None or found.nats_per_token < best["nats_per_token"]:
        run.best_validation = run.validation
    return {"validation_loss": found.nats_per_token, "bits_per_byte": found.bits_per_byte}


def worth_saving(run: Run, config: TrainConfig) -> bool:
    """Whether a look is one that an early stop goes back to, or the one that brings it about."""
    best = config.guards.patience > 0 and run.validation is run.best_validation
    return best or run.stopped_early(config)


def sample(run: Run, setup: Setup) -> None:
    """Writes what the model makes of each prompt now, drawn under the run's seed."""
    model = parallel.whole_model(run.model, setup.world, build_model)
    if model is None:
        return
    config, tokenizer = setup.config, setup.inputs.tokenizer
    made = generate(
        model,
        [prompt_tokens(tokenizer, prompt) for prompt in config.sample_prompts],
        SamplingConfig(
            max_new_tokens=config.sample_tokens,
            temperature=SAMPLE_TEMPERATURE,
            top_k=SAMPLE_TOP_K,
            seed=config.seed,
        ),
        tokenizer,
    )
    samples = [
        {"prompt": prompt, "text": one.text}
        for prompt, one in zip(config.sample_prompts, made, strict=True)
    ]
    body = json_bytes({"step": run.step, "samples": samples})
    files.put(f"{setup.spec.run_url}/samples/{run.step:08d}.json", body)
