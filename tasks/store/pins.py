"""Pins: what was learnt from the corpus or brought from outside, and then held by its digest.

A pin stays what it is while sources change; `loam repin` lets go of it, and the next run learns
it anew. A ref of kind `pin` names it, so that its history is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from llm import files
from llm.errors import ConfigError
from tasks.store.fingerprint import canonical, differences
from tasks.store.records import ObjectRef
from tasks.store.run import Run, WouldRun
from tasks.store.store import RefMoved, Store


@dataclass(frozen=True)
class Pin:
    """An object held by name, the settings it was made with, and what was found in making it."""

    name: str
    object: ObjectRef
    config: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


def find_pin(store: Store, pipeline: str, name: str) -> Pin | None:
    ref = store.find_ref("pin", f"{pipeline}/{name}")
    if ref is None or ref.value["object"] is None:
        return None
    value = ref.value
    return Pin(name, ObjectRef(**value["object"]), value["config"], value.get("facts", {}))


def hold(
    run: Run,
    name: str,
    config: Mapping[str, Any],
    make: Callable[[], ObjectRef | tuple[ObjectRef, Mapping[str, Any]]],
) -> Pin:
    """The pin of that name; made and held the first time. A racing run's pin wins.

    `make` returns the object, and with it facts worth keeping, such as how good a model is.
    Raises ConfigError when it was made with other settings than `config`, and WouldRun when it is
    to be made and the run is only planning.
    """
    found = find_pin(run.store, run.name, name)
    if found is None:
        if run.planning:
            raise WouldRun(name, ["it is not pinned yet"])
        seen = run.store.find_ref("pin", f"{run.name}/{name}")
        made = make()
        ref, facts = made if isinstance(made, tuple) else (made, {})
        value = {"object": asdict(ref), "config": canonical(config), "facts": canonical(facts)}
        with suppress(RefMoved):
            run.store.move_ref("pin", f"{run.name}/{name}", value, seen)
        found = find_pin(run.store, run.name, name)
    if found is None:
        raise ConfigError(f"pin {name} was let go while this run set it; run again")
    check_pin(found, config)
    return found


def check_pin(pin: Pin, config: Mapping[str, Any]) -> None:
    """Raises ConfigError when the pin was made with other settings than `config`."""
    changed = differences(pin.config, canonical(config))
    if changed:
        raise ConfigError(
            f"'{pin.name}' is pinned, and was made with other settings ({'; '.join(changed)}): "
            f"set them back, or let go of it with `loam repin {pin.name}`"
        )


def let_go(store: Store, pipeline: str, name: str) -> bool:
    """Lets go of a pin, so that the next run makes it anew. False when there was none."""
    seen = store.find_ref("pin", f"{pipeline}/{name}")
    if seen is None or seen.value["object"] is None:
        return False
    store.move_ref("pin", f"{pipeline}/{name}", {"object": None, "config": {}}, seen)
    return True


def hold_file(
    run: Run,
    name: str,
    url: str,
    kind: str,
    sha256: str | None = None,
    check: Callable[[bytes], object] = len,
) -> Pin:
    """Pins a file from outside by its content; later runs do not look at the file again.

    `check` raises for a file that is not what it should be, before it is pinned. A file that was
    moved stays pinned, if its content is the same.
    Raises ConfigError when there is no such file, or its sha256 is not the one expected.
    """

    def make() -> ObjectRef:
        body = _read(name, url)
        found = files.sha256(body)
        if sha256 is not None and found != sha256:
            raise ConfigError(f"{name}: {url} has sha256 {found}, the config expects {sha256}")
        check(body)
        return run.store.put_bytes(body, kind, Path(url).suffix.lstrip(".") or "bin")

    held = find_pin(run.store, run.name, name)
    if held is None:
        return hold(run, name, {"url": url}, make)
    moved = sha256 is None and held.config["url"] != url
    expected = files.sha256(_read(name, url)) if moved else sha256
    if expected not in (None, held.object.sha256):
        raise ConfigError(
            f"'{name}' is pinned with sha256 {held.object.sha256}, but {url} should have "
            f"{expected}: set it back, or let go of the pin with `loam repin {name}`"
        )
    return held


def _read(name: str, url: str) -> bytes:
    try:
        with files.explained(url, "reading"), fsspec.open(url, "rb") as file:
            body: bytes = file.read()
            return body
    except FileNotFoundError:
        raise ConfigError(f"{name}: there is no file at {url}") from None
