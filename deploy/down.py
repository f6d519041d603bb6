"""Stops what `deploy.up` started: `python -m deploy.down`. Safe to repeat, and after a crash.

The worker goes first, so that it can end its runs and report them to the server; training writes a
checkpoint, and the same run started again resumes from it.
"""

from __future__ import annotations

import sys

from deploy import processes
from deploy.places import Places
from llm.errors import LoamError

GRACE_S = {"worker": 60.0, "server": 20.0}
"""Seconds each has to end by itself. Prefect gives a run 30 to end before it is killed."""


def bring_down(places: Places) -> list[str]:
    """Stops worker and server; returns the names of those that were up."""
    return [
        name for name, grace_s in GRACE_S.items() if processes.stop(places.run, name, grace_s=grace_s)
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
