"""The commands for documents that must leave: takedown and erase."""

from __future__ import annotations

import getpass
import secrets
import shlex
from typing import Annotated

from cyclopts import Parameter

from flows import showing
from flows.cli_options import ConfigPath, Flag, Json, StoreUrl, load, store_at, store_in_use
from llm.errors import ConfigError
from tasks import takedown as listing
from tasks.erase import erase as erase_texts
from tasks.report_page import format_size
from tasks.store.lease import joined
from tasks.store.store import Store
from tasks.takedown import Affected

SHOWN = 5


def takedown(
    *targets: str,
    reason: str | None = None,
    list_: Annotated[bool, Parameter(name="--list", show_default=False)] = False,
    undo: Flag = False,
    config: ConfigPath = None,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Take documents down: they leave every corpus with its next run, and no re-crawl brings them
    back.

    Exports leave them out at once. Models that were trained on them are listed and marked. What
    nothing in the store answers to is recorded all the same, for the day a source brings it.

        loam takedown https://example.org/page --reason "asked by the author"
        loam takedown example.org 0123456789abcdef0123456789abcdef --reason "licence withdrawn"
        loam takedown --list
        loam takedown example.org --undo

    Args:
        targets: Addresses (http:// or https://), domains with all below them, or document ids.
        reason: Why; it is kept with the entry and with every drop.
        list: Show what is taken down.
        undo: Take the targets off the list.
        config: A pipeline's TOML file, for the place of its store.
        store: The store; else the config's, else LOAM_STORE, else .loam/store.
        json: Print everything as JSON.
    """
    place, again = _place(config, store)
    if list_ or not targets:
        _show_list(place, json)
        return
    with joined(place.root, f"takedown-{secrets.token_hex(4)}", showing.say):
        if undo:
            entries = listing.find_entries(listing.read_list(place), targets)
            listing.undo(place, targets)
        elif not reason:
            raise ConfigError('say why, with --reason "..."; it is kept with every drop')
        else:
            taken = listing.record(place, targets, reason, f"{getpass.getuser()}: loam takedown")
            entries = listing.find_entries(taken, targets)
        listing.mark_models(place)
    found = listing.affected(place, entries)
    if json:
        showing.say_json([{**vars(one), "undone": undo} for one in found])
        return
    for one in found:
        _tell(one, undo)
    if any(one.documents for one in found):
        verb = "come back" if undo else "leave"
        showing.say(f"they {verb} with the next run: {again}")


def erase(
    *targets: str,
    yes: Flag = False,
    config: ConfigPath = None,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Erase the text of what is taken down from every object of the store. It cannot be undone.

    Pages, texts, held-out texts and tokens go; ids, digests and counts stay, so that every account
    still adds up. Reports and the cache of prepared tokens lie outside the store: delete them by
    hand. No run may be at work meanwhile. Stopped at any moment, the same command goes on.

        loam erase https://example.org/page --yes

    Args:
        targets: Entries of the takedown list, as `loam takedown --list` shows them.
        yes: That it is meant.
        config: A pipeline's TOML file, for the place of its store.
        store: The store; else the config's, else LOAM_STORE, else .loam/store.
        json: Print what was done as JSON.
    """
    place, _ = _place(config, store)
    if not targets:
        raise ConfigError("name what to erase; `loam takedown --list` shows what is taken down")
    entries = listing.find_entries(listing.read_list(place), targets)
    if not yes:
        named = ", ".join(entry.target for entry in entries)
        raise ConfigError(f"the text of {named} would be gone for good: add --yes if it is meant")
    done = erase_texts(place, targets, showing.say)
    if json:
        showing.say_json(done)
        return
    documents = showing.counted(done.documents, "document")
    objects = showing.counted(done.objects, "object")
    showing.say(f"{documents} erased; {objects} ({format_size(done.bytes)}) replaced and deleted")


def _place(config: ConfigPath, store: StoreUrl) -> tuple[Store, str]:
    """The store, and the command that runs the pipeline anew."""
    if config is None:
        return store_in_use(store), "loam run CONFIG"
    _, pipeline = load(config, store)
    return store_at(pipeline.store.root), f"loam run {shlex.quote(str(config))}"


def _show_list(store: Store, json: bool) -> None:
    entries = listing.read_list(store).entries
    if json:
        showing.say_json(list(entries))
    elif entries:
        rows = [
            (e.kind, e.target, e.reason, showing.age(e.at), e.by, "erased" if e.erased_at else "")
            for e in entries
        ]
        columns = ("kind", "target", "reason", "since", "by", "text")
        showing.show_table(columns, rows, wide=("target", "reason"))
    else:
        showing.say("nothing is taken down")


def _tell(found: Affected, undone: bool) -> None:
    """What an entry of the list does, in words."""
    entry = found.entry
    what = "no longer taken down" if undone else f"taken down ({entry.reason})"
    showing.say(f"{entry.kind} {entry.target}: {what}")
    if not found.documents:
        showing.say("    the store holds no such document; should a source bring it, it is dropped")
    for ref, documents in found.live.items():
        if documents:
            showing.say(f"    {ref}: {showing.counted(len(documents), 'live document')}")
            for id_, url in documents[:SHOWN]:
                showing.say(f"        {id_}  {url or ''}")
            if len(documents) > SHOWN:
                showing.say(f"        and {len(documents) - SHOWN:,} more; --json lists all")
    for model in found.models:
        showing.say(
            f"    model {model.name} {model.version}: trained on "
            f"{showing.counted(model.trained_on, 'of them', 'of them')}, held out "
            f"{model.held_out}"
        )
