"""Trainings beside a pipeline, to learn something from: on its dataset, or on that of a text."""

from __future__ import annotations

from pathlib import Path

from flows.cli_options import find_line, load
from llm import files
from llm.config_model import ModelConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.errors import DataError
from tasks.store.store import Store
from tasks.tokenise import dataset_url

CONTEXT_LENGTH = 64
"""Of a text file's models; nanoGPT's documented CPU task."""


def trial_on_text(kind: str, text: str, to: Path | None) -> tuple[str, Path, TrainSpec]:
    """The name of a trial, its folder (`.loam/KIND/NAME` unless given), and what its runs have in
    common. The text (UTF-8, plain or .gz) is cut into characters."""
    from llm.text_dataset import write_text_dataset

    name = Path(text).name.split(".")[0]
    folder = to or Path(".loam") / kind / name
    data = write_text_dataset(text, folder / "data")
    spec = TrainSpec(
        run_url=files.absolute_url(str(folder / "runs")),
        dataset_url=data.dataset_url,
        base_url=data.base_url,
        tokenizer_url=data.tokenizer_url,
        cache_dir=str(folder / "cache"),
        model=ModelConfig(context_length=CONTEXT_LENGTH),
        train=TrainConfig(),
    )
    return name, folder, spec


def trial_on_pipeline(
    kind: str, path: Path | None, to: Path | None, store: str | None
) -> tuple[str, Path, TrainSpec]:
    """As `trial_on_text`, on the dataset, the model and the settings of a pipeline.

    Raises DataError where its dataset was not made yet.
    """
    _, pipeline = load(path, store)
    place = Store.at(pipeline.store.root)
    if place.find_ref("dataset", pipeline.name) is None:
        raise DataError(
            f"there is no dataset/{pipeline.name} in {place.root}: `loam run` makes it, where the "
            "config has a [model]"
        )
    dataset = find_line(place, f"dataset/{pipeline.name}")[-1]
    folder = to or Path(".loam") / kind / pipeline.name
    folder.mkdir(parents=True, exist_ok=True)
    spec = TrainSpec(
        run_url=files.absolute_url(str(folder / "runs")),
        dataset_url=dataset_url(place, dataset),
        base_url=place.root,
        tokenizer_url=place.object_url(dataset.object("tokenizer")),
        cache_dir=pipeline.store.cache_dir,
        model=pipeline.model or ModelConfig(),
        train=pipeline.train,
    )
    return pipeline.name, folder, spec
