"""Where what stays up lives: its address, its folders and the settings its processes share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm.errors import ConfigError

HOST = "127.0.0.1"
PORT = 4200
"""Prefect's own default."""

_LEASES = "prefect.server.concurrency.lease_storage"


@dataclass(frozen=True)
class Places:
    """One project's server, worker and database. Two projects stay apart by folder and port."""

    root: Path
    """The project: configs name their files, and the store its folder, relative to it."""

    port: int = PORT
    database: str = ""
    """A URL for SQLAlchemy; empty: SQLite in the state folder."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Places:
        """The current folder's, as LOAM_PREFECT_PORT and LOAM_DATABASE_URL say.

        Raises ConfigError for a port that is none.
        """
        given = environ.get("LOAM_PREFECT_PORT", str(PORT))
        if not given.isdecimal() or not 0 < int(given) < 65536:
            raise ConfigError(
                f"LOAM_PREFECT_PORT is {given!r}: expected a port number from 1 to 65535"
            )
        database = environ.get("LOAM_DATABASE_URL", "")
        if database and not database.startswith(("sqlite+aiosqlite:", "postgresql+asyncpg:")):
            raise ConfigError(
                "LOAM_DATABASE_URL must begin with postgresql+asyncpg:// (or sqlite+aiosqlite:///),"
                f" but begins with {database.split(':')[0]}:"
            )
        return cls(Path.cwd(), int(given), database)

    @property
    def ui_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.ui_url}/api"

    @property
    def state(self) -> Path:
        """Prefect's home: database, the UI's files, no profile of the user's."""
        return self.root / ".loam" / "prefect"

    @property
    def run(self) -> Path:
        """A file for each process that is up."""
        return self.root / ".loam" / "run"

    @property
    def logs(self) -> Path:
        return self.root / ".loam" / "logs"

    def environment(self) -> dict[str, str]:
        """The variables that server, worker and whoever deploys must share."""
        database = self.database or f"sqlite+aiosqlite:///{self.state}/server.db"
        return {
            "PREFECT_HOME": str(self.state),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(self.state / "ui"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            # In memory, the default, a slot held when the server stops is never given back.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": f"{_LEASES}.filesystem",
            "PREFECT_WORKER_QUERY_SECONDS": "5",
        }
