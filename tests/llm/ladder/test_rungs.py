from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm.data import prepare
from llm.errors import ConfigError
from llm.evaluate import evaluate
from llm.ladder.bigram import STRENGTHS, CountBigram, NeuralBigram, count_bigram
from llm.ladder.gru import Gru
from llm.ladder.mlp import N_TOKENS, Mlp
from llm.ladder.rung import Rung
from llm.optim import build_optimizers
from llm.text_dataset import write_text_dataset
from tests.llm.small_datasets import Document, prepared_from
from tests.shared_data import shared_data

V = 11


def rungs() -> dict[str, Rung]:
    """One of each, with no parameter left at zero."""
    made: dict[str, Rung] = {
        "count bigram": CountBigram(np.random.default_rng(0).dirichlet(np.ones(V), V)),
        "neural bigram": NeuralBigram(V),
        "mlp": Mlp(V, 6),
        "gru": Gru(V, 6),
    }
    generator = torch.Generator().manual_seed(0)
    for rung in made.values():
        for parameter in rung.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.5, generator=generator)
    return made


RUNGS = rungs()
TRAINED = [name for name in RUNGS if name != "count bigram"]
TOKENS_BT = torch.randint(V, (3, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", RUNGS)
def test_no_position_sees_a_later_token(name: str) -> None:
    changed_BT = TOKENS_BT.clone()
    changed_BT[:, 13:] = (changed_BT[:, 13:] + 1) % V
    before, after = RUNGS[name](TOKENS_BT), RUNGS[name](changed_BT)
    torch.testing.assert_close(before[:, :13], after[:, :13])
    assert not torch.equal(before[:, 13:], after[:, 13:])


@pytest.mark.parametrize("name", RUNGS)
def test_a_packed_documents_logits_are_those_of_the_document_alone(name: str) -> None:
    lengths = (5, 1, 12, 6)
    documents_T = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    packed = RUNGS[name](TOKENS_BT, documents_T.expand(3, -1))
    alone = [RUNGS[name](part) for part in TOKENS_BT.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1))


@pytest.mark.parametrize("name", RUNGS)
def test_the_loss_is_torchs_cross_entropy_of_the_logits(name: str) -> None:
    targets_BT = TOKENS_BT.roll(-1, 1)
    targets_BT[0, 5:9] = -100
    logits = RUNGS[name](TOKENS_BT).flatten(0, 1)
    each = F.cross_entropy(logits, targets_BT.flatten(), reduction="none")
    torch.testing.assert_close(RUNGS[name].loss(TOKENS_BT, targets_BT, "none"), each)
    torch.testing.assert_close(RUNGS[name].loss(TOKENS_BT, targets_BT, "sum"), each.sum())
    torch.testing.assert_close(RUNGS[name].loss(TOKENS_BT, targets_BT), each.sum() / 68)


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_has_a_role_and_an_optimizer(name: str) -> None:
    rung = RUNGS[name]
    assert rung.roles().keys() == dict(rung.named_parameters()).keys()
    optimizers = build_optimizers(rung, rung.optim)
    held = [p for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, rung.parameters()))


@pytest.mark.parametrize("make", [NeuralBigram, lambda v: Mlp(v, 6), lambda v: Gru(v, 6)])
def test_what_has_learned_nothing_finds_all_tokens_equally_likely(make) -> None:
    assert make(V).loss(TOKENS_BT, TOKENS_BT).item() == pytest.approx(math.log(V))


@pytest.mark.parametrize("make", [Mlp, Gru])
def test_a_seed_decides_the_weights(make) -> None:
    one, same, other = (make(V, 6, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embed.weight"], other["embed.weight"])


def test_the_gru_is_torchs() -> None:
    ours = RUNGS["gru"]
    theirs = nn.GRU(6, 12, batch_first=True)
    theirs.load_state_dict(
        {
            "weight_ih_l0": ours.from_token.weight,
            "weight_hh_l0": ours.from_state.weight,
            "bias_ih_l0": ours.from_token.bias,
            "bias_hh_l0": ours.from_state.bias,
        }
    )
    states, _ = theirs(ours.embed(TOKENS_BT))
    torch.testing.assert_close(ours(TOKENS_BT), ours.head(states))


def test_the_mlp_sees_as_many_tokens_as_it_says() -> None:
    plain = RUNGS["mlp"](TOKENS_BT)
    for distance in (N_TOKENS - 1, N_TOKENS):
        changed_BT = TOKENS_BT.clone()
        changed_BT[:, 20 - distance] += 1
        changed_BT %= V
        same = torch.equal(plain[:, 20], RUNGS["mlp"](changed_BT)[:, 20])
        assert same == (distance == N_TOKENS)


@settings(max_examples=30, deadline=None)
@given(tokens=st.lists(st.integers(1, V - 1), min_size=2, max_size=60))
def test_the_count_bigram_is_the_formula_on_paper(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int]
) -> None:
    """(count of the pair + strength * prior of the second) / (count of the first + strength)."""
    train = prepared_from(tmp_path_factory.mktemp("data"), [Document("0" * 32, tokens)])
    made = count_bigram(train, V).log_VV.exp()
    assert made.sum(1).tolist() == pytest.approx([1.0] * V, rel=1e-5)
    first, second = [0, *tokens[:-1]], tokens
    pairs = list(zip(first, second, strict=True))
    prior = [(1 + second.count(b)) / (V + len(second)) for b in range(V)]
    tables = [
        [
            [(pairs.count((a, b)) + s * prior[b]) / (first.count(a) + s) for b in range(V)]
            for a in range(V)
        ]
        for s in STRENGTHS
    ]
    assert any(torch.allclose(made, torch.tensor(table), rtol=1e-4) for table in tables)


def test_the_count_bigram_knows_tinyshakespeare_as_well_as_others_say(tmp_path: Path) -> None:
    """2.45 to 2.5 nats a character: nanoGPT's lecture ends its bigram at 2.5."""
    text = shared_data("pretrain/tinyshakespeare.txt.gz")
    data = write_text_dataset(str(text), tmp_path)
    train, validation = (
        prepare(data.dataset_url, split, tmp_path / "cache", data.base_url)
        for split in ("train", "validation")
    )
    made = count_bigram(train, 70)
    found = evaluate(made, validation, context_length=64, batch_size=64)
    assert 2.45 < found.nats_per_token < 2.5
    assert found.n_tokens == 111_540


def test_the_strength_of_the_prior_is_chosen_on_text_that_was_not_counted(tmp_path: Path) -> None:
    """Tokens in no order at all: the prior is then all there is to know."""
    random = np.random.default_rng(0)
    tokens = (1 + random.integers(0, V - 1, 2000)).tolist()
    train = prepared_from(tmp_path, [Document("0" * 32, tokens)])
    made = count_bigram(train, V).log_VV.exp()[1:, 1:]
    assert (made - 1 / (V - 1)).abs().max() < 0.02
    in_order = [1 + i % (V - 1) for i in range(2000)]
    train = prepared_from(tmp_path / "ordered", [Document("0" * 32, in_order)])
    assert count_bigram(train, V).log_VV.exp()[1, 2] > 0.999


def test_a_vocabulary_without_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="67,125,249 pairs"):
        NeuralBigram(8193)
