"""The cost of adding 1 % of new documents, over that of growing the whole again from nothing.

`ratio` is CPU seconds over CPU seconds (at most 0.03 is wanted), each in a process that has grown a
small corpus before, so that loading libraries and compiled kernels is in neither. The result must
be the rebuild's at every stage, from the same pins.
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
    """A corpus of 100,000 documents (quick: 4,000) and then a block of 1,000 more."""
    n_documents = 4_000 if quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generated.write(root / "documents", n_documents, per_file=1000)
        path = _config(root)
        grow(path)
        generated.write(root / "documents", generated.BLOCK, first=n_documents, per_file=1000)
        added = grow(path, _small(root / "small-one"))
        config = json.loads(path.read_text())
        config["store"]["root"] = str(root / "rebuilt")
        path.write_text(json.dumps(config))
        _take_pins(root / "store", root / "rebuilt")
        rebuilt = grow(path, _small(root / "small-two"))
    same = added["digests"] == rebuilt["digests"]
    return Result(
        ratio=added["cpu_s"] / rebuilt["cpu_s"],
        target=0.03,
        ok=same,
        figures={
            "added_s": added["cpu_s"],
            "rebuilt_s": rebuilt["cpu_s"],
            "documents": float(n_documents),
        },
        quality={
            "same_digests": same,
            "stages_added_s": added["stages"],
            "stages_rebuilt_s": rebuilt["stages"],
        },
    )


def _config(root: Path) -> Path:
    generated.write_benchmark(root / "quiz.jsonl")
    path = root / "config.json"
    path.write_text(json.dumps(generated.config(root, workers=1)))
    return path


def _small(root: Path) -> Path:
    """A corpus of its own that goes through all stages."""
    generated.write(root / "documents", generated.BLOCK)
    return _config(root)


def _take_pins(old: Path, new: Path) -> None:
    """The pins of one store in another: the tokenizer, the held-out set, the models."""
    for name in ("refs/pin", "objects"):
        shutil.copytree(old / name, new / name)
