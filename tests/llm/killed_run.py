"""`llm.train` that kills itself in the middle of something.

python -m tests.llm.killed_run SPEC.json WHAT N

WHAT is `micro_batch` (the N-th forward pass of this process, counted from 1), or what is done to a
checkpoint's files for the N-th time: `put` (a file that an index names), `create` (an index) or
`delete`. The kill is SIGKILL, before that is done.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

from llm import files, train
from llm.parallel import Wrapped

what, number = sys.argv[2], int(sys.argv[3])
counted = itertools.count(1)


def die_at_last() -> None:
    if next(counted) == number:
        os.kill(os.getpid(), signal.SIGKILL)


if what == "micro_batch":
    micro_batch = Wrapped.micro_batch

    def micro_batch_or_die(self: Wrapped, last: bool) -> Any:
        die_at_last()
        return micro_batch(self, last)

    Wrapped.micro_batch = micro_batch_or_die  # type: ignore[method-assign]
else:
    done = getattr(files, what)

    def done_or_dead(url: str, *rest: Any) -> Any:
        if "/checkpoints/" in url:
            die_at_last()
        return done(url, *rest)

    setattr(files, what, done_or_dead)


if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:2]))
