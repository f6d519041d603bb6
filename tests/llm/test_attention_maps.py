from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llm.attention_maps import GAP, AttentionMaps, as_html, as_png, attention_maps
from llm.config_tokenizer import TokenizerConfig
from llm.decoder import Decoder
from llm.errors import DataError
from llm.export import export_huggingface
from llm.tokenizer import Tokenizer, train_tokenizer
from tests.llm.small_models import FAMILIES, small_model

TEXT = "the worm turns\nthe <soil>"
BODY = train_tokenizer([TEXT], TokenizerConfig(kind="characters", n_spare_tokens=0))
TOKENIZER = Tokenizer.from_bytes(BODY)
EXPORTABLE = {name: shape for name, shape in FAMILIES.items() if "speedrun" not in name}


def model_of(shape: dict[str, Any]) -> Decoder:
    return small_model(vocab_size=TOKENIZER.vocab_size, context_length=32, **shape)


def made_up(n_layers: int = 2, n_heads: int = 3, n_tokens: int = 5) -> AttentionMaps:
    """Maps in which no two weights are equal."""
    scores = torch.randn(n_layers, n_heads, n_tokens, n_tokens,
                         generator=torch.Generator().manual_seed(0))  # fmt: skip
    ahead = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(ahead, -torch.inf).softmax(-1)
    return AttentionMaps(
        ("<|endoftext|>", "a", "\n", "</script>", "“é”")[:n_tokens], weights.numpy()
    )


@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES.keys())
def test_each_token_looks_at_itself_and_what_came_before_in_all(shape: dict[str, Any]) -> None:
    maps = attention_maps(model_of(shape), TOKENIZER, TEXT)
    assert "".join(maps.tokens) == "<|endoftext|>" + TEXT
    assert maps.weights_LHTT.shape == (2, 4, 26, 26)
    np.testing.assert_allclose(maps.weights_LHTT.sum(-1), 1, rtol=1e-5)
    assert not np.triu(maps.weights_LHTT, 1).any()


@pytest.mark.parametrize("shape", EXPORTABLE.values(), ids=EXPORTABLE.keys())
def test_transformers_sees_the_same_in_the_exported_model(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(shape)
    export_huggingface(model, BODY, tmp_path, eot_id=TOKENIZER.eot_id)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = [TOKENIZER.eot_id, *TOKENIZER.encode_batch([TEXT])[0].tolist()]
    with torch.no_grad():
        seen = torch.cat(theirs(torch.tensor([ids]), output_attentions=True).attentions)
    ours = attention_maps(model, TOKENIZER, TEXT).weights_LHTT
    np.testing.assert_allclose(ours, seen.numpy(), atol=1e-5)


def test_an_empty_text_and_one_longer_than_the_context_are_refused() -> None:
    with pytest.raises(DataError, match="the text is empty"):
        attention_maps(model_of({}), TOKENIZER, "")
    with pytest.raises(DataError, match="context_length is 32"):
        attention_maps(model_of({}), TOKENIZER, TEXT * 2)


def test_the_page_holds_every_weight_and_any_token() -> None:
    maps = made_up()
    page = as_html(maps, "tiny <1>")
    assert page.count("</script>") == 2
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page)
    assert found is not None
    data = json.loads(found[1])
    assert (data["title"], tuple(data["tokens"])) == ("tiny <1>", maps.tokens)
    assert (data["n_layers"], data["n_heads"]) == (2, 3)
    weights = np.frombuffer(base64.b64decode(data["weights"]), "<u2") / (2**16 - 1)
    rows = [
        row[: at + 1] for one in maps.weights_LHTT.reshape(6, 5, 5) for at, row in enumerate(one)
    ]
    np.testing.assert_allclose(weights, np.concatenate(rows), atol=1 / 2**16)
    assert as_html(maps, "tiny <1>") == page
    assert "http" not in page


def test_the_picture_is_a_png_whose_shades_order_the_weights() -> None:
    maps = made_up()
    body = as_png(maps)
    assert body[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(body):
        (length,) = struct.unpack(">I", body[place : place + 4])
        name, end = body[place + 4 : place + 8], place + 8 + length
        chunks[name] = body[place + 8 : end]
        assert struct.unpack(">I", body[end : end + 4])[0] == zlib.crc32(body[place + 4 : end])
        place = end + 4
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    side = 255
    assert (width, height) == (3 * (side + GAP) - GAP, 2 * (side + GAP) - GAP)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), "u1").reshape(height, 1 + 3 * width)
    red_HW = rows[:, 1::3].astype(int)
    map_1_2 = red_HW[side + GAP :, 2 * (side + GAP) :][25::51, 25::51]
    assert map_1_2.shape == (5, 5)
    order = np.argsort(maps.weights_LHTT[1, 2], axis=None)
    assert (np.diff(map_1_2.ravel()[order]) <= 0).all()


@pytest.mark.browser
def test_pointing_at_a_cell_shows_its_weight(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    maps = made_up()
    (tmp_path / "maps.html").write_text(as_html(maps, "tiny"), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        complaints: list[Any] = []
        page.on("pageerror", lambda error: complaints.append(error))
        page.goto((tmp_path / "maps.html").as_uri())
        page.locator("#all canvas").nth(4).hover()
        cell, left, top = (page.evaluate(name) for name in ("cell", "left", "top_"))
        page.locator("#one").hover(position={"x": left + 1.5 * cell, "y": top + 3.5 * cell})
        said = page.locator("#said").inner_text()
        browser.close()
    assert not complaints
    weight = 100 * float(maps.weights_LHTT[1, 1, 3, 1])
    digits = 1 if weight >= 10 else 2
    assert said == (
        f"layer 2, head 2: token 3 “</script>” looks at “a” 2 back: {weight:.{digits}f} %"
    )
