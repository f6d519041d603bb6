"""The commands for models: generate and models."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import showing
from flows.cli_options import Json, StoreUrl, store_at
from llm.errors import DataError
from tasks import registry
from tasks.registry import ModelVersion
from tasks.store.store import Store

AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]
NotNegative = Annotated[int, Parameter(validator=Number(gte=0))]


def generate(
    *,
    model: str | None = None,
    prompt: str = "",
    max_new_tokens: AtLeastOne = 200,
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 0.8,
    top_k: NotNegative = 0,
    top_p: Annotated[float, Parameter(validator=Number(gt=0, lte=1))] = 0.95,
    seed: NotNegative = 0,
    n: AtLeastOne = 1,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Write text with a registered model.

    The same model, prompt, settings and seed give the same text.

        loam generate --model quickstart --prompt "class "
        loam generate --model quickstart@3 --temperature 0 --max-new-tokens 50

    Args:
        model: NAME, NAME@ALIAS or NAME@VERSION; NAME alone means its champion. May be left out
            where the store has only one.
        prompt: What the text begins with; without one a new document begins.
        max_new_tokens: Tokens to add at most.
        temperature: 0 takes the likeliest token, 1 draws from the model's own probabilities.
        top_k: Draw from the k likeliest tokens; 0 from all.
        top_p: Draw from the likeliest tokens that together have this probability.
        seed: The same seed gives the same text; the n-th text has seed + n.
        n: How many texts.
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print the texts as JSON.
    """
    place = store_at(store)
    version = _find_version(place, model)
    from llm.generate import generate as continue_texts
    from llm.import_huggingface import import_huggingface
    from llm.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, ref in version.files.items():
            (Path(folder) / name).write_bytes(place.read_bytes(ref))
        loaded = import_huggingface(Path(folder))
        tokenizer = Tokenizer.from_bytes((Path(folder) / "tokenizer.json").read_bytes())
    start = [tokenizer.eot_id, *map(int, tokenizer.encode_batch([prompt])[0])]
    made = continue_texts(
        loaded,
        [start] * n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=[seed + index for index in range(n)],
        stop_tokens=[tokenizer.eot_id],
    )
    texts = [prompt + tokenizer.decode(tokens) for tokens in made]
    if json:
        about = {"model": version.name, "version": version.version, "prompt": prompt}
        showing.say_json({**about, "texts": texts})
        return
    for index, text in enumerate(texts):
        if index:
            showing.say("\n---\n")
        showing.say(text)


def _find_version(store: Store, model: str | None) -> ModelVersion:
    known = registry.names(store)
    if model is None and len(known) == 1:
        model = known[0]
    there = f"there are {', '.join(known)}" if known else "there is none; `loam run` trains one"
    if model is None:
        raise DataError(f"say which model, with --model: {there}")
    name, _, which = model.partition("@")
    if name not in known:
        raise DataError(f"no model {name} in {store.root}: {there}")
    return registry.find_version(store, name, which or "champion")


def models(
    name: str | None = None,
    /,
    *,
    promote: int | None = None,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """The registered models: versions, aliases, how good they are and what the gate said.

    A new version becomes the champion by itself where it is no worse than the one before.

        loam models
        loam models quickstart --promote 2

    Args:
        name: Only this model.
        promote: Make this version the champion, whatever the gate said.
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print everything as JSON.
    """
    place = store_at(store)
    known = registry.names(place)
    if name is not None and name not in known:
        there = f"there are {', '.join(known)}" if known else "there is none; `loam run` trains one"
        raise DataError(f"no model {name} in {place.root}: {there}")
    if promote is not None:
        _promote(place, name, promote)
    listed = [name] if name else known
    versions = [version for one in listed for version in registry.versions(place, one)]
    if json:
        showing.say_json([_described(place, version) for version in versions])
    elif versions:
        showing.show_versions(place, versions)
    else:
        showing.say(f"no model in {place.root}; `loam run` trains one")


def _promote(store: Store, name: str | None, number: int) -> None:
    if name is None:
        raise DataError("say which model to promote a version of: loam models NAME --promote N")
    version = registry.find_version(store, name, str(number))
    registry.promote(store, version, "by hand: loam models --promote")


def _described(store: Store, version: ModelVersion) -> dict[str, object]:
    named = registry.aliases(store, version.name)
    return {
        **asdict(version),
        "aliases": sorted(alias for alias, n in named.items() if n == version.version),
        "verdict": registry.last_verdict(store, version),
        "taken_down": registry.taken_down(store, version),
    }
