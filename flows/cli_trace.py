"""The commands that account for documents: trace, diff and replay."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from flows import showing, stories
from flows.cli_corpus import Count
from flows.cli_options import ConfigPath, Json, StoreUrl, load, store_in_use
from llm.errors import ConfigError
from tasks import locating
from tasks.diff import diff as compare
from tasks.refs import Named, find_named
from tasks.replay import replay as again
from tasks.store.store import Store
from tasks.trace import trace as tell

Optional = Annotated[str | None, Parameter(show_default=False)]


def trace(
    text: str | None = None,
    /,
    *,
    id_: Annotated[str | None, Parameter(name="--id", show_default=False)] = None,
    token_shard: Optional = None,
    offset: Annotated[int | None, Parameter(show_default=False)] = None,
    ref: Optional = None,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Tell where a document came from, what was decided about it, and which models it trained.

    Found by a piece of its text (live documents first, then dropped ones), by its id, or by a token
    of a dataset.

        loam trace "some words of a page"
        loam trace --id 0123456789abcdef
        loam trace --token-shard 5d10718cddb6 --offset 12345

    Args:
        text: Words that the document holds, in this order.
        id: The document's id, or as much of its beginning as no other has.
        token_shard: The sha256 of a token shard, its beginning, or its URL.
        offset: The token: how many tokens of the shard come before it, row after row.
        ref: Look only in this corpus or dataset, such as corpus/main or corpus/main@1.
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print everything as JSON.
    """
    asked = [value is not None for value in (text, id_, token_shard)]
    if sum(asked) != 1 or (token_shard is None) != (offset is None):
        raise ConfigError(
            "give one of: a text, --id ID, or --token-shard SHARD with --offset NUMBER"
        )
    place, token = store_in_use(store), None
    if token_shard is not None and offset is not None:
        found, token = locating.find_token(place, token_shard, offset, ref)
    elif id_ is not None:
        found = locating.find_id(place, locating.corpora(place, ref), id_)
    else:
        found = locating.find_text(place, locating.corpora(place, ref), text or "")
    story = tell(place, found, token)
    showing.say_json(story) if json else stories.show_trace(story)


def diff(
    before: str,
    after: str | None = None,
    /,
    *,
    n: Count = 2,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Tell which documents and tokens one corpus has that another has not, by source and reason.

    The numbers balance, or it says so. With one name, its newest entry is held against the one
    before.

        loam diff corpus/main
        loam diff corpus/main@3 corpus/main
        loam diff dataset/main 0123456789ab

    Args:
        before: A corpus or dataset: corpus/main, corpus/main@1 for the entry before the newest, or
            the beginning of a manifest's fingerprint.
        after: The one to compare it with.
        n: Examples to show of each reason.
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print everything as JSON.
    """
    place = store_in_use(store)
    names = (before, after) if after is not None else (f"{before}@1", before)
    old, new = (find_named(place, name) for name in names)
    found = compare(place, old, new, n)
    showing.say_json(found) if json else stories.show_diff(found)


def replay(
    stage: str,
    config: ConfigPath = None,
    /,
    *,
    set_: Annotated[list[str], Parameter(name="--set", negative=())] = [],  # noqa: B006
    ref: Optional = None,
    n: Count = 3,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Tell what a stage would keep and drop with other settings, from what is stored: nothing is
    measured again and nothing is written.

        loam replay select --set min_words=30
        loam replay select --set 'languages=["en"]' --set max_bullet_line_share=null
        loam replay dedup --set threshold=0.9 --ref corpus/main

    Args:
        stage: select, dedup or decontaminate.
        config: A pipeline's TOML file, to start from its settings and not from those the corpus was
            made with; it names the store and the corpus too.
        set: A setting and its value, as in the config; null turns a threshold off.
        ref: The corpus; by default the config's, or the only one there is.
        n: Examples to show of what would be dropped and of what would be kept.
        store: The store; else the config's, else LOAM_STORE, else .loam/store.
        json: Print everything as JSON.
    """
    base = None
    if config is not None:
        _, pipeline = load(config, store)
        store, ref = pipeline.store.root, ref or f"corpus/{pipeline.name}"
        base = getattr(pipeline, stage, None)
    place = store_in_use(store)
    found = again(place, _one_corpus(place, ref), stage, set_, base, n)
    showing.say_json(found) if json else stories.show_replay(found)


def _one_corpus(store: Store, ref: str | None) -> Named:
    """The corpus of that name, or the only one. Raises ConfigError where there are several."""
    there = locating.corpora(store, ref)
    if len(there) > 1:
        raise ConfigError(f"name a corpus with --ref: {', '.join(one.name for one in there)}")
    return there[0]
