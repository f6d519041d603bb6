"""Pipelines grown once for the whole session, and copies of them that a test may change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import filelock
import pytest

from tests.flows.grown import Grown, grow
from tests.flows.small_pipeline import Place, serving_site, whole_content


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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The small pipeline, grown in one run that nothing disturbed; to be looked at only."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist share what the first of them has grown.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with filelock.FileLock(shared / "undisturbed.lock"):
        place, done = Place.at(shared / "undisturbed"), shared / "undisturbed.done"
        if not done.exists():
            held = whole_content()
            with serving_site(held) as server:
                place.write(held, server)
                place.grow()
            done.touch()
    return place
