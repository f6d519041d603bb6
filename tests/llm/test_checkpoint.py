from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm import checkpoint
from llm.checkpoint import Keep
from llm.config_model import ModelConfig
from llm.config_optim import OptimConfig
from llm.model import Model
from llm.optim import build_optimizers
from tests.llm.small_runs import Killed, die_at_write

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
tensors = st.builds(
    lambda dtype, shape, seed: (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype)
    ),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 9),
)
keys = st.integers(0, 99) | st.text("abc.", min_size=1, max_size=3)
trees = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


def equal(a: Any, b: Any) -> bool:
    """Equal in type, structure, dtype, shape and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return repr(a) == repr(b)


@given(st.dictionaries(st.sampled_from(["model", "rng", "progress"]), trees, min_size=1))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_state_comes_back_exactly(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, 7, state)
        found = checkpoint.latest(folder)
    assert found is not None
    assert found.step == 7
    assert equal(found.state, state)


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", 1 + 2j, torch.float32, {(1, 2): 3}])
def test_what_json_cannot_hold_exactly_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot hold|are str or int"):
        checkpoint.save(str(tmp_path), 1, {"part": [value]})
    assert checkpoint.latest(str(tmp_path)) is None


def test_two_tensors_that_would_share_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two tensors"):
        checkpoint.save(str(tmp_path), 1, {"part": {1: torch.zeros(1), "1": torch.ones(1)}})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizers_go_on_from_a_checkpoint_as_if_they_had_never_stopped(
    tmp_path: Path, optimizer: Any
) -> None:
    config = ModelConfig(vocab_size=11, context_length=8, n_layers=1, d_model=16, n_heads=2)

    def made() -> tuple[Model, list[torch.optim.Optimizer]]:
        model = Model(config)
        return model, build_optimizers(model, OptimConfig(optimizer=optimizer))

    def advance(model: Model, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
        tokens_BT = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(seed))
        model.loss(tokens_BT, tokens_BT.roll(-1, 1)).backward()
        for each in optimizers:
            each.step()
            each.zero_grad()

    model, optimizers = made()
    advance(model, optimizers, 0)
    advance(model, optimizers, 1)
    saved = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    checkpoint.save(str(tmp_path), 2, saved)
    found = checkpoint.load(str(tmp_path), 2)
    again, again_optimizers = made()
    again.load_state_dict(found.state["model"])
    for each, state in zip(again_optimizers, found.state["optimizers"], strict=True):
        each.load_state_dict(state)
    for before, after in zip(optimizers, again_optimizers, strict=True):
        assert equal(before.state_dict(), after.state_dict())
    advance(model, optimizers, 2)
    advance(again, again_optimizers, 2)
    assert equal(dict(model.state_dict()), dict(again.state_dict()))
    assert optimizers[0].state_dict()["state"]


def test_a_part_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(2)}
    folder = Path(checkpoint.save(str(tmp_path), 1, {"model": weights}))
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in weights.items()
        }


def test_equal_states_give_equal_bytes_and_shared_memory_does_not_matter(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    shared = {"model": {"embed": table, "head": table, "slice": table[1:]}}
    copied = {"model": {name: tensor.clone() for name, tensor in shared["model"].items()}}
    first = Path(checkpoint.save(str(tmp_path / "a"), 1, shared))
    second = Path(checkpoint.save(str(tmp_path / "b"), 1, copied))
    for name in ("model.safetensors", "state.json", "index.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def state_of(step: int) -> dict[str, Any]:
    return {"model": {"w": torch.full((4,), float(step))}, "progress": {"step": step}}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(bytes(body))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, name: str
) -> None:
    checkpoint.save(str(tmp_path), 10, state_of(10))
    folder = Path(checkpoint.save(str(tmp_path), 20, state_of(20)))
    damage(folder / name)
    with caplog.at_level(logging.WARNING):
        found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert equal(found.state, state_of(10))
    assert "step 20" in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("index", [b"", b"{", b"[]", b'{"format":99}'])
def test_a_checkpoint_with_an_unreadable_index_is_skipped(tmp_path: Path, index: bytes) -> None:
    checkpoint.save(str(tmp_path), 10, state_of(10))
    folder = Path(checkpoint.save(str(tmp_path), 20, state_of(20)))
    (folder / "index.json").write_bytes(index)
    found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert found.step == 10


def test_a_damaged_checkpoint_is_whole_again_once_its_step_is_reached_again(tmp_path: Path) -> None:
    folder = Path(checkpoint.save(str(tmp_path), 10, state_of(10)))
    truncate(folder / "model.safetensors")
    assert checkpoint.latest(str(tmp_path)) is None
    checkpoint.save(str(tmp_path), 10, state_of(11))
    found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert equal(found.state, state_of(11))


def test_a_save_that_dies_at_any_write_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(str(tmp_path), 10, state_of(10))
    for place in range(4):  # The index withdrawn; tensors, values and index written.
        with monkeypatch.context() as patch:
            die_at_write(place, patch)
            with pytest.raises(Killed):
                checkpoint.save(str(tmp_path), 20, state_of(20))
        found = checkpoint.latest(str(tmp_path))
        assert found is not None
        assert found.step == 10
    checkpoint.save(str(tmp_path), 20, state_of(20))
    found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert found.step == 20


def test_pruning_keeps_the_newest_and_takes_leftovers_of_kills_along(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        checkpoint.save(str(tmp_path), step, state_of(step))
    leftover = tmp_path / "checkpoints" / "00000035"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    unfinished = tmp_path / "checkpoints" / "00000050"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"being written")
    checkpoint.prune(str(tmp_path), Keep(last=2))
    left = {path.parent.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"00000030", "00000040", "00000050"}
    assert json.loads((tmp_path / "checkpoints/00000040/index.json").read_bytes())["step"] == 40


def test_no_checkpoint_at_all_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(str(tmp_path / "nowhere")) is None
    checkpoint.prune(str(tmp_path / "nowhere"), Keep(last=1))
