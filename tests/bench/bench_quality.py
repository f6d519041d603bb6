"""nanoGPT's documented CPU task: what our families reach with its tokens, and its own code."""

from __future__ import annotations

import gzip
import statistics
import tempfile
import time
from pathlib import Path

from llm.config_model import Family, ModelConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.text_dataset import TextDataset, write_text_dataset
from llm.train import train
from tests.bench.harness import PeersMissing, Result, call, nanogpt
from tests.shared_data import ROOT

TEXT = ROOT / "pretrain" / "tinyshakespeare.txt.gz"
SEEDS = (1337, 1338, 1339)
STEPS, QUICK_STEPS = 2000, 120
MOST_PARAMETERS = 805_000
TARGETS: dict[Family, float] = {"llama": 1.64, "speedrun": 1.60}
"""Nats per character over the whole validation split, mean of the seeds."""
FEED_FORWARD: dict[Family, int] = {"llama": 336, "speedrun": 480}
"""Hidden widths that leave as many parameters as nanoGPT's model has, 0.80 M."""


def run(quick: bool) -> Result:
    """4 layers, 128 wide, context 64, batch 12, 2,000 steps: 1.536 M tokens, for three seeds.

    All else as by default. `ratio` is nanoGPT's loss over that of `speedrun`; `ok` whether both
    families reach their targets with at most 0.805 M parameters. `--quick` takes 120 of
    the steps and one seed, and claims nothing: `ok` is then about parameters alone.
    """
    seeds, steps = (SEEDS[:1], QUICK_STEPS) if quick else (SEEDS, STEPS)
    figures: dict[str, float] = {}
    quality: dict[str, float | int | list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, missing = Path(name), None
        dataset = write_text_dataset(str(TEXT), folder / "dataset")
        for family in TARGETS:
            runs = [_trained(family, dataset, folder, steps, seed) for seed in seeds]
            _note(family, runs, figures, quality)
        try:
            text = folder / "input.txt"
            text.write_bytes(gzip.decompress(TEXT.read_bytes()))
            checkout = nanogpt()
            theirs = [
                call("nanogpt_quality", checkout, str(text), str(steps), str(seed))
                for seed in seeds
            ]
            _note("nanogpt", theirs, figures, quality)
        except PeersMissing as error:
            missing = str(error)
    small = all(quality[f"{family}_parameters"] <= MOST_PARAMETERS for family in TARGETS)
    vals = {family: figures[f"{family}_val"] for family in TARGETS}
    peer = figures.get("nanogpt_val")
    reached = quick or all(vals[family] <= most for family, most in TARGETS.items())
    return Result(
        ratio=peer / vals["speedrun"] if peer else None,
        target=None,
        ok=small and reached,
        figures={key: value for key, value in figures.items() if key.endswith("_s")},
        quality={key: value for key, value in figures.items() if key.endswith("_val")}
        | quality
        | {"steps": steps, "seeds": len(seeds)},
        peers_missing=missing,
    )


def _note(
    name: str,
    runs: list[dict[str, float]],
    figures: dict[str, float],
    quality: dict[str, float | int | list[float]],
) -> None:
    """The mean loss and CPU seconds of a side's runs, and the loss of each."""
    figures[f"{name}_val"] = statistics.mean(run["val"] for run in runs)
    figures[f"{name}_cpu_s"] = statistics.mean(run["cpu_s"] for run in runs)
    quality[f"{name}_vals"] = [round(run["val"], 4) for run in runs]
    quality[f"{name}_parameters"] = int(runs[0]["parameters"])


def _trained(
    family: Family, dataset: TextDataset, folder: Path, steps: int, seed: int
) -> dict[str, float]:
    """What a run of the family comes to; its CPU seconds include all looks and checkpoints."""
    model = ModelConfig(
        family=family, context_length=64, n_layers=4, d_model=128, n_heads=4, qk_norm=True,
        d_ff=FEED_FORWARD[family],
    )  # fmt: skip
    spec = TrainSpec(
        run_url=(folder / f"{family}-{seed}").as_uri(),
        dataset_url=dataset.dataset_url,
        base_url=dataset.base_url,
        tokenizer_url=dataset.tokenizer_url,
        cache_dir=str(folder / "cache"),
        model=model,
        train=TrainConfig(steps=steps, batch_size=12, seed=seed, device="cpu", threads=1),
    )
    start = time.process_time()
    result = train(spec)
    return {
        "val": result["validation"]["nats_per_token"],
        "cpu_s": time.process_time() - start,
        "parameters": result["n_parameters"],
    }
