"""A run's log in other programs: TensorBoard, Weights & Biases, MLflow.

None of them is needed: each is an extra of pyproject.toml, imported when `train.log_to` names it.
They are told what the run's own log says, and have no say in the run. A resumed run goes on under
the same name, and steps that it makes again stand for those it made before.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from llm import files
from llm.config_train import TrainSpec
from llm.errors import ConfigError
from llm.metrics import Row


class LogWriter(Protocol):
    """Where rows of the log go, one for each logged step."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


def open_writers(spec: TrainSpec, step: int) -> list[LogWriter]:
    """What `train.log_to` names, to go on after `step` updates.

    Raises ConfigError with the command that installs what is missing.
    """
    kinds: dict[str, Callable[[TrainSpec, int], LogWriter]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "mlflow": MLflow,
    }
    return [kinds[name](spec, step) for name in spec.train.log_to]


def _imported(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f'train.log_to names "{extra}", which is not installed ({error}): '
            f"pip install 'loam[{extra}]', or leave it out"
        ) from error


def local_folder(spec: TrainSpec, name: str) -> Path:
    """Where a program that writes to disks only puts a run's files."""
    if files.is_s3(spec.run_url):
        return Path(spec.cache_dir) / name / run_id(spec)
    return files.local_path(spec.run_url) / name


def run_id(spec: TrainSpec) -> str:
    """The same for a run that is resumed, and another for every other run."""
    return hashlib.sha256(spec.run_url.encode()).hexdigest()[:16]


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step"}


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir`."""

    def __init__(self, spec: TrainSpec, step: int) -> None:
        module = _imported("torch.utils.tensorboard", "tensorboard")
        folder = local_folder(spec, "tensorboard")
        # What was written of steps after the checkpoint is taken back.
        self._writer = module.SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, row: Row) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run in the project that `WANDB_PROJECT` names; `WANDB_MODE=offline` keeps it here."""

    def __init__(self, spec: TrainSpec, step: int) -> None:
        module = _imported("wandb", "wandb")
        folder = local_folder(spec, "wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = module.init(
            id=run_id(spec), resume="allow", dir=str(folder), config=spec.decisive()
        )
        # By the step and not by the order of calls, which does not go back after a resume.
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        self._run.log(dict(row))

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run at `MLFLOW_TRACKING_URI`, in the experiment that `MLFLOW_EXPERIMENT_NAME` names."""

    def __init__(self, spec: TrainSpec, step: int) -> None:
        self._mlflow = _imported("mlflow", "mlflow")
        tag = run_id(spec)
        found = self._mlflow.search_runs(
            filter_string=f"tags.loam_run = '{tag}'", output_format="list"
        )
        self._run = self._mlflow.start_run(
            run_id=found[0].info.run_id if found else None, tags={"loam_run": tag}
        )

    def write(self, row: Row) -> None:
        self._mlflow.log_metrics(_numbers(row), step=row["step"])

    def close(self) -> None:
        self._mlflow.end_run()
