"""Runs one benchmark and prints its result as one JSON line, or lists them all.

python -m tests.bench                   what there is
python -m tests.bench minhash --quick   under 40 s on two cores
python -m tests.bench all               one after the other, each in its own process
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

from tests.bench.harness import ONE_THREAD, PeersMissing, Result

MODULES = {path.stem.removeprefix("bench_"): path for path in Path(__file__).parent.glob("bench_*")}


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=[*sorted(MODULES), "all"], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a smaller input, under 40 s")
    options = parser.parse_args()
    if options.name is None:
        for name, path in sorted(MODULES.items()):
            print(f"{name:18} {_summary(path)}")
        return 0
    if options.name == "all":
        quick = ["--quick"] if options.quick else []
        calls = [[sys.executable, "-m", "tests.bench", name, *quick] for name in sorted(MODULES)]
        return max(subprocess.run(call, check=False).returncode for call in calls)
    module = importlib.import_module(f"tests.bench.bench_{options.name}")
    try:
        result: Result = module.run(options.quick)
    except PeersMissing as error:
        result = Result(None, None, False, peers_missing=str(error))
    print(result.line(options.name))
    return 0 if result.ok else 1


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


if __name__ == "__main__":
    # Before any library counts the cores.
    os.environ.update(ONE_THREAD)
    sys.exit(main())
