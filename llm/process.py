"""The training process around a run: its arguments, its spec, and how it is asked to stop."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading

from pydantic import ValidationError

from llm import files
from llm.config_train import TrainSpec
from llm.errors import ConfigError, LoamError

EX_TEMPFAIL = 75
"""Exit code of a run that stopped on request and can be continued (sysexits.h)."""


class Interrupted(LoamError):
    """The run was asked to stop; it left a checkpoint to continue from."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llm.train", description="Trains a model.")
    parser.add_argument("spec", help="path or URL of the run's spec or its run.json")
    parser.add_argument(
        "--stop-at-eof",
        action="store_true",
        help="stop, with a checkpoint, when standard input closes: whoever held it is gone",
    )
    return parser.parse_args(arguments)


def read_spec(url: str) -> TrainSpec:
    """The spec at a path or URL, or that of the run whose `run.json` lies there.

    Raises ConfigError naming the key that is wrong.
    """
    try:
        body = json.loads(files.read_bytes(url))
        is_run = isinstance(body, dict) and "spec" in body
        return TrainSpec.model_validate_json(json.dumps(body["spec"] if is_run else body))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no spec at {url}") from error
    except ValidationError as error:
        wrong = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        lines = [f"{key or 'the spec'}: {message}" for key, message in wrong]
        raise ConfigError(f"{url}: " + "; ".join(lines)) from error
    except ValueError as error:
        raise ConfigError(f"{url}: not JSON: {error}") from error


def stop_when_asked(at_eof: bool) -> threading.Event:
    """What SIGTERM and SIGINT set, and with `at_eof` the end of standard input."""
    stop = threading.Event()

    def ask_to_stop(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # A second one ends the process at once.

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    if at_eof:
        threading.Thread(target=_stop_at_eof, args=(stop,), daemon=True).start()
    return stop


def _stop_at_eof(stop: threading.Event) -> None:
    # Not through sys.stdin: its lock, held here, would break the interpreter's end.
    while os.read(0, 1 << 16):
        pass
    stop.set()
