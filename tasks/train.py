"""Train: a child process group that learns from a dataset, and the manifest of what came of it.

The child is `python -m llm.launch`: one process, or torchrun with one per device. It checkpoints
into `runs/<run id>` of the store and resumes from there, so the stage only starts it, waits, passes
on a cancel, and records the weights. The run id is the fingerprint's beginning: the same data and
settings are the same run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm import files
from llm.config_model import ModelConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.errors import LoamError
from tasks.as_task import as_task
from tasks.store.lease import held
from tasks.store.records import Manifest
from tasks.store.run import Request, Run, reuse
from tasks.store.stage import Stage
from tasks.store.store import now
from tasks.tokenise import dataset_url

STAGE = Stage("train", 2, ("torch",))
STOP_WITHIN_S, POLL_S = 120.0, 1.0


class TrainingFailed(LoamError):
    """The training process ended with an error, which it has printed."""


def train_request(dataset: Manifest, model: ModelConfig, config: TrainConfig) -> Request:
    """What decides the weights, within one environment class: the data, the shape, the recipe."""
    spec = _spec_without_places(model, config)
    pins = {"tokenizer": dataset.object("tokenizer").sha256}
    return Request(STAGE, spec.decisive(), {"dataset": dataset}, pins)


def _spec_without_places(model: ModelConfig, config: TrainConfig) -> TrainSpec:
    return TrainSpec(
        run_url="", dataset_url="", base_url="", tokenizer_url="", cache_dir="",
        model=model, train=config,
    )  # fmt: skip


def run_url_of(run: Run, request: Request) -> str:
    """Where the checkpoints, metrics and samples of that training lie."""
    return f"{run.store.root}/runs/{request.ref.fingerprint[:16]}"


@as_task("train")
def train(run: Run, dataset: Manifest, model: ModelConfig, config: TrainConfig) -> Manifest:
    """Trains a model on the dataset, from its last checkpoint if it was stopped before."""
    request = train_request(dataset, model, config)
    if done := reuse(run, request):
        return done
    url = run_url_of(run, request)
    spec = TrainSpec(
        run_url=url,
        dataset_url=dataset_url(run.store, dataset),
        base_url=run.store.root,
        tokenizer_url=run.store.object_url(dataset.object("tokenizer")),
        cache_dir=run.cache_dir,
        model=model,
        train=config,
    )
    with held(f"{url}/lease.json", run.say) as lease:
        run_child(spec, lease.lost)
    result = json.loads(files.read_bytes(f"{url}/result.json"))
    weights = run.store.put_bytes(
        files.read_bytes(f"{url}/weights/model.safetensors"), "weights", "safetensors"
    )
    return run.store.commit(
        Manifest(
            stage=STAGE.name,
            fingerprint=request.ref.fingerprint,
            payload=request.payload,
            inputs={"dataset": dataset.ref},
            rows_in=dataset.rows_out,
            rows_out=dataset.rows_out,
            drops={},
            data_digest=weights.sha256,
            receipts=None,
            objects={"weights": (weights,), "tokenizer": dataset.objects["tokenizer"]},
            summary={"run": url.removeprefix(run.store.root + "/"), "result": result},
            provenance={**run.provenance, "run_id": run.run_id, "at": now()},
        )
    )


def run_child(spec: TrainSpec, lost: threading.Event) -> None:
    """Runs the training to its end, in a process group of its own.

    Whatever ends the wait (a cancel comes as an exception) is passed on to the group as SIGTERM,
    which makes it checkpoint and leave; torchrun passes it on to its workers. Their standard input
    is a pipe of ours: should this process be killed, the pipe closes and they checkpoint and leave
    as well. Once the lease is `lost`, another run trains this model, and the child is stopped.
    Raises TrainingFailed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.json"
        path.write_text(spec.model_dump_json(indent=1))
        child = subprocess.Popen(
            [sys.executable, "-m", "llm.launch", "--stop-at-eof", str(path)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env=_environment(spec.train.threads),
        )
        try:
            code = _wait(child, lost)
        except BaseException:
            _stop(child)
            raise
        finally:
            assert child.stdin is not None
            child.stdin.close()
    if code == os.EX_TEMPFAIL:
        raise TrainingFailed("training was stopped and has saved a checkpoint; run again to resume")
    if code != 0:
        raise TrainingFailed(f"training ended with exit code {code}; its own message is above")


def _wait(child: subprocess.Popen[bytes], lost: threading.Event) -> int:
    while True:
        try:
            return child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if lost.is_set():
                raise TrainingFailed(
                    "another run has taken this training over, for this one did not stir for a "
                    "while; run again to use what it makes"
                ) from None


def _environment(threads: int) -> Mapping[str, Any]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        # Threads that spin while they wait slow each other down wherever a core is shared.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _stop(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    except ProcessLookupError:
        child.wait()
