"""Evaluate: a trained model on the pinned held-out splits, beside what needs no model at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from llm.config import Config
from tasks.as_task import as_task
from tasks.split import HELDOUT
from tasks.store.fingerprint import fingerprint
from tasks.store.pins import find_pin
from tasks.store.records import Manifest
from tasks.store.run import Request, Run, reuse
from tasks.store.stage import Stage
from tasks.store.store import Store, now
from tasks.takedown import read_list
from tasks.tokenise import dataset_url

STAGE = Stage("evaluate", 2, ("torch",))


class EvaluateConfig(Config):
    """On what a model is measured, and in what batches."""

    splits: tuple[str, ...] = ("validation", "test")
    """Splits of the held-out set; one without documents is left out."""

    batch_size: int = Field(32, ge=1)
    """Windows scored at a time; it decides the speed and not the figures."""


def evaluate_request(trained: Manifest, dataset: Manifest, config: EvaluateConfig) -> Request:
    """What decides the figures: the weights, the dataset and the splits."""
    inputs = {"model": trained, "dataset": dataset}
    return Request(STAGE, {"splits": config.splits}, inputs)


@as_task("evaluate")
def evaluate(run: Run, trained: Manifest, dataset: Manifest, config: EvaluateConfig) -> Manifest:
    """Loss, perplexity and bits per byte of the model and of trivial baselines, per split."""
    request = evaluate_request(trained, dataset, config)
    if done := reuse(run, request):
        return done
    figures = _figures(run, trained, dataset, config)
    return run.store.commit(
        Manifest(
            stage=STAGE.name,
            fingerprint=request.ref.fingerprint,
            payload=request.payload,
            inputs={role: manifest.ref for role, manifest in request.inputs.items()},
            rows_in=dataset.rows_out,
            rows_out=dataset.rows_out,
            drops={},
            data_digest=fingerprint(request.payload),
            receipts=None,
            summary={"splits": figures},
            provenance={**run.provenance, "run_id": run.run_id, "at": now()},
        )
    )


def _figures(
    run: Run, trained: Manifest, dataset: Manifest, config: EvaluateConfig
) -> dict[str, dict[str, Any]]:
    from llm import evaluate as scoring
    from llm.data import prepare
    from llm.dataset_file import count_tokens
    from llm.tokenizer import Tokenizer

    store = run.store
    tokenizer = Tokenizer.from_bytes(store.read_bytes(dataset.object("tokenizer")))
    model = load_model(store, trained)
    url = dataset_url(store, dataset)
    cache, eot = Path(run.cache_dir), tokenizer.eot_id
    # Read where they lie: a training split may be larger than this disk.
    counts_V = count_tokens(url, "train", store.root, eot_id=eot, vocab_size=tokenizer.vocab_size)
    figures: dict[str, dict[str, Any]] = {}
    for split in config.splits:
        if split not in dataset.summary["splits"]:
            continue
        held = prepare(url, split, cache, store.root, eot_id=eot)
        found = {
            "model": scoring.evaluate(
                model,
                held,
                context_length=model.config.context_length,
                batch_size=config.batch_size,
                document_mask=trained.payload["config"]["train"]["data"]["document_mask"],
            ),
            "uniform": scoring.uniform_baseline(tokenizer.vocab_size, held),
            "unigram": scoring.unigram_of_counts(counts_V, held),
            "gzip": scoring.gzip_baseline(_heldout_texts(run, split)),
        }
        figures[split] = {name: asdict(evaluation) for name, evaluation in found.items()}
    return figures


def _heldout_texts(run: Run, split: str) -> Iterator[bytes]:
    pin = find_pin(run.store, run.name, "heldout")
    held = run.store.read_table(pin.object if pin else None, HELDOUT)
    for row in read_list(run.store).hide(held).select(["text", "split"]).to_pylist():
        if row["split"] == split:
            yield row["text"].encode()


def load_model(store: Store, trained: Manifest) -> Any:
    """The trained model, on the CPU, ready to be read from."""
    from safetensors.torch import load

    from llm.config_model import ModelConfig
    from llm.families import build_model

    model = build_model(ModelConfig.model_validate(trained.summary["result"]["model"]))
    model.load_state_dict(load(store.read_bytes(trained.object("weights"))))
    return model.eval()
