"""The small corpus grown twice: some documents are new, changed, gone or duplicates by then."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from tests.flows.small_pipeline import Content, Place, prose
from tests.tasks.small_corpus import WHOLE, copy_of, grow, served

GONE, SHORTENED, EDITED = "n09", "n06", "/p03.html"
NEW_PAGE, NEW_NOTE = "/new.html", "fresh"


def second_content() -> Content:
    """A page and a note are new and a page is edited; of the notes one is gone, and one too short
    by now."""
    rng = random.Random(77)
    held = WHOLE.edited(
        {EDITED: prose(rng, 14), NEW_PAGE: prose(rng, 13)},
        {NEW_NOTE: prose(rng, 12), SHORTENED: "It is short by now."},
    )
    return replace(held, notes={k: v for k, v in held.notes.items() if k != GONE})


def regrown(place: Place, folder: Path) -> Place:
    """A copy of a grown place, grown again from the changed sources."""
    copy = copy_of(place, folder)
    with served(copy, second_content()):
        grow(copy, refresh=True)
    return copy
