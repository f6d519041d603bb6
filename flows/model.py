"""The model recipe: a corpus to a trained, evaluated and registered model."""

from __future__ import annotations

from flows.config import PipelineConfig
from llm.errors import ConfigError, DataError
from tasks.evaluate import evaluate
from tasks.export_model import export
from tasks.publish import publish
from tasks.register import Registered, register
from tasks.store.records import Manifest
from tasks.store.run import Run
from tasks.tokenise import dataset, tokenise
from tasks.train import train


def grow_model(run: Run, config: PipelineConfig, corpus: Manifest) -> Registered:
    """Tokens, a dataset, weights, their figures, and a version in the registry."""
    if config.model is None:
        raise ConfigError("the config has no [model]: add its shape to train one")
    tokens = tokenise(run, corpus, config.tokenizer)
    data = publish(run, dataset(run, tokens, config.tokenizer), "dataset")
    trained = train(run, data, config.model, config.train)
    evaluated = evaluate(run, trained, data, config.evaluate)
    exported = export(run, trained)
    return register(run, data, trained, evaluated, exported, config.registry)


def current_corpus(run: Run) -> Manifest:
    """The corpus that the pipeline's ref names. Raises DataError when there is none yet."""
    ref = run.store.find_ref("corpus", run.name)
    if ref is None:
        raise DataError(f"there is no corpus/{run.name} yet; run the corpus flow first")
    return run.store.manifest(ref.manifest)
