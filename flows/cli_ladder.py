"""The commands to understand models by: ladder and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import showing
from flows.cli_model import find_version
from flows.cli_options import ConfigPath, Json, StoreUrl, store_at
from flows.cli_size import Count, CountOrNone
from flows.showing_sizes import amount
from flows.trials import CONTEXT_LENGTH, trial_on_pipeline, trial_on_text
from llm import files
from llm.config_model import ModelConfig
from llm.errors import ConfigError
from tasks.registry import load_version

if TYPE_CHECKING:
    from llm.ladder.climb import Ladder

TOP = ModelConfig(
    context_length=CONTEXT_LENGTH, n_layers=4, d_model=128, n_heads=4, d_ff=340, qk_norm=True
)
"""The highest rung over a text file: the shape of nanoGPT's documented CPU task."""
SAMPLE_TOKENS = 100


def ladder(
    config: ConfigPath = None,
    /,
    *,
    text: str | None = None,
    steps: CountOrNone = None,
    seed: Annotated[int | None, Parameter(validator=Number(gte=0, lt=2**32))] = None,
    sample_tokens: Count = SAMPLE_TOKENS,
    threads: CountOrNone = None,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Climb from a bigram to a transformer on one corpus, and see what each step buys.

    A count bigram, a neural bigram, an MLP, a GRU and a transformer are trained on the same
    batches, on a pipeline's dataset or on a text file, and held against its whole validation split.

        loam ladder --text input.txt
        loam ladder my.toml --steps 500

    Args:
        config: The pipeline's TOML file, whose dataset must be there: `loam run` makes it. Its
            model is the highest rung.
        text: A text file (or .gz) to climb on, by characters, instead of a pipeline.
        steps: Updates of each rung; the config's, or 2,000, when not given.
        seed: Decides weights, batches and samples; the config's when not given.
        sample_tokens: Tokens of each sample.
        threads: Threads of one operation; the config's when not given.
        store: Another place for the artifacts than the config's store.root.
        json: Print the figures as JSON.
    """
    if config is not None and text is not None:
        raise ConfigError(f"both {config} and --text {text} are given: climb on one of them")
    from llm.ladder.climb import climb

    if text is not None:
        _, _, spec = trial_on_text("ladder", text, None)
        spec = spec.model_copy(update={"model": TOP})
    else:
        _, _, spec = trial_on_pipeline("ladder", config, None, store)
    asked: dict[str, Any] = {"steps": steps, "seed": seed, "threads": threads}
    given = {name: value for name, value in asked.items() if value is not None}
    spec = spec.model_copy(update={"train": spec.train.model_copy(update=given)})
    made = climb(spec, sample_tokens, (lambda _: None) if json else showing.say)
    if json:
        showing.say_json(made)
    else:
        show_ladder(made)


def show_ladder(made: Ladder) -> None:
    """A row for each rung, and below what each writes."""
    ground = made.unigram
    rows: list[tuple[object, ...]] = [
        ("frequency alone", None, None, None, f"{ground.nats_per_token:.3f}",
         f"{ground.bits_per_byte:.3f}", None, None)
    ]  # fmt: skip
    for rung in made.rungs:
        found = rung.validation
        rows.append(
            (rung.name, rung.parameters, f"{rung.seconds:.1f}", amount(rung.tokens),
             f"{found.nats_per_token:.3f}", f"{found.bits_per_byte:.3f}", f"{rung.bought:+.3f}",
             rung.adds)
        )  # fmt: skip
    showing.say()
    columns = ("rung", ">parameters", ">seconds", ">tokens", ">nats/token", ">bits/byte", ">buys",
               "it")  # fmt: skip
    showing.show_table(columns, rows)
    for rung in made.rungs:
        showing.say(f"\n{rung.name} writes:\n{rung.sample.strip()}")


def attention(
    *,
    text: str,
    model: str | None = None,
    to: str | None = None,
    store: StoreUrl = None,
) -> None:
    """Draw what a registered model looks at in a text: a map of tokens by tokens for each head.

    The page shows all layers and heads at once, and the map that is pointed at with its tokens and
    weights. It needs nothing else, so that it can be kept or sent.

        loam attention --text "class Worm(Animal):"
        loam attention --text "To be, or not to be" --model shakespeare@2 --to attention.png

    Args:
        text: What the model reads, as the beginning of a document.
        model: NAME, NAME@ALIAS or NAME@VERSION; NAME alone means its champion. May be left out
            where the store has only one.
        to: The page to write, a file or URL; .loam/attention/NAME.html when not given. A name that
            ends in .png gives a picture of all maps, without the tokens.
        store: The store; else LOAM_STORE, else .loam/store.
    """
    place = store_at(store)
    version = find_version(place, model)
    to = to or f".loam/attention/{version.name}.html"
    if not to.endswith((".html", ".png")):
        raise ConfigError(f"--to {to}: give a name that ends in .html, or in .png for a picture")
    from llm.attention_maps import as_html, as_png, attention_maps

    maps = attention_maps(*load_version(place, version), text)
    title = f"What {version.name} {version.version} looks at"
    files.put(to, as_png(maps) if to.endswith(".png") else as_html(maps, title).encode())
    n_layers, n_heads, n_tokens, _ = maps.weights_LHTT.shape
    layers, heads = showing.counted(n_layers, "layer"), showing.counted(n_heads, "head")
    showing.say(f"{layers} of {heads}, {showing.counted(n_tokens, 'token')}: {to}")
