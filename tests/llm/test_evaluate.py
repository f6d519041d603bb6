from __future__ import annotations

import gzip
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from llm import files
from llm.config_data import DataConfig
from llm.config_model import ModelConfig
from llm.data import Prepared, prepare
from llm.errors import DataError
from llm.evaluate import evaluate, gzip_baseline, uniform_baseline, unigram_baseline
from llm.families import build_model
from llm.train import train
from tests.llm.small_models import small_model
from tests.llm.small_runs import small_spec, torch_settings_kept
from tests.llm.test_data import Document, made_up, prepared_from

V = 12


class Bigram(torch.nn.Module):
    """Logits that depend on the last token only, so that windows cannot matter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(V, V)
        torch.manual_seed(0)
        torch.nn.init.normal_(self.table.weight)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.table(tokens_BT))


def documents() -> list[Document]:
    return [Document(d.id, [1 + t % (V - 1) for t in d.tokens]) for d in made_up(20)]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepared_from(tmp_path, documents())


def oracle(model: Bigram) -> float:
    """Nats of the split: torch's cross-entropy on the documents written out one by one."""
    by_id = sorted(documents(), key=lambda d: d.id)
    stream = torch.tensor([t for d in by_id for t in [0, *d.tokens]])
    weight = model.table.weight.detach().double()
    return float(torch.nn.functional.cross_entropy(weight[stream[:-1]], stream[1:]))


@pytest.mark.parametrize("context_length, batch_size", [(1, 1), (7, 3), (16, 64), (1000, 2)])
def test_the_cost_of_a_split_is_torchs_cross_entropy(
    prepared: Prepared, context_length: int, batch_size: int
) -> None:
    model = Bigram()
    found = evaluate(model, prepared, context_length=context_length, batch_size=batch_size)
    nats = oracle(model)
    n_tokens = sum(len(d.tokens) + 1 for d in documents()) - 1
    n_bytes = sum(3 * len(d.tokens) for d in documents())
    assert found.nats_per_token == pytest.approx(nats, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nats), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats * n_tokens / math.log(2) / n_bytes, rel=1e-6)
    assert (found.n_tokens, found.n_bytes) == (n_tokens, n_bytes)


@pytest.mark.parametrize("family", ["llama", "gpt2", "speedrun"])
def test_behind_a_document_mask_a_document_costs_what_it_costs_alone(
    tmp_path: Path, family: str
) -> None:
    texts = [[1, 2, 3, 4], [5], [6, 7, 8, 9, 10], [3, 1]]
    held = prepared_from(tmp_path, [Document(f"{i}" * 32, text) for i, text in enumerate(texts)])
    model = small_model(vocab_size=V, family=family).eval()
    alone = 0.0
    for text in texts:
        targets = torch.tensor([[*text, -100 if text is texts[-1] else 0]])
        alone += model.loss(torch.tensor([[0, *text]]), targets, "sum").item()
    masked, plain = (
        evaluate(model, held, context_length=24, batch_size=2, document_mask=mask)
        for mask in (True, False)
    )
    assert masked.nats_per_token * masked.n_tokens == pytest.approx(alone, rel=1e-5)
    assert masked.nats_per_token != pytest.approx(plain.nats_per_token, rel=1e-3)


def test_a_run_behind_a_document_mask_is_validated_behind_it(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, steps=6, data=DataConfig(document_mask=True))
    with torch_settings_kept():
        result = train(spec)
    model = build_model(ModelConfig.model_validate(result["model"]))
    model.load_state_dict(load(files.read_bytes(result["weights"]["url"])))
    held = prepare(spec.dataset_url, "validation", tmp_path / "cache", spec.base_url)
    length = model.config.context_length
    masked, plain = (
        evaluate(model, held, context_length=length, batch_size=4, document_mask=mask)
        for mask in (True, False)
    )
    found = result["validation"]["nats_per_token"]
    assert found == pytest.approx(masked.nats_per_token, rel=1e-5)
    assert found != pytest.approx(plain.nats_per_token, rel=1e-5)


def test_a_model_is_left_in_the_mode_it_was_in(prepared: Prepared) -> None:
    model = Bigram()
    for mode in (True, False):
        model.train(mode)
        evaluate(model, prepared, context_length=8, batch_size=4)
        assert model.training is mode


