"""A small corpus with its dataset, grown once for the session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.small_pipeline import Place
from tests.tasks.small_corpus import copy_of, grown_at


@pytest.fixture(scope="session")
def grown_once(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """To be looked at only."""
    return grown_at(tmp_path_factory.mktemp("small-corpus"))


@pytest.fixture
def place(grown_once: Place, tmp_path: Path) -> Place:
    """A copy that the test may change."""
    return copy_of(grown_once, tmp_path / "copy")
