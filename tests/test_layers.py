"""The house: arrows point down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "llm": {"tasks", "flows", "deploy", "prefect"},
    "tasks": {"flows", "deploy"},
    "flows": {"deploy"},
}
# Planning reads every stage's config and must be quick: these are imported where they are used.
HEAVY = {
    *("torch", "prefect", "trafilatura", "presidio_analyzer", "fasttext", "datasketch", "spacy"),
    *("numba", "re2", "tiktoken", "distributed"),
}
# The hot loops, which a stage imports where it calls them.
KERNELS = "tasks/kernels"


def imports(path: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """The top-level names that a module imports; only those it needs on import, if asked."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_import_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_no_room_imports_one_above_it(room: str) -> None:
    modules = sorted((ROOT / room).rglob("*.py"))
    assert modules
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in modules
        if (names := FORBIDDEN[room] & set(imports(path)))
    }
    assert not wrong


def test_no_stage_loads_a_heavy_library_on_import() -> None:
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in sorted((ROOT / "tasks").rglob("*.py"))
        if KERNELS not in path.as_posix()
        and (names := HEAVY & set(imports(path, at_import_only=True)))
    }
    assert not wrong


def test_only_the_store_keeps_objects() -> None:
    """`llm` knows URLs, not the store's layout."""
    for path in sorted((ROOT / "llm").rglob("*.py")):
        assert "manifests/" not in path.read_text(), path
