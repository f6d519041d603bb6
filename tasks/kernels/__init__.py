"""The hot loops, compiled by numba; a stage imports them where it calls them.

Numba keeps compiled code by the file of each function alone, although it holds what was called in
other files too. So its cache is named after the content of all kernels: a change to any of them
compiles anew, once per machine.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path


def _cache_folder() -> str:
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "loam" / f"kernels-{content.hexdigest()[:16]}")


if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = _cache_folder()
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]
