from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm import checkpoint, files
from llm.checkpoint import Keep
from llm.config_model import ModelConfig
from llm.config_optim import OptimConfig
from llm.errors import StorageError
from llm.model import Model
from llm.optim import build_optimizers
from llm.resharding import pieces, rows_of
from tests.llm.small_runs import Killed, die_at_write

ROOT = Path(__file__).parents[2]
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
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"00000030", "00000040", "00000050"}
    assert json.loads((tmp_path / "checkpoints/00000040/index.json").read_bytes())["step"] == 40


def kept(folder: Path, keep: Keep, scores: dict[int, float | None]) -> set[int]:
    """The steps left when a run saved one checkpoint per score, under that policy."""
    with checkpoint.Writer(str(folder), keep) as writer:
        for step, score in scores.items():
            writer.save(step, state_of(step), score)
    return checkpoint.committed(str(folder))


SCORES = {10: 3.0, 20: 1.0, 30: None, 40: 1.0, 50: 2.0, 60: 2.5}


@pytest.mark.parametrize(
    "keep, left",
    [
        (Keep(last=1, best=False), {60}),
        (Keep(last=3, best=False), {40, 50, 60}),
        (Keep(last=1, best=True), {20, 60}),
        (Keep(last=1, best=False, every=30), {30, 60}),
        (Keep(last=2, best=True, every=30), {20, 30, 50, 60}),
        (Keep(last=9), {10, 20, 30, 40, 50, 60}),
    ],
)
def test_the_last_the_best_and_every_nth_stay_and_no_other(
    tmp_path: Path, keep: Keep, left: set[int]
) -> None:
    assert kept(tmp_path, keep, SCORES) == left
    folders = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert folders == {f"{step:08d}" for step in left}


def test_the_best_is_known_and_the_earliest_of_equals(tmp_path: Path) -> None:
    kept(tmp_path, Keep(last=9), SCORES)
    assert checkpoint.best(str(tmp_path)) == 20
    assert checkpoint.best(str(tmp_path / "nowhere")) is None


def test_a_save_that_is_under_way_does_not_see_what_happens_after_it(
    store_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, release = files.put, threading.Event()

    def slow_put(url: str, body: bytes) -> None:
        release.wait()
        put(url, body)

    monkeypatch.setattr(files, "put", slow_put)
    state = {"model": {"w": torch.arange(8.0), "tied": torch.zeros(3)}, "progress": {"at": [1]}}
    expected = {"model": {n: t.clone() for n, t in state["model"].items()}, "progress": {"at": [1]}}
    with checkpoint.Writer(store_root) as writer:
        writer.save(1, state)
        state["model"]["w"].fill_(9)
        state["progress"]["at"].append(2)
        assert checkpoint.committed(store_root) == set()
        release.set()
        writer.save(2, state)
    assert equal(checkpoint.load(store_root, 1).state, expected)
    assert equal(checkpoint.load(store_root, 2).state, state)


@pytest.mark.parametrize("call", ["save", "wait", "leave"])
def test_an_error_of_a_save_is_raised_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    writer = checkpoint.Writer(str(tmp_path))
    writer.save(10, state_of(10))
    writer.wait()

    def refuse(url: str, body: bytes) -> None:
        raise StorageError(f"{url}: there is no room for it")

    with monkeypatch.context() as patch:
        patch.setattr(files, "put", refuse)
        writer.save(20, state_of(20))
        calls = {
            "save": lambda: writer.save(30, state_of(30)),
            "wait": writer.wait,
            "leave": lambda: writer.__exit__(None),
        }
        with pytest.raises(StorageError, match="no room"):
            calls[call]()
    assert checkpoint.committed(str(tmp_path)) == {10}


def test_a_writer_that_dies_at_any_write_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Keep(last=1)
    with checkpoint.Writer(str(tmp_path), keep) as writer:
        writer.save(10, state_of(10), 1.0)
    for place in range(8):
        with monkeypatch.context() as patch:
            die_at_write(place, patch)
            writer = checkpoint.Writer(str(tmp_path), keep)
            writer.save(20, state_of(20), 0.5)
            with suppress(Killed):
                writer.wait()
        found = checkpoint.latest(str(tmp_path))
        assert found is not None
        assert equal(found.state, state_of(found.step))
        # Index withdrawn, tensors, values, index: the fifth write already removes what is old.
        assert found.step == (10 if place < 4 else 20)
    assert checkpoint.committed(str(tmp_path)) == {20}


SAVES_FOREVER = """
import sys, torch
from llm import checkpoint
from tests.llm.test_checkpoint import state_of

torch.set_num_threads(1)
writer, step = checkpoint.Writer(sys.argv[1], checkpoint.Keep(last=1)), int(sys.argv[2])
while True:
    step += 1
    writer.save(step, state_of(step) | {"much": {"zeros": torch.zeros(1 << 20)}})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    clock, reached = random.Random(0), 0
    for _ in range(6):
        command = [sys.executable, "-c", SAVES_FOREVER, str(tmp_path), str(reached)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(clock.uniform(0, 0.5))
        child.kill()
        said = child.stdout.read().split()
        child.wait()
        found = checkpoint.latest(str(tmp_path))
        if said:  # The save before the last one that began is committed.
            assert found is not None
            assert found.step >= int(said[-1]) - 1
        if found is not None:
            del found.state["much"]
            assert equal(found.state, state_of(found.step))
            reached = found.step
            checkpoint.rewind(str(tmp_path), reached)


def test_what_is_later_than_the_step_a_run_goes_on_from_is_removed(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint.save(str(tmp_path), step, state_of(step))
    (tmp_path / "checkpoints/00000030/index.json").unlink()
    checkpoint.rewind(str(tmp_path), 10)
    left = {path.parent.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"00000010"}


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 7))
def test_rows_of_one_world_are_found_among_the_shards_of_another(
    n_rows: int, wrote: int, reads: int
) -> None:
    table = torch.arange(n_rows)
    shards = table.chunk(wrote)
    for rank, expected in enumerate(table.chunk(reads)):
        first, end = rows_of(n_rows, rank, reads)
        found = torch.full((end - first,), -1)
        for piece in pieces(n_rows, first, end, wrote):
            found[piece.rows] = shards[piece.rank][piece.stored]
        assert found.tolist() == expected.tolist()
    assert rows_of(n_rows, len(table.chunk(reads)), reads) == (n_rows, n_rows)


def test_no_checkpoint_at_all_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(str(tmp_path / "nowhere")) is None
    checkpoint.prune(str(tmp_path / "nowhere"), Keep(last=1))
