"""Starts the training process, or several under torchrun: `python -m llm.launch SPEC.json`.

One process is `llm.train` itself. Several are torchrun's workers, one per device of this machine;
this process then is its agent, and passes SIGTERM and SIGINT on to them. Exit codes are those of
`llm.train`. For several machines call torchrun on each (docs/training.md).
"""

from __future__ import annotations

import os
import sys

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from llm import process, train
from llm.config_train import TrainConfig
from llm.errors import LoamError
from llm.parallel import check_share

STOP_WITHIN_S = 100
"""Seconds the workers have to save and leave. Less than whoever stops this process waits."""


def main(arguments: list[str] | None = None) -> int:
    """As `llm.train.main`: 0 when complete, 75 when stopped, 2 when it cannot run."""
    options = process.parse_arguments(arguments)
    try:
        config = process.read_spec(options.spec).train
        n_processes = processes(config)
        check_share(config.batch_size, n_processes)
    except LoamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if n_processes == 1:
        return train.main(arguments)
    return _under_torchrun(n_processes, sys.argv[1:] if arguments is None else arguments)


def processes(config: TrainConfig) -> int:
    """How many processes a run has on this machine.

    With "auto" one per CUDA device, but never more than share a micro-batch's windows evenly.
    """
    if config.processes != "auto":
        return config.processes
    devices = 0 if config.device == "cpu" else torch.cuda.device_count()
    return max(n for n in range(1, max(1, devices) + 1) if config.batch_size % n == 0)


def _under_torchrun(n_processes: int, arguments: list[str]) -> int:
    how = ["--standalone", f"--nproc-per-node={n_processes}", f"--shutdown-timeout={STOP_WITHIN_S}"]
    # Otherwise torchrun sets it to 1, with a warning.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        run(parse_args([*how, "-m", "llm.train", *arguments]))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode in (2, os.EX_TEMPFAIL) else 1
    except SignalException:
        return os.EX_TEMPFAIL  # It was passed on, and the workers have left.
    return 0


if __name__ == "__main__":
    sys.exit(main())
