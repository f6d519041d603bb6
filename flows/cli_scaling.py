"""The command that fits a scaling law: scaling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows import showing
from flows.cli_options import ConfigPath, Flag, Json, StoreUrl
from flows.cli_size import Count, CountOrNone, parse_amount
from flows.showing_sizes import amount
from flows.trials import trial_on_pipeline, trial_on_text
from llm.errors import ConfigError

if TYPE_CHECKING:
    from llm.scaling import Scaling, Trained

DEPTHS, TOKENS = "2,3,4", "125k,250k,500k"
"""Small enough for minutes on a core: 37,000 to 220,000 parameters at 16 of width a layer."""
WIDTH_PER_LAYER = 16


def scaling(
    config: ConfigPath = None,
    /,
    *,
    text: str | None = None,
    to: Path | None = None,
    depths: str = DEPTHS,
    tokens: str = TOKENS,
    width_per_layer: Count = WIDTH_PER_LAYER,
    next_depth: CountOrNone = None,
    next_tokens: str | None = None,
    check: Flag = False,
    threads: CountOrNone = None,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Train a few small models, fit a scaling law, plot it and predict the next size.

    Every depth is trained on every number of tokens, by the dial's recipe, on a pipeline's dataset
    or on a text file. Stopped at any moment, the same command goes on from there.

        loam scaling --text input.txt --check
        loam scaling my.toml --depths 4,6,8,10 --width-per-layer 64 --tokens 50m,100m,200m --check

    Args:
        config: The pipeline's TOML file, whose dataset must be there: `loam run` makes it.
        text: A text file (or .gz) to try it on, by characters, instead of a pipeline.
        to: The folder for runs, plot and figures; .loam/scaling/NAME when not given.
        depths: Depths of the dial, separated by commas.
        tokens: Numbers of tokens, separated by commas, each at most four times what there is.
        width_per_layer: Width of a model for each of its layers; the dial's own is 64.
        next_depth: The depth to predict; one step beyond the deepest when not given.
        next_tokens: On how many tokens; twice the most when not given.
        check: Train the next size too, and hold the prediction against it.
        threads: Threads of one operation; the config's when not given.
        store: Another place for the artifacts than the config's store.root.
        json: Print the figures as JSON.
    """
    from llm.scaling import Size
    from llm.scaling import scaling as fit_and_predict
    from tasks.scaling_page import render_scaling

    if text and config:
        raise ConfigError(f"{config} and --text {text} both say what to train on: give one of them")
    layers = [_depth(part) for part in depths.split(",")]
    lengths = [round(parse_amount("tokens", part)) for part in tokens.split(",")]
    longest = 2 * max(lengths)
    if next_tokens is not None:
        longest = round(parse_amount("next-tokens", next_tokens))
    name, folder, base = (
        trial_on_text("scaling", text, to)
        if text
        else trial_on_pipeline("scaling", config, to, store)
    )
    if threads is not None:
        base = base.model_copy(update={"train": base.train.model_copy(update={"threads": threads})})
    made = fit_and_predict(
        base,
        [Size(depth, length) for depth in layers for length in lengths],
        Size(next_depth or _one_further(layers), longest),
        width_per_layer=width_per_layer,
        check=check,
        say=_quiet if json else showing.say,
    )
    page = folder / "scaling.html"
    page.write_text(render_scaling(name, made), encoding="utf-8")
    if json:
        showing.say_json(made)
    else:
        show_scaling(made)
        showing.say(f"\nplot: {page}")


def _quiet(_: str) -> None:
    """JSON stands alone on standard output."""


def show_scaling(made: Scaling) -> None:
    """The runs beside what the law says of them, the law, and the prediction."""
    rows = [_row(run, made) for run in made.runs]
    if made.check:
        rows.append(_row(made.check, made))
    columns = (">depth", ">width", ">parameters", ">tokens", ">loss", ">law", ">off")
    showing.show_table(columns, rows)
    law, next_run = made.law, made.prediction
    showing.say(
        f"\nloss = {law.E:.3g} + {law.A:.3g} / N^{law.alpha:.3f} + {law.B:.3g} / D^{law.beta:.3f}"
    )
    # Too few runs to leave one out give no range.
    reach = f" ({next_run.low:.4f} to {next_run.high:.4f} with one run left out)"
    showing.say(
        f"predicted for {next_run.parameters:,} parameters on {amount(next_run.tokens)} tokens: "
        f"{next_run.loss:.4f}{reach if next_run.low < next_run.high else ''}"
    )
    if made.check:
        reached = made.check.point.loss
        showing.say(f"reached: {reached:.4f}, {reached / next_run.loss - 1:+.2%} off")


def _row(run: Trained, made: Scaling) -> tuple[object, ...]:
    point = run.point
    said = made.law.loss(point.parameters, point.tokens)
    return (
        run.depth, run.width, point.parameters, amount(point.tokens),
        f"{point.loss:.4f}", f"{said:.4f}", f"{point.loss / said - 1:+.2%}",
    )  # fmt: skip


def _depth(text: str) -> int:
    if not text.strip().isdigit() or not int(text):
        raise ConfigError(f"depths holds {text!r}: expected whole numbers, as in 2,3,4,5")
    return int(text)


def _one_further(depths: list[int]) -> int:
    """As far beyond the deepest as that is beyond the next."""
    deepest = sorted(set(depths))
    return deepest[-1] + (deepest[-1] - deepest[-2] if len(deepest) > 1 else 1)
