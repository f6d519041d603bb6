from __future__ import annotations

from pathlib import Path

import pytest

from flows.config import read_config
from llm.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "flows" / "configs").glob("*.toml"))
SOURCE = '[[sources]]\nkind = "import"\nname = "docs"\npaths = ["docs.jsonl"]\n'


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_that_comes_with_loam_is_read(path: Path) -> None:
    assert read_config(path).name == path.stem


@pytest.mark.parametrize(
    "text, said",
    [
        (SOURCE + "[slect]\n", "unknown key 'slect'; did you mean 'select'?"),
        (SOURCE + "[select]\nmin_word = 5\n", "unknown key 'select.min_word'; did you mean 'min_w"),
        (
            SOURCE + "[store]\nxyz = 5\n",
            "unknown key 'store.xyz'; known keys: cache_dir, dask_add",
        ),
        (SOURCE + "[dedup]\nthreshold = 2\n", "dedup.threshold: Input should be less than"),
        (SOURCE + "[dedup]\nthreshold = 2\n", "(found 2)"),
        (SOURCE + '[train]\nsteps = "many"\n', "train.steps: "),
        (SOURCE + SOURCE, "two sources are called 'docs'"),
        (SOURCE + '[model]\nfamily = "speedrun"\n', "family 'llama' with qk_norm = true"),
        (SOURCE + '[model]\nfamily = "speedrun"\ndepth = 4\n', "python -m llm.train SPEC.json"),
        (SOURCE + "[model]\n[train.data]\nweights = {books = 1}\n", "nothing of the source 'docs'"),
        (SOURCE + "[model]\n[train.data]\nweights = {docs = 1, dcos = 2}\n", "names 'dcos'"),
        (SOURCE + "path = 1\n", "did you mean 'paths'?"),
        (SOURCE + '[split]\nsources = {books = "test"}\n', "split.sources names ['books']"),
        (SOURCE + "[split]\nvalidation = 0.6\ntest = 0.6\n", "leave nothing to train on"),
        ('[[sources]]\nkind = "import"\nname = "a"\n', "paths' is missing"),
        ('[[sources]]\nkind = "crwal"\nname = "a"\n', "'crawl'"),
        ("sources = []\n", "sources: "),
        ("name = 'x'\n", "'sources' is missing"),
        ("name = \n", "not TOML"),
    ],
)
def test_a_wrong_config_is_an_error_that_names_the_file_and_the_key(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_config_that_is_not_there_names_the_nearest_that_is(tmp_path: Path) -> None:
    (tmp_path / "quickstart.toml").write_text(SOURCE)
    with pytest.raises(ConfigError, match=r"no config at .*; did you mean .*quickstart\.toml\?"):
        read_config(tmp_path / "quikstart.toml")


def test_a_folder_or_bytes_that_are_no_text_are_told_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "x.toml")
