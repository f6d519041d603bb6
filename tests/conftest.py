"""Fixtures that many tests share: a place for a store, local and on a real S3 server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.s3_server import BUCKET, S3Server, running_server

# Shared machines are slow at times; a deadline would only measure that.
hypothesis.settings.register_profile("loam", deadline=None, derandomize=True)
hypothesis.settings.load_profile("loam")

RUN_ALL = os.environ.get("LOAM_TEST_ALL") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `slow` or `browser` run with LOAM_TEST_ALL=1."""
    for item in items:
        for mark in ("slow", "browser"):
            if item.get_closest_marker(mark) and not RUN_ALL:
                item.add_marker(pytest.mark.skip(reason=f"{mark}: runs with LOAM_TEST_ALL=1"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, one per session and per xdist worker, started when first asked for."""
    with running_server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_root(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> str:
    """An empty s3:// prefix of this test's own; the AWS variables lead to the server."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", request.node.nodeid)[-100:].strip("-")
    return f"s3://{BUCKET}/{prefix}"


@pytest.fixture(params=["file", "s3"])
def store_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a store: a local folder, then a prefix on the S3 server."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_root"))
    return f"file://{tmp_path / 'store'}"
