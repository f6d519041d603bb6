"""Stops what `deploy.up` started: `python -m deploy.down`. Safe to repeat, and after a crash.

The runs end first: training writes a checkpoint, from which the same run resumes when it is started
again. Then the worker, then the server, so that each can report to the next.
"""

from __future__ import annotations

import sys

from deploy import processes
from deploy.places import Places
from llm.errors import LoamError

GRACE_S = {"worker": 150.0, "server": 20.0}
"""Seconds each has to end, in this order. Training has 120 of them for its checkpoint."""


def bring_down(places: Places) -> list[str]:
    """Stops worker and server; returns the names of those that were up."""
    return [
        name
        for name, grace_s in GRACE_S.items()
        if processes.stop(places.run, name, grace_s=grace_s)
    ]


def main() -> int:
    """The command line. Returns the exit code."""
    try:
        stopped = bring_down(Places.from_environment())
    except LoamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
