"""`llm.train` in which some ranks get a signal in the middle of a step.

torchrun --nproc-per-node 2 -m tests.llm.signalled_run SPEC.json STEP SIGNAL RANK...
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from llm import train

step, number, *ranks = sys.argv[2:]
update = train.update


def update_or_be_signalled(run: Any, *rest: Any) -> Any:
    if run.step == int(step) and os.environ["RANK"] in ranks:
        os.kill(os.getpid(), getattr(signal, number))
    return update(run, *rest)


if __name__ == "__main__":
    train.update = update_or_be_signalled
    sys.exit(train.main(sys.argv[1:2]))
