"""Addresses and folders, and what is said before anything is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.places import HOST, Places
from llm.errors import ConfigError
from tests.flows.grown import REPOSITORY


def test_everything_is_on_loopback(tmp_path: Path) -> None:
    places = Places(tmp_path, 4321)
    assert socket.gethostbyname(HOST) == "127.0.0.1"
    assert places.environment()["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"


def test_the_database_is_sqlite_unless_another_is_named(tmp_path: Path) -> None:
    setting = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    assert Places(tmp_path).environment()[setting].startswith(f"sqlite+aiosqlite:///{tmp_path}/")
    postgres = "postgresql+asyncpg://loam@localhost/loam"
    places = Places.from_environment({"LOAM_DATABASE_URL": postgres})
    assert places.environment()[setting] == postgres


@pytest.mark.parametrize("port", ["http", "", "-1", "0", "65536"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(ConfigError, match="expected a port number from 1 to 65535"):
        Places.from_environment({"LOAM_PREFECT_PORT": port})


def test_a_database_without_its_driver_is_refused_and_its_password_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"postgresql\+asyncpg://") as refusal:
        Places.from_environment({"LOAM_DATABASE_URL": "postgresql://me:secret@localhost/loam"})
    assert "secret" not in str(refusal.value)


def up(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.up", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
    )


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    config = REPOSITORY / "flows/configs/quickstart.toml"
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        ended = up(tmp_path, str(config), LOAM_PREFECT_PORT=str(port))
    assert ended.returncode == 1
    assert f"port {port} on 127.0.0.1 cannot be had" in ended.stderr
    assert "LOAM_PREFECT_PORT" in ended.stderr
    assert not list((tmp_path / ".loam/run").glob("*.json"))


def test_a_config_that_is_wrong_is_said_before_anything_starts(tmp_path: Path) -> None:
    ended = up(tmp_path, "missing.toml")
    assert ended.returncode == 1
    assert "there is no config at missing.toml" in ended.stderr
    assert not (tmp_path / ".loam").exists()


def test_down_where_nothing_is_up_says_so(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "deploy.down"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (0, "nothing was up\n")
