"""Publish: point a ref at what a run made, if nobody else has moved it since the run started."""

from __future__ import annotations

from dataclasses import asdict

from tasks.as_task import as_task
from tasks.store.records import Manifest, ManifestRef
from tasks.store.run import Run, WouldRun
from tasks.store.store import RefMoved


@as_task("publish")
def publish(run: Run, manifest: Manifest, kind: str) -> Manifest:
    """Points `refs/<kind>/<pipeline>` at the manifest, and at the line of manifests to it.

    The line is this run's, from where it last published. It can differ from the manifest's own
    inputs: where a stage was reused because its input came out the same in another way, such as
    one more duplicate dropped, what happened on that way is in the line only.
    Raises RefMoved when another run has pointed the ref elsewhere since this one started: an older
    snapshot that finishes last must not win.
    """
    value = {**asdict(manifest.ref), "line": [asdict(ref) for ref in _line(run)]}
    seen = run.seen_refs.get(kind)
    if seen is not None and seen.value == value:
        return manifest
    if run.planning:
        raise WouldRun("publish", [f"{kind}/{run.name} does not name it yet"])
    try:
        run.store.move_ref(kind, run.name, value, seen)
    except RefMoved:
        # Another run that came to the same result, by whatever line, moved it for us.
        current = run.store.find_ref(kind, run.name)
        if current is None or current.manifest != manifest.ref:
            raise
    return manifest


def _line(run: Run) -> list[ManifestRef]:
    line: list[ManifestRef] = []
    for visit in run.visits:
        if visit.name == "publish":
            line = []
        elif isinstance(visit.result, Manifest):
            line.append(visit.result.ref)
    return line
