from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llm import checkpoint, files
from llm import train as training
from llm.config_optim import OptimConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.environment import begin
from llm.errors import ConfigError
from llm.guards import Diverged, Guard
from llm.inputs import split
from llm.loader import Batch
from llm.loss_scale import LossScale
from llm.metrics import TIMINGS, read_metrics
from llm.model import Model
from llm.parallel import wrap
from llm.process import EX_TEMPFAIL, Interrupted
from llm.run_state import Run
from llm.train import train, update
from tests.llm.small_runs import (
    MODEL,
    Killed,
    die_at_write,
    small_spec,
    small_texts,
    torch_settings_kept,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def path_of(spec: TrainSpec) -> Path:
    return files.local_path(spec.run_url)


def told(spec: TrainSpec) -> dict[str, Any]:
    """All that a run says but its timings: weights, losses, samples, what it validated."""
    rows = [
        {key: value for key, value in row.items() if key not in TIMINGS}
        for row in read_metrics(spec.run_url)
    ]
    result = json.loads((path_of(spec) / "result.json").read_bytes())
    return {
        "sha256": hashlib.sha256(
            (path_of(spec) / "weights/model.safetensors").read_bytes()
        ).hexdigest(),
        "rows": rows,
        "samples": {
            path.name: path.read_text() for path in sorted((path_of(spec) / "samples").iterdir())
        },
        "validation": result["validation"],
        "best": result["best_validation"],
        "tokens": result["tokens"],
    }


SIGNALLED = """
import os, signal, sys
from llm import train

number, update = getattr(signal, sys.argv.pop()), train.update

def update_or_be_signalled(run, *rest):
    if run.step == 23:
        os.kill(os.getpid(), number)
    return update(run, *rest)

train.update = update_or_be_signalled
sys.exit(train.main())
"""


def child(spec: TrainSpec, signalled: str = "") -> tuple[int, str]:
    """Runs the training process; it gets the signal in the middle of its 24th step."""
    path = path_of(spec).parent / "spec.json"
    path.write_text(spec.model_dump_json())
    how = ["-c", SIGNALLED, str(path), signalled] if signalled else ["-m", "llm.train", str(path)]
    done = subprocess.run(
        [sys.executable, *how],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


LONG = {"steps": 40, "checkpoint_every": 10, "eval_every": 15, "sample_every": 25}


def test_kill_9_and_resume_end_where_an_undisturbed_run_ends(tmp_path: Path) -> None:
    undisturbed, killed = small_spec(tmp_path / "a", **LONG), small_spec(tmp_path / "b", **LONG)
    train(undisturbed)
    code, said = child(killed, "SIGKILL")
    assert code == -signal.SIGKILL, said
    code, said = child(killed)
    assert code == 0, said
    # The second checkpoint may still be under way when the kill comes.
    assert "resumed at step 10" in said or "resumed at step 20" in said
    assert told(killed) == told(undisturbed)
    assert [row["step"] for row in read_metrics(killed.run_url)] == list(range(1, 41))


def test_sigterm_checkpoints_and_exits_75_and_the_run_goes_on(tmp_path: Path) -> None:
    settings = LONG | {"dtype": "bfloat16"}
    undisturbed = small_spec(tmp_path / "a", **settings)
    stopped = small_spec(tmp_path / "b", **settings)
    code, said = child(stopped, "SIGTERM")
    assert code == EX_TEMPFAIL == os.EX_TEMPFAIL, said
    assert "stopped at step 24 of 40" in said
    found = checkpoint.latest(stopped.run_url)
    assert found is not None
    assert found.step == 24
    assert [row["step"] for row in read_metrics(stopped.run_url)] == list(range(1, 25))
    train(stopped)
    train(undisturbed)
    assert told(stopped) == told(undisturbed)


SHORT = {"steps": 4, "checkpoint_every": 2, "eval_every": 2, "eval_windows": 2, "sample_every": 2}


def test_a_run_that_dies_at_any_write_ends_where_an_undisturbed_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SHORT | {"keep_checkpoints": 1, "sample_tokens": 3}
    expected = small_spec(tmp_path / "undisturbed", **settings)
    train(expected)
    deaths = 0
    while True:
        spec = small_spec(tmp_path / f"{deaths}", **settings)
        try:
            with monkeypatch.context() as patch:
                die_at_write(deaths, patch)
                train(spec)
            break
        except Killed:
            deaths += 1
        train(spec)
        assert told(spec) == told(expected), f"after a death at write {deaths - 1}"
    assert deaths > 15  # Two checkpoints of five writes each are among them.


def stop_after(step: int) -> Any:
    steps = iter(range(1, step + 1))
    return lambda: next(steps) == step


def test_a_damaged_checkpoint_costs_time_and_nothing_else(tmp_path: Path) -> None:
    expected, damaged = small_spec(tmp_path / "a"), small_spec(tmp_path / "b")
    train(expected)
    with pytest.raises(Interrupted):
        train(damaged, stop_after(18))
    newest = path_of(damaged) / "checkpoints/00000018/optimizers.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    train(damaged)
    assert told(damaged) == told(expected)
    for step in (16, 24):  # The two that stay are whole ones.
        assert checkpoint.load(damaged.run_url, step).step == step


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"compile": True, "steps": 12, "checkpoint_every": 100}
    expected, stopped = (
        small_spec(tmp_path / "a", **settings),
        small_spec(tmp_path / "b", **settings),
    )
    train(expected)
    with pytest.raises(Interrupted):
        train(stopped, stop_after(5))
    torch.compiler.reset()
    code, said = child(stopped)
    assert code == 0, said
    assert told(stopped) == told(expected)


def test_accumulation_is_the_gradient_of_one_big_batch_however_it_is_padded() -> None:
    generator = torch.Generator().manual_seed(0)
    model_config = MODEL.model_copy(update={"vocab_size": 13})
    tokens_BT = torch.randint(13, (8, 16), generator=generator)
    targets_BT = torch.randint(13, (8, 16), generator=generator)
    targets_BT[0, 3:] = -100
    targets_BT[1:4, 9:] = -100
    config = TrainConfig(
        device="cpu",
        dtype="float32",
        threads=1,
        optim=OptimConfig(warmup_steps=0, grad_clip=0, decay="wsd"),
    )
    environment = begin(config)

    def gradients(batches: list[Batch]) -> tuple[float, list[Any]]:
        """By what plain descent at rate 1 moves the weights: the gradient itself."""
        model = Model(model_config, seed=3)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer.param_groups[0]["initial_lr"] = 1.0
        run = Run(wrap(model, "none"), [optimizer], Guard(config.guards), LossScale(False))
        made = update(run, batches, environment, config)
        assert run.tokens == int((targets_BT != -100).sum())
        moved = zip(before, model.parameters(), strict=True)
        return made.loss, [old - new.detach() for old, new in moved]

    loss, accumulated = gradients(split(Batch(tokens_BT, targets_BT), 2))
    oracle = Model(model_config, seed=3)
    expected = torch.nn.functional.cross_entropy(oracle(tokens_BT).mT, targets_BT)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for parameter, found in zip(oracle.parameters(), accumulated, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(found, parameter.grad, atol=2e-6, rtol=1e-4)


def test_a_tiny_corpus_is_learnt_by_heart(tmp_path: Path) -> None:
    held_out, text = small_texts(2)
    spec = small_spec(
        tmp_path,
        [held_out, text],
        steps=150,
        batch_size=1,
        eval_every=150,
        sample_prompts=(text[:4],),
        sample_tokens=len(text),
        optim=OptimConfig(warmup_steps=4, learning_rate=0.01, head_learning_rate=0.01),
    )
    wider = {"context_length": len(text), "d_model": 64, "head_dim": 32, "d_ff": 192}
    spec = spec.model_copy(update={"model": spec.model.model_copy(update=wider)})
    train(spec)
    assert read_metrics(spec.run_url)[-1]["loss"] < 0.05
    (sample,) = json.loads((path_of(spec) / "samples/00000150.json").read_bytes())["samples"]
    assert (sample["prompt"] + sample["text"]).startswith(text)


def test_the_result_names_weights_that_hash_to_what_it_says(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, **SHORT)
    result = train(spec)
    body = files.read_bytes(result["weights"]["url"])
    assert hashlib.sha256(body).hexdigest() == result["weights"]["sha256"]
    weights = safetensors.torch.load(body)
    assert sum(tensor.numel() for tensor in weights.values()) == result["n_parameters"]
    assert result["steps"] == 4
    whole = json.loads((path_of(spec) / "result.json").read_bytes())
    assert whole == result
    assert result["validation"]["n_tokens"] > 5 * MODEL.context_length  # Not a few windows.


def test_a_run_that_is_complete_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(tmp_path, **SHORT)
    result = train(spec)
    monkeypatch.setattr(training, "update", None)
    assert train(spec) == result


def test_a_run_refuses_another_training_and_names_what_differs(tmp_path: Path) -> None:
    train(small_spec(tmp_path, **SHORT))
    with pytest.raises(ConfigError, match=r"train\.seed was 1337 and is 7"):
        train(small_spec(tmp_path, **SHORT, seed=7))
    with pytest.raises(ConfigError, match=r"data\.train was .*train\.resume_anyway = true"):
        train(small_spec(tmp_path, small_texts(70), **SHORT))


def test_watching_a_run_differently_is_the_same_run(tmp_path: Path) -> None:
    watched = {"checkpoint_every": 2, "eval_every": 1, "log_every": 5, "sample_every": 2}
    first = train(small_spec(tmp_path / "a", **SHORT))
    second = train(small_spec(tmp_path / "b", **SHORT | watched))
    assert first["weights"]["sha256"] == second["weights"]["sha256"]


def test_another_environment_class_is_refused_unless_told_and_then_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = small_spec(tmp_path, **SHORT)
    with pytest.raises(Interrupted):
        train(spec, stop_after(2))
    with pytest.raises(ConfigError, match=r"dtype was 'float32' and is 'bfloat16'.*resume_anyway"):
        train(small_spec(tmp_path, **SHORT, dtype="bfloat16"))
    with caplog.at_level(logging.WARNING):
        result = train(small_spec(tmp_path, **SHORT, dtype="bfloat16", resume_anyway=True))
    assert "dtype was 'float32' and is 'bfloat16'" in caplog.text
    assert [each["dtype"] for each in result["environments"]] == ["float32", "bfloat16"]


def test_a_loss_that_is_not_finite_ends_the_run_without_a_checkpoint(tmp_path: Path) -> None:
    rates = {"learning_rate": 1e38, "head_learning_rate": 1e38}
    wild = OptimConfig(optimizer="adamw", warmup_steps=0, **rates)
    spec = small_spec(tmp_path, **SHORT, optim=wild)
    with pytest.raises(Diverged, match=r"lower train\.optim's rates"):
        train(spec)
    assert checkpoint.latest(spec.run_url) is None


def test_a_model_with_too_few_rows_for_the_tokenizer_is_refused(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"vocab_size": 9})})
    with pytest.raises(ConfigError, match=r"vocab_size is 9, but the tokenizer has 24"):
        train(spec)


@pytest.mark.parametrize("name", ["tokenizer", "dataset"])
def test_an_input_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    spec = small_spec(tmp_path).model_copy(update={f"{name}_url": "/nowhere/at.all"})
    with pytest.raises(ConfigError, match=rf"{name}_url: there is no /nowhere/at\.all"):
        train(spec)


def test_the_process_says_what_is_wrong_with_its_spec(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "spec.json"
    broken.write_text('{"run_url": "r", "stepps": 3}')
    for spec, message in [(tmp_path / "none.json", "there is no spec"), (broken, "stepps")]:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            assert training.main([str(spec)]) == 2
        finally:
            signal.signal(signal.SIGTERM, handlers[0])
            signal.signal(signal.SIGINT, handlers[1])
        assert message in capsys.readouterr().err
