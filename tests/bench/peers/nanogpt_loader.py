"""nanoGPT's own get_batch, cut out of the train.py of a checkout.

nanogpt_loader.py CHECKOUT FOLDER CONTEXT BATCH BATCHES: FOLDER holds data/bench/train.bin (uint16).
"""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPEATS = 3


def main() -> None:
    checkout, folder, *numbers = sys.argv[1:]
    context, batch, batches = map(int, numbers)
    torch.manual_seed(1337)
    settings: dict[str, Any] = {
        "os": os, "np": np, "torch": torch, "device": "cpu", "device_type": "cpu",
        "data_dir": str(Path(folder) / "data" / "bench"), "block_size": context,
        "batch_size": batch,
    }  # fmt: skip
    tree = ast.parse((Path(checkout) / "train.py").read_text())
    tree.body = [part for part in tree.body if getattr(part, "name", "") == "get_batch"]
    exec(compile(tree, "train.py", "exec"), settings)
    settings["get_batch"]("train")
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        for _ in range(batches):
            settings["get_batch"]("train")
        best = min(best, time.process_time() - start)
    print(json.dumps({"tokens_s": batches * batch * context / best}))


if __name__ == "__main__":
    main()
