"""What the commands of `loam` have in common: the config, the place of the store, JSON."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from flows.config import PipelineConfig, StoreConfig, read_config
from llm.errors import ConfigError, DataError
from tasks.inspecting import lineage
from tasks.store.records import Manifest
from tasks.store.store import Store

DEFAULT_CONFIG = Path("loam.toml")
ANOTHER = "--store, or LOAM_STORE in the environment, names another store"

# Kinds of ref that name no manifest.
_NO_LINE = frozenset({"pin", "crawl", "takedown"})

GROW = Group("Grow", sort_key=0)
LOOK = Group("Look", sort_key=1)
KEEP = Group("Keep", sort_key=2)

ConfigPath = Annotated[Path | None, Parameter(show_default=False)]
StoreUrl = Annotated[str | None, Parameter(show_default=False)]
Json = Annotated[bool, Parameter(show_default=False)]
Flag = Annotated[bool, Parameter(show_default=False)]


def load(path: Path | None, store: str | None = None) -> tuple[Path, PipelineConfig]:
    """The config at `path`, or `loam.toml` here, with the store at `store` where that is given."""
    if path is None and not DEFAULT_CONFIG.exists():
        raise ConfigError(
            "no config was given and there is no loam.toml in this folder; name one: "
            "loam run flows/configs/quickstart.toml"
        )
    path = path or DEFAULT_CONFIG
    config = read_config(path)
    if store is not None:
        place = config.store.model_copy(update={"root": store})
        config = config.model_copy(update={"store": place})
    return path, config


def store_at(url: str | None) -> Store:
    """The store at `url`, else at LOAM_STORE, else at .loam/store."""
    return Store.at(url or os.environ.get("LOAM_STORE") or StoreConfig().root)


def store_in_use(url: str | None) -> Store:
    """The store at `url`, as `store_at`. Raises DataError when nothing names anything in it."""
    store = store_at(url)
    if not store.list_refs():
        raise DataError(f"there is nothing in {store.root} yet; {ANOTHER}")
    return store


def store_option(url: str | None) -> str:
    """What to add to a command so that it finds that store; nothing where it does by itself."""
    return "" if store_at(url) == store_at(None) else f" --store {shlex.quote(str(url))}"


def find_line(store: Store, name: str) -> list[Manifest]:
    """The manifests that led to what a ref names: `kind/name`, or the corpus of that name.

    Raises DataError naming the refs there are.
    """
    kind, _, rest = name.partition("/")
    ref = store.find_ref(kind, rest) if rest else store.find_ref("corpus", name)
    if ref is not None and "fingerprint" in ref.value:
        if kind == "corpus" or not rest:
            return [store.manifest(pin) for pin in ref.line]
        return lineage(store, store.manifest(ref.manifest))
    known = [f"{kind}/{one}" for kind, one in store.list_refs() if kind not in _NO_LINE]
    there = f"there are {', '.join(known)}" if known else f"there is none yet; {ANOTHER}"
    raise DataError(f"no ref {name} in {store.root}: {there}")
