"""How fast a run went, from its log: what it measured is the best guess for the next."""

from __future__ import annotations

import json
import statistics

from llm import files
from llm.config_model import ModelConfig
from llm.errors import DataError
from llm.metrics import read_metrics
from llm.sizing import training_flops_per_token


def measured_flops(run_url: str) -> float:
    """Operations a second that the run at `run_url` reached, the median of its log.

    Raises DataError where there is no run, or none with a rate in its log.
    """
    url = run_url.rstrip("/")
    try:
        body = json.loads(files.read_bytes(f"{url}/run.json"))
    except FileNotFoundError:
        raise DataError(f"there is no run at {url}: name a folder with a run.json") from None
    rates = [row["tokens_per_second"] for row in read_metrics(url) if "tokens_per_second" in row]
    if not rates:
        raise DataError(f"{url} has logged no rate yet: wait for its first rows")
    config = ModelConfig.model_validate(body["identity"]["model"])
    return training_flops_per_token(config) * statistics.median(rates)
