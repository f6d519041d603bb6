"""Where the real data of the tests lies, beside the checkout; absent, a test skips loudly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("LOAM_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")


def shared_data(name: str) -> Path:
    """The path of a file of shared data; skips the calling test where it is absent."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"no {name} in {ROOT}: set LOAM_SHARED_DATA to the folder that holds it")
    return path
