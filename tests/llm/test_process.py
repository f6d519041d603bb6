from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.errors import ConfigError
from llm.process import read_spec
from tests.llm.small_runs import small_spec


def test_a_spec_is_read_from_its_file_or_from_the_run_that_it_began(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    of_its_own, of_a_run = tmp_path / "spec.json", tmp_path / "run.json"
    of_its_own.write_text(spec.model_dump_json())
    of_a_run.write_text(json.dumps({"identity": {}, "spec": spec.model_dump(mode="json")}))
    assert read_spec(str(of_its_own)) == read_spec(str(of_a_run)) == spec


@pytest.mark.parametrize(
    "body, said",
    [
        (None, "there is no spec at"),
        ("{", "spec.json: not JSON: Expecting"),
        ("[]", "spec.json: the spec: Input should be"),
        ('{"spec": {"run_urll": ""}}', "run_url: Field required; .*; run_urll: Extra inputs"),
    ],
)
def test_what_is_no_spec_says_why(tmp_path: Path, body: str | None, said: str) -> None:
    if body is not None:
        (tmp_path / "spec.json").write_text(body)
    with pytest.raises(ConfigError, match=said):
        read_spec(str(tmp_path / "spec.json"))
