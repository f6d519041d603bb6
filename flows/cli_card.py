"""The command that shows a dataset card."""

from __future__ import annotations

from rich.markdown import Markdown

from flows import showing
from flows.cli_options import Json, StoreUrl, find_line, store_at
from llm.errors import ConfigError, DataError
from tasks.card import JSON, MARKDOWN, read_card


def card(ref: str, /, *, store: StoreUrl = None, json: Json = False) -> None:
    """What a corpus is: sources, licences, sizes, filters, drops, personal data, contamination.

    With known gaps and a checklist, all answered from the data. Into a pipe goes plain Markdown.

        loam card corpus/quickstart
        loam card quickstart > README.md
        loam card quickstart --json

    Args:
        ref: The corpus, such as corpus/main or main.
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print the card as JSON.
    """
    kind, _, rest = ref.partition("/")
    if rest and kind != "corpus":
        raise ConfigError(f"only a corpus has a card, not {ref}; name one: corpus/{rest}")
    place = store_at(store)
    files = read_card(place, find_line(place, ref))
    if files is None:
        raise DataError(f"{ref} was published without a card; `loam run` makes one")
    out = showing.console()
    if json or not out.is_terminal:
        print(files[JSON if json else MARKDOWN].decode(), end="")
    else:
        out.print(Markdown(files[MARKDOWN].decode()))
