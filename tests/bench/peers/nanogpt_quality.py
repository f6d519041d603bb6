"""nanoGPT's documented CPU task by its own train.py, and its loss over the whole validation split.

nanogpt_quality.py CHECKOUT TEXT STEPS SEED: TEXT is a plain file, cut as its prepare.py does.
"""

from __future__ import annotations

import json
import os
import pickle
import runpy
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

CONTEXT, BATCH = 64, 12
OPTIONS = [
    *("--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=100"),
    *(f"--block_size={CONTEXT}", f"--batch_size={BATCH}", "--n_layer=4", "--n_head=4"),
    *("--n_embd=128", "--dropout=0.0"),
]
"""Of its README, but for the number of lines it prints."""
IGNORED = -1
"""The target that its model leaves out."""


def prepare(folder: Path, text: str) -> np.ndarray:
    """What data/shakespeare_char/prepare.py writes; the ids of the validation split."""
    characters = sorted(set(text))
    numbers = {character: i for i, character in enumerate(characters)}
    ids = np.array([numbers[character] for character in text], np.uint16)
    cut = int(len(ids) * 0.9)
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": numbers}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return ids[cut:]


def validation_loss(model: torch.nn.Module, ids: np.ndarray) -> float:
    """Nats per character in windows of 64, each character but the first once."""
    n_windows = -(-(len(ids) - 1) // CONTEXT)
    padded = np.full(n_windows * CONTEXT + 1, IGNORED, np.int64)
    padded[: len(ids)] = ids
    targets = torch.from_numpy(padded[1:]).view(n_windows, CONTEXT)
    inputs = torch.from_numpy(padded[:-1].clip(0)).view(n_windows, CONTEXT)
    model.eval()
    nats = 0.0
    with torch.no_grad():
        for x, y in zip(inputs.split(240), targets.split(240), strict=True):
            nats += model(x, y)[1].item() * int((y != IGNORED).sum())
    return nats / (len(ids) - 1)


def main() -> None:
    checkout, text, steps, seed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in checkout.glob("*.py"):
            shutil.copy(path, folder)
        shutil.copytree(checkout / "config", folder / "config")
        data = folder / "data" / "shakespeare_char"
        data.mkdir(parents=True)
        ids = prepare(data, text.read_text())
        # Its seed is a constant of its code.
        script = folder / "train.py"
        source = script.read_text()
        assert "torch.manual_seed(1337 +" in source
        script.write_text(source.replace("torch.manual_seed(1337 +", f"torch.manual_seed({seed} +"))
        os.chdir(folder)
        sys.path.insert(0, name)
        sys.argv = ["train.py", "config/train_shakespeare_char.py", *OPTIONS]
        sys.argv += [f"--max_iters={steps}", f"--lr_decay_iters={steps}"]
        start = time.process_time()
        model = runpy.run_path("train.py", run_name="__main__")["model"]
        seconds = time.process_time() - start
        parameters = sum(p.numel() for p in model.parameters())
        found = {"val": validation_loss(model, ids), "cpu_s": seconds, "parameters": parameters}
        print(json.dumps(found))


if __name__ == "__main__":
    main()
