from __future__ import annotations

from pathlib import Path

import pytest

from llm import files, scaling
from llm.config_model import ModelConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.data import prepare
from llm.errors import ConfigError, DataError, LoamError
from llm.scaling import Size, predict, spec_of
from llm.scaling_fit import Point, fit
from llm.scaling_law import Law
from llm.text_dataset import write_text_dataset
from tests.llm.small_runs import small_texts, torch_settings_kept

LAW = Law(E=1.0, A=40.0, alpha=0.4, B=100.0, beta=0.4)
SIZES = [Size(depth, tokens) for depth in (1, 2, 3) for tokens in (500, 1000)]


def base(folder: Path) -> TrainSpec:
    text = folder / "text.txt"
    text.write_text(" ".join(small_texts(120)))
    data = write_text_dataset(str(text), folder / "data")
    return TrainSpec(
        run_url=files.absolute_url(str(folder / "runs")),
        dataset_url=data.dataset_url,
        base_url=data.base_url,
        tokenizer_url=data.tokenizer_url,
        cache_dir=str(folder / "cache"),
        model=ModelConfig(context_length=16),
        train=TrainConfig(threads=1, dtype="float32", device="cpu"),
    )


def test_sizes_are_the_dials_and_the_rest_is_the_configs(tmp_path: Path) -> None:
    given = base(tmp_path)
    model = ModelConfig(context_length=32, tie_embeddings=True, n_layers=9, d_model=96)
    given = given.model_copy(update={"model": model})
    made = spec_of(given, Size(4, 100_000), 16, 50)
    assert (made.model.n_layers, made.model.d_model, made.model.vocab_size) == (4, 64, 50)
    assert (made.model.context_length, made.model.tie_embeddings) == (32, True)
    assert made.train.threads == 1
    per_step = made.train.batch_size * made.train.accumulation_steps * 32
    assert 0 <= made.train.steps * per_step - 100_000 < per_step


def test_other_settings_are_another_run_and_where_it_runs_is_not(tmp_path: Path) -> None:
    given, size = base(tmp_path), Size(2, 2000)
    here = spec_of(given, size, 16, 50).run_url
    seeded = given.model_copy(update={"train": given.train.model_copy(update={"seed": 1})})
    threaded = given.model_copy(update={"train": given.train.model_copy(update={"threads": 2})})
    assert spec_of(seeded, size, 16, 50).run_url != here
    assert spec_of(threaded, size, 16, 50).run_url == here


def test_a_law_is_fitted_to_real_runs_and_what_was_trained_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, said = base(tmp_path), []
    with torch_settings_kept():
        made = scaling.scaling(
            given, SIZES, Size(4, 2000), width_per_layer=16, check=True, say=said.append
        )
        assert [run.depth for run in made.runs[-2:]] == [3, 3]
        assert made.check is not None
        # The prediction is of the run that the check then trained, but for windows not quite full.
        assert made.prediction.parameters == made.check.point.parameters
        assert made.prediction.tokens == pytest.approx(made.check.point.tokens, rel=0.01)
        assert made.prediction.low <= made.prediction.loss <= made.prediction.high
        assert any("predicts" in line for line in said)
        monkeypatch.setattr("llm.train._learn", None)  # Whoever trains now fails.
        again = scaling.scaling(given, SIZES, Size(4, 2000), width_per_layer=16, check=True,
                                say=said.append)  # fmt: skip
    assert again == made


def test_the_next_size_must_be_new(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="predict a larger one"):
        scaling.scaling(base(tmp_path), SIZES, SIZES[0], width_per_layer=16)


@pytest.mark.parametrize(
    "sizes, next_size, said",
    [
        (SIZES[:4], Size(4, 2000), "at least 6 runs.*runs 4, sizes 2, numbers of tokens 2"),
        (SIZES, Size(4, 10**9), "passes over the dataset's"),
    ],
)
def test_runs_that_give_no_law_are_refused_before_one_is_trained(
    tmp_path: Path, sizes: list[Size], next_size: Size, said: str
) -> None:
    with pytest.raises(LoamError, match=said):
        scaling.scaling(base(tmp_path), sizes, next_size, width_per_layer=16)
    assert not (tmp_path / "runs").exists()


def test_a_prediction_lies_within_what_it_says_without_one_run() -> None:
    points = [
        Point(N, D, LAW.loss(N, D)) for N in (10**4, 10**5, 10**6) for D in (10**5, 10**6, 10**7)
    ]
    made = predict(fit(points), points, 10**7, 10**8)
    assert made.low <= made.loss <= made.high
    assert made.loss == pytest.approx(LAW.loss(10**7, 10**8), rel=0.02)


def test_a_text_is_cut_as_nanogpt_cuts_it_and_always_alike(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i % 26) for i in range(1000)))
    one, other = (write_text_dataset(str(text), tmp_path / name) for name in "ab")
    assert files.read_bytes(one.dataset_url) == files.read_bytes(other.dataset_url)
    cache = tmp_path / "cache"
    train, validation = (
        prepare(one.dataset_url, split, cache, one.base_url) for split in ("train", "validation")
    )
    assert (train.n_tokens, validation.n_tokens) == (900, 100)


@pytest.mark.parametrize(
    "name, body", [("none.txt", None), ("bytes.txt", b"\xff\xfe"), ("text.gz", b"not gzip"),
                   ("short.txt", b"a")],
)  # fmt: skip
def test_a_text_that_cannot_be_used_is_named(tmp_path: Path, name: str, body: bytes | None) -> None:
    if body is not None:
        (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match=name):
        write_text_dataset(str(tmp_path / name), tmp_path / "data")
