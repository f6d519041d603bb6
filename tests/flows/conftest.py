"""One grown pipeline for the whole session, and copies of it that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.flows.grown import Grown, grow


@pytest.fixture(scope="session")
def grown_once(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return grow(tmp_path_factory.mktemp("grown"))


@pytest.fixture
def grown(grown_once: Grown, monkeypatch: pytest.MonkeyPatch) -> Grown:
    """A grown pipeline to be looked at only; the test runs in its folder."""
    monkeypatch.chdir(grown_once.folder)
    return grown_once


@pytest.fixture
def grown_copy(grown_once: Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grown:
    """A copy that the test may change; the test runs in its folder."""
    copy = Grown(tmp_path / "copy")
    # As a move would: the times of the source's files stay.
    shutil.copytree(grown_once.folder, copy.folder, copy_function=shutil.copy2)
    monkeypatch.chdir(copy.folder)
    return copy
