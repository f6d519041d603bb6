from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.config import PipelineConfig, parse_config
from llm.depth import recipe, shape
from llm.errors import ConfigError

SOURCE = {"kind": "import", "name": "docs", "paths": ["docs.jsonl"]}


def parsed(model: dict[str, Any], **sections: Any) -> PipelineConfig:
    return parse_config({"sources": [SOURCE], "model": model, **sections}, "my.toml")


def test_depth_fills_what_model_and_train_leave_out() -> None:
    config = parsed(
        {"depth": 8, "n_kv_heads": 2}, tokenizer={"vocab_size": 4096}, train={"seed": 3}
    )
    assert config.model is not None
    assert config.model.model_dump(exclude_unset=True) == shape(8, {"n_kv_heads": 2})
    assert config.model.vocab_size == 0  # Still the tokenizer's to say.
    assert config.train.seed == 3
    counted = config.model.model_copy(update={"vocab_size": 4096})
    assert config.train.steps == recipe(counted).steps


def test_what_depth_made_is_a_config_like_any_other() -> None:
    config = parsed({"depth": 4})
    assert PipelineConfig.model_validate(config.model_dump()) == config


def test_a_config_without_depth_is_as_it_was() -> None:
    plain = parsed({"n_layers": 4})
    assert plain.train == PipelineConfig(sources=(SOURCE,)).train  # type: ignore[arg-type]
    assert plain.model is not None
    assert plain.model.d_model == 384


def test_the_schema_that_a_form_is_made_of_has_the_dial() -> None:
    sections = PipelineConfig.model_json_schema()["$defs"]
    assert sections["ModelConfig"]["properties"]["depth"]["type"] == "integer"
    assert sections["TrainConfig"]["properties"]["tokens"]["minimum"] == 1


def test_tokens_take_the_place_of_steps() -> None:
    config = parsed({"depth": 4}, train={"tokens": 10_000_000})
    train, model = config.train, config.model
    assert model is not None
    made = train.steps * train.batch_size * train.accumulation_steps * model.context_length
    assert made == pytest.approx(1e7, rel=0.01)


@pytest.mark.parametrize(
    "model, sections, said",
    [
        ({"depth": 0}, {}, "model.depth is 0: expected a whole number"),
        ({"depth": "deep"}, {}, "model.depth is 'deep'"),
        ({"depth": 8, "n_layers": 6}, {}, "leave out n_layers"),
        ({"dept": 8}, {}, "unknown key 'model.dept'; did you mean 'depth'?"),
        ({"depth": 8, "d_modl": 3}, {}, "did you mean 'd_model'?"),
        ({"depth": 4, "n_heads": 3}, {}, "my.toml: model: "),
        ({"depth": 4}, {"train": {"stps": 5}}, "did you mean 'steps'?"),
        ({"depth": 4}, {"train": {"tokens": 10, "steps": 5}}, "give one of them"),
        ({"depth": 4}, {"train": {"tokens": -1}}, "train.tokens is -1"),
        ({}, {"train": {"tokens": 10}}, "train.tokens needs model.depth"),
        ({"depth": 4}, {"tokenizer": {"path": "x.model"}}, "give model.vocab_size"),
        ({"depth": 4}, {"tokenizer": {"vocab_size": 3}}, "vocab_size is 3"),
    ],
)
def test_what_cannot_be_names_the_key_and_the_way_out(
    model: dict[str, Any], sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(model, **sections)
    assert said in str(error.value)
    assert "unknown key 'model.depth'" not in str(error.value)


def test_a_plan_shows_what_depth_came_to(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs.txt").write_text("Worms turn leaves to soil. " * 50)
    (tmp_path / "my.toml").write_text(
        '[[sources]]\nkind = "import"\nname = "docs"\npaths = ["docs.txt"]\n[model]\ndepth = 4\n'
    )
    with pytest.raises(SystemExit) as left:
        cli.main(["plan", "my.toml"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "model: 7,408,128 parameters; llama, 4 layers x 256, 8 heads of 32" in out
    assert "20 a parameter" in out
