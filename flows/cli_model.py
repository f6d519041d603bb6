"""The commands for models: generate and models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import showing, showing_text
from flows.cli_options import Flag, Json, StoreUrl, store_at
from llm.errors import DataError
from tasks import registry
from tasks.registry import ModelVersion, load_version
from tasks.store.store import Store

Texts = Annotated[tuple[str, ...], Parameter(show_default=False)]
AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]
NotNegative = Annotated[int, Parameter(validator=Number(gte=0))]


def generate(
    *,
    model: str | None = None,
    prompt: Texts = ("",),
    max_new_tokens: AtLeastOne = 200,
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 0.8,
    top_k: NotNegative = 0,
    top_p: Annotated[float, Parameter(validator=Number(gt=0, lte=1))] = 0.95,
    min_p: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0,
    repetition_penalty: Annotated[float, Parameter(validator=Number(gt=0))] = 1.0,
    stop: Texts = (),
    seed: NotNegative = 0,
    n: AtLeastOne = 1,
    int8: Flag = False,
    logprobs: Annotated[int | None, Parameter(validator=Number(gte=0), show_default=False)] = None,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Write text with a registered model, shown as it comes.

    The same model, prompt, settings and seed give the same text.

        loam generate --model quickstart --prompt "class"
        loam generate --model quickstart@3 --prompt "Return" --prompt "The list" --temperature 0
        loam generate --prompt "def" --min-p 0.05 --repetition-penalty 1.1 --stop "\\n\\n" --int8

    Args:
        model: NAME, NAME@ALIAS or NAME@VERSION; NAME alone means its champion. May be left out
            where the store has only one.
        prompt: What the text begins with; without one a new document begins. Best without a space
            at its end, as a word's token holds the one before it. May be given again.
        max_new_tokens: Tokens to add at most.
        temperature: 0 takes the likeliest token, 1 draws from the model's own probabilities.
        top_k: Draw from the k likeliest tokens; 0 from all.
        top_p: Draw from the fewest likeliest tokens that together have this probability.
        min_p: Draw from tokens with at least this share of the likeliest one's probability.
        repetition_penalty: Above 1, tokens that the text has already become less likely.
        stop: End the text before this string, in which \\n is a new line; may be given again.
        seed: The same seed gives the same text; the n-th text has seed + n.
        n: How many texts of each prompt.
        int8: Hold the weights in 8 bits: less memory, more tokens a second, a slightly other model.
        logprobs: Instead of the text, list its tokens with their log-probabilities in the model,
            and this many likeliest tokens in the place of each.
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print the texts as JSON.
    """
    place = store_at(store)
    version = find_version(place, model)
    from llm.generate import generate as generate_all
    from llm.generate import prompt_tokens, stream
    from llm.quantize import int8_model
    from llm.sampling import SamplingConfig

    loaded, tokenizer = load_version(place, version)
    settings = SamplingConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(one.replace("\\n", "\n") for one in stop),
        logprobs=logprobs,
    )
    begins = [text for text in prompt for _ in range(n)]
    each = [settings.model_copy(update={"seed": seed + index}) for index in range(n)] * len(prompt)
    starts = [prompt_tokens(tokenizer, text) for text in begins]
    writer = int8_model(loaded) if int8 else loaded
    if json:
        found = showing_text.described(generate_all(writer, starts, each, tokenizer), tokenizer)
        texts = [text + more for text, more in zip(begins, found["texts"], strict=True)]
        about = {"model": version.name, "version": version.version, "prompts": begins}
        showing.say_json(about | found | {"texts": texts})
        return
    pieces = stream(writer, starts, each, tokenizer)
    if logprobs is None:
        showing_text.show_pieces(pieces, begins, lambda piece: piece.text)
    else:
        shown = showing_text.shown_logprobs(tokenizer)
        showing_text.show_pieces(pieces, [""] * len(begins), shown)


def find_version(store: Store, model: str | None) -> ModelVersion:
    """What NAME, NAME@ALIAS or NAME@VERSION names; the only model there is, by None.

    Raises DataError naming the models there are.
    """
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
