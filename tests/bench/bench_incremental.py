"""The cost of adding 1 % of new documents, over that of growing the whole again from nothing.

`ratio` is cost over cost (at most 0.03 is wanted), in CPU seconds of all processes, start included.
The result must be the same at every stage as the rebuild's, from the same pins.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from tests.bench import generated
from tests.bench.growing import grow
from tests.bench.harness import Result


def run(quick: bool) -> Result:
    n_documents = 4_000 if quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generated.write(root / "documents", n_documents, per_file=1000)
        generated.write_benchmark(root / "quiz.jsonl")
        path = root / "config.json"
        path.write_text(json.dumps(generated.config(root, workers=1)))
        grow(path)
        n_new = max(generated.BLOCK, n_documents // 100)
        generated.write(root / "documents", n_new, first=n_documents, per_file=1000)
        added = grow(path)
        rebuilt_root = root / "rebuilt"
        rebuilt_root.mkdir()
        again = root / "again.json"
        again.write_text(
            json.dumps(
                generated.config(root, workers=1)
                | {"store": {"root": str(rebuilt_root / "store"), "workers": 1}}
            )
        )
        _take_pins(root / "store", rebuilt_root / "store")
        rebuilt = grow(again)
    later = {"stages_added_s": added["stages"], "stages_rebuilt_s": rebuilt["stages"]}
    return Result(
        ratio=added["cpu_s"] / rebuilt["cpu_s"],
        target=0.03,
        ok=_same(added["digests"], rebuilt["digests"]),
        figures={"added_cpu_s": added["cpu_s"], "rebuilt_cpu_s": rebuilt["cpu_s"]},
        quality={"same_digests": _same(added["digests"], rebuilt["digests"]), **later},
    )


def _same(one: dict[str, str], two: dict[str, str]) -> bool:
    return one == two


def _take_pins(old: Path, new: Path) -> None:
    """The pins of one store in another: the tokenizer, the held-out set, the models."""
    for name in ("refs/pin", "objects"):
        shutil.copytree(old / name, new / name)
