from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llm.config_model import ModelConfig, n_parameters
from llm.config_optim import OptimConfig
from llm.errors import ConfigError
from llm.ladder import climb as climbing
from llm.ladder.climb import LADDER, climb
from tests.llm.small_runs import MODEL, small_spec, torch_settings_kept


def test_a_ladder_is_climbed_in_order_and_the_same_each_time(tmp_path: Path) -> None:
    said: list[str] = []
    with torch_settings_kept():
        optim = OptimConfig(head_learning_rate=1e-2)
        spec = small_spec(tmp_path, steps=400, optim=optim)
        made = climb(spec, 40, said.append)
        again = climb(spec, 40, said.append)
    assert [rung.name for rung in made.rungs] == [kind.name for kind in LADDER]
    assert [line.split(": ")[1] for line in said[:5]] == [kind.name for kind in LADDER]
    timeless = [[replace(rung, seconds=0.0) for rung in one.rungs] for one in (made, again)]
    assert timeless[0] == timeless[1]

    counted, learned, mlp, gru, transformer = made.rungs
    # Sentences of the same few words: the more of them a rung sees, the better it knows what comes.
    assert made.unigram.bits_per_byte > counted.validation.bits_per_byte + 0.5
    assert learned.validation.bits_per_byte == pytest.approx(
        counted.validation.bits_per_byte, abs=0.1
    )
    for rung in (mlp, gru, transformer):
        assert rung.validation.bits_per_byte < learned.validation.bits_per_byte - 0.5
    below = [made.unigram, *(rung.validation for rung in made.rungs)]
    assert [rung.bought for rung in made.rungs] == [
        lower.bits_per_byte - rung.validation.bits_per_byte
        for lower, rung in zip(below, made.rungs, strict=False)
    ]
    assert learned.tokens == mlp.tokens == gru.tokens == transformer.tokens > counted.tokens
    assert all(rung.sample for rung in made.rungs)
    vocab_size = round(counted.parameters**0.5)
    model = ModelConfig.model_validate(MODEL.model_dump() | {"vocab_size": vocab_size})
    assert transformer.parameters == n_parameters(model)


def test_a_vocabulary_too_large_for_a_table_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.ladder.bigram.MOST_TOKENS", 10)
    monkeypatch.setattr(climbing, "update", None)
    with torch_settings_kept(), pytest.raises(ConfigError, match="by characters"):
        climb(small_spec(tmp_path), 40, print)


def test_no_rung_writes_a_token_that_no_text_has(tmp_path: Path) -> None:
    with torch_settings_kept():
        made = climb(small_spec(tmp_path, steps=1), 100, print)
    for rung in made.rungs[1:]:  # All tokens are nearly as likely to them.
        names = set(re.findall(r"<\|\w+\|>", rung.sample))
        assert names <= {"<|endoftext|>"}, rung.name


def test_a_rung_that_takes_long_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(climbing, "TELL_EVERY_S", 0.0)
    said: list[str] = []
    with torch_settings_kept():
        climb(small_spec(tmp_path, steps=2), 4, said.append)
    told = [line.rsplit(", ", 1)[0] for line in said[2:5]]
    assert told == ["  step 1 of 2", "  step 2 of 2", "rung 3 of 5: MLP"]
    assert said[3].endswith(", 0.0 min left")
