from __future__ import annotations

import hashlib
import json
import logging
import operator
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
from llm.config_data import DataConfig
from llm.config_guards import GuardConfig
from llm.config_model import ModelConfig
from llm.config_optim import OptimConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.decoder import Decoder
from llm.environment import begin
from llm.errors import ConfigError
from llm.evaluate import Evaluation
from llm.families import build_model
from llm.guards import Diverged, Guard
from llm.inputs import split
from llm.loader import Batch
from llm.loss_scale import LossScale
from llm.metrics import read_metrics
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
    told,
    torch_settings_kept,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def path_of(spec: TrainSpec) -> Path:
    return files.local_path(spec.run_url)


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


def plain_run(model: Decoder, config: TrainConfig) -> Run:
    """One whose update is plain descent at rate 1: what the weights move by is the gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.param_groups[0]["initial_lr"] = 1.0
    return Run(wrap(model, "none"), [optimizer], Guard(config.guards), LossScale(False))


def plain_config(**settings: Any) -> TrainConfig:
    optim = OptimConfig(warmup_steps=0, grad_clip=0, decay="wsd")
    given = {"device": "cpu", "dtype": "float32", "threads": 1, "optim": optim}
    return TrainConfig(**(given | settings))


def padded_windows() -> Batch:
    """Eight windows of sixteen tokens, four of them padded."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(13, (8, 16), generator=generator)
    targets_BT = torch.randint(13, (8, 16), generator=generator)
    targets_BT[0, 3:] = -100
    targets_BT[1:4, 9:] = -100
    return Batch(tokens_BT, targets_BT)


def gradients(
    model: Decoder, batches: list[Batch], config: TrainConfig
) -> tuple[float, list[torch.Tensor]]:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    run = plain_run(model, config)
    made = update(run, batches, begin(config), config)
    assert run.tokens == sum(batch.n_targets for batch in batches)
    moved = zip(before, model.parameters(), strict=True)
    return made.loss, [old - new.detach() for old, new in moved]


FAMILIES_TO_ACCUMULATE = {
    "llama": {},
    "gpt2": {"family": "gpt2", "qk_norm": False},
    "speedrun": {"family": "speedrun"},
    "mixture of experts": {"n_experts": 4, "d_ff": 48, "balance_coefficient": 0.0},
}


@pytest.mark.parametrize("family", FAMILIES_TO_ACCUMULATE)
def test_accumulation_is_the_gradient_of_one_big_batch_however_it_is_padded(family: str) -> None:
    shape = MODEL.model_dump(include={"context_length", "n_layers", "d_model", "n_heads"})
    settings = {"qk_norm": True} | FAMILIES_TO_ACCUMULATE[family]
    model_config = ModelConfig(vocab_size=13, **(shape | settings))
    windows, config = padded_windows(), plain_config()
    loss, accumulated = gradients(build_model(model_config, 3), split(windows, 2), config)
    oracle = build_model(model_config, 3)
    expected = torch.nn.functional.cross_entropy(oracle(windows.inputs_BT).mT, windows.targets_BT)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for parameter, found in zip(oracle.parameters(), accumulated, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(found, parameter.grad, atol=2e-6, rtol=1e-4)


def test_experts_are_balanced_over_each_micro_batch_weighed_by_its_targets() -> None:
    shape = MODEL.model_dump(include={"context_length", "n_layers", "d_model", "n_heads"})
    settings = {"n_experts": 4, "d_ff": 48, "balance_coefficient": 0.5, "qk_norm": True}
    model_config = ModelConfig(vocab_size=13, **(shape | settings))
    parts, config = split(padded_windows(), 2), plain_config()
    loss, _ = gradients(build_model(model_config, 3), parts, config)
    oracle = build_model(model_config, 3)
    means = [oracle.loss(part.inputs_BT, part.targets_BT).item() for part in parts]
    counts = [part.n_targets for part in parts]
    assert loss == pytest.approx(sum(map(operator.mul, means, counts)) / sum(counts), abs=1e-5)
    plain = model_config.model_copy(update={"balance_coefficient": 0.0})
    without, _ = gradients(build_model(plain, 3), parts, config)
    assert loss > without + 0.9  # Even routing to two experts costs 2, halved here, a layer.


@pytest.mark.parametrize("documents", [False, True])
def test_how_many_windows_at_a_time_changes_last_digits_only(
    tmp_path: Path, documents: bool
) -> None:
    data = DataConfig(document_mask=documents)
    optim = OptimConfig(optimizer="adamw", warmup_steps=4)
    rows = []
    for size in (1, 3, 4):
        settings = {"data": data, "micro_batch_size": size, "optim": optim}
        spec = small_spec(tmp_path / f"{size}", **settings)
        train(spec)
        rows.append([row["loss"] for row in read_metrics(spec.run_url)])
    assert rows[0] == pytest.approx(rows[2], rel=1e-5)
    assert rows[1] == pytest.approx(rows[2], rel=1e-5)
    assert rows[0] != rows[2]


def test_computing_activations_again_changes_no_bit(tmp_path: Path) -> None:
    kept = small_spec(tmp_path / "a")
    again = small_spec(tmp_path / "b", checkpoint_activations=True)
    train(kept)
    train(again)
    assert told(kept) == told(again)


def test_a_step_that_the_guard_does_not_allow_moves_nothing() -> None:
    config = plain_config()
    model = Model(MODEL.model_copy(update={"vocab_size": 13}), seed=3)
    run = plain_run(model, config)
    for step in range(64):
        assert run.guard.allows(step, 0.1, 0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    made = update(run, [padded_windows()], begin(config), config)
    assert not made.taken
    assert made.loss > 1
    assert (run.step, run.guard.skipped) == (1, 1)
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, parameter)
        assert parameter.grad is None


def test_a_skipped_step_is_logged_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allows = Guard.allows

    def but_one(self: Guard, step: int, loss: float, norm: float) -> bool:
        return allows(self, step, loss, 1e9 if step == 70 else norm)

    monkeypatch.setattr(Guard, "allows", but_one)
    spec = small_spec(tmp_path, steps=80, log_every=20, eval_every=80, sample_every=80)
    result = train(spec)
    assert result["skipped_steps"] == 1
    assert "step 70 skipped: loss " in capsys.readouterr().err
    rows = read_metrics(spec.run_url)
    assert [(row["step"], row["skipped"]) for row in rows] == [
        (20, 0), (40, 0), (60, 0), (70, 1), (80, 1)
    ]  # fmt: skip


def test_a_run_that_diverges_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Guard, "divergence", lambda _, step, loss: ("it creeps", 15) if step == 20 else None
    )
    spec = small_spec(tmp_path)
    with pytest.raises(Diverged, match=r"at step 20: it creeps.*checkpoints/00000008.*lower"):
        train(spec)
    assert checkpoint.committed(spec.run_url) == {8, 16}