def test_a_part_of_a_split_counts_the_bytes_of_that_part(tmp_path: Path) -> None:
    two = [Document("a" * 32, [1, 2, 3, 4]), Document("b" * 32, [5, 6, 7, 8])]
    prepared = prepared_from(tmp_path, two)
    # Stream: eot 1 2 3 4 eot 5 6 7 8; three bytes a token. Seven targets end with 5 and 6.
    model = Bigram()
    for n_targets, n_bytes in ((1, 3), (4, 12), (5, 12), (7, 18), (9, 24)):
        found = evaluate(model, prepared, context_length=1, batch_size=2, max_windows=n_targets)
        assert (found.n_tokens, found.n_bytes) == (n_targets, n_bytes)
    assert evaluate(model, prepared, context_length=3, batch_size=2, max_windows=99).n_tokens == 9
    assert evaluate(model, prepared, context_length=3, batch_size=2, max_windows=0).n_tokens == 9


def test_a_diverged_model_has_an_infinite_perplexity(prepared: Prepared) -> None:
    model = Bigram()
    torch.nn.init.normal_(model.table.weight, std=1e5)
    found = evaluate(model, prepared, context_length=8, batch_size=4)
    assert found.nats_per_token > 700
    assert found.perplexity == math.inf


def test_uniform_is_the_logarithm_of_the_vocabulary(prepared: Prepared) -> None:
    found = uniform_baseline(V, prepared)
    assert found.nats_per_token == pytest.approx(math.log(V))
    assert found.perplexity == pytest.approx(V)
    bits = found.n_tokens * math.log2(V)
    assert found.bits_per_byte == pytest.approx(bits / found.n_bytes)


def test_a_model_that_knows_nothing_costs_what_uniform_costs(prepared: Prepared) -> None:
    model = Bigram()
    torch.nn.init.zeros_(model.table.weight)
    found = evaluate(model, prepared, context_length=8, batch_size=4)
    assert asdict(found) == pytest.approx(asdict(uniform_baseline(V, prepared)))


def test_unigram_is_laplaces_rule_by_hand(tmp_path: Path) -> None:
    train = prepared_from(tmp_path / "train", [Document("a" * 32, [1, 1, 2])])
    validation = prepared_from(
        tmp_path / "validation", [Document("a" * 32, [1, 3]), Document("b" * 32, [2])]
    )
    # Training counts: eot 1, token 1 twice, token 2 once, token 3 never; 4 in all, 4 kinds.
    # Validation targets: 1, 3, eot, 2.
    probabilities = [3 / 8, 1 / 8, 2 / 8, 2 / 8]
    found = unigram_baseline(train, validation, 4)
    assert found.nats_per_token == pytest.approx(-sum(map(math.log, probabilities)) / 4)
    assert (found.n_tokens, found.n_bytes) == (4, 9)
    assert found.bits_per_byte == pytest.approx(-sum(map(math.log2, probabilities)) / 9)


def test_gzip_is_the_size_of_the_compressed_file() -> None:
    texts = [b"the wheel turns ", b"and turns ", b"", b"again " * 50]
    size = len(gzip.compress(b"".join(texts), 9, mtime=0))
    found = gzip_baseline(iter(texts))
    assert found.n_bytes == found.n_tokens == sum(map(len, texts))
    assert found.bits_per_byte == pytest.approx(8 * size / found.n_bytes)
    assert found.nats_per_token == pytest.approx(found.bits_per_byte * math.log(2))


def test_random_bytes_do_not_compress() -> None:
    noise = np.random.default_rng(0).bytes(10_000)
    assert 8 < gzip_baseline([noise]).bits_per_byte < 8.1


def test_nothing_to_evaluate_is_an_error(tmp_path: Path) -> None:
    empty = prepared_from(tmp_path, [Document("a" * 32, [])])
    with pytest.raises(DataError, match="nothing to evaluate: 0 tokens"):
        evaluate(Bigram(), empty, context_length=8, batch_size=4)
    with pytest.raises(DataError, match="nothing to evaluate"):
        gzip_baseline([])