def test_a_run_without_a_better_validation_loss_ends_early_with_its_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {4: 3.0, 8: 2.5, 12: 2.6, 16: 2.4, 20: 2.7, 24: 2.6, 28: 2.5}
    full: list[int] = []

    def scripted(model: Any, prepared: Any, *, max_windows: int | None, **_: Any) -> Evaluation:
        step = 4 * (1 + len(full)) if max_windows else 16
        full.append(step)
        return Evaluation(losses[step], 1.0, 1.0, 1, 1)

    monkeypatch.setattr("llm.looking.evaluate", scripted)
    settings = {"steps": 100, "eval_every": 4, "checkpoint_every": 10, "keep_checkpoints": 1}
    spec = small_spec(tmp_path, guards=GuardConfig(patience=3), **settings)
    result = train(spec)
    assert [row["step"] for row in read_metrics(spec.run_url)] == list(range(1, 29))
    assert full[-1] == 16
    assert result["stopped_early"]
    assert result["validation"]["step"] == result["steps"] == 16
    best = checkpoint.load(spec.run_url, 16).state["model"]
    weights = safetensors.torch.load(files.read_bytes(result["weights"]["url"]))
    for name, tensor in best.items():
        assert torch.equal(weights[name], tensor), name


def test_a_float16_run_scales_its_loss_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    expected, stopped = (small_spec(tmp_path / name, dtype="float16") for name in "ab")
    train(expected)
    with pytest.raises(Interrupted):
        train(stopped, stop_after(11))
    train(stopped)
    assert told(stopped) == told(expected)
    rows = read_metrics(stopped.run_url)
    assert all(row["loss_scale"] == 2.0**16 for row in rows)
    plain = small_spec(tmp_path / "c")
    train(plain)
    losses = [row["loss"] for row in read_metrics(plain.run_url)]
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=0.02)


def test_a_gradient_that_overflows_halves_the_scale_and_is_left_out() -> None:
    config = plain_config(dtype="float16")
    run = plain_run(Model(MODEL.model_copy(update={"vocab_size": 13}), seed=3), config)
    run.loss_scale = LossScale(True)
    run.loss_scale.factor = 2.0**40
    made = update(run, [padded_windows()], begin(config), config)
    assert not made.taken
    assert run.loss_scale.factor == 2.0**39
    assert run.guard.skipped == 0  # Not the data's fault.


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


def test_a_run_goes_on_with_other_data_only_where_it_is_told_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Interrupted):
        train(small_spec(tmp_path, **SHORT), stop_after(2))
    with caplog.at_level(logging.WARNING):
        result = train(small_spec(tmp_path, small_texts(70), **SHORT, resume_anyway=True))
    assert "the run has learnt from other data (data.train was" in caplog.text
    assert result["steps"] == 4


def test_looks_are_part_of_what_a_run_is_once_they_may_end_it(tmp_path: Path) -> None:
    def decisive(**settings: Any) -> dict[str, Any]:
        return small_spec(tmp_path, **settings).decisive()

    assert decisive(eval_every=6) == decisive(eval_every=7)
    guards = GuardConfig(patience=2)
    assert decisive(guards=guards, eval_every=6) != decisive(guards=guards, eval_every=7)


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
