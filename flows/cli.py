"""`loam`: the command line.

Exit codes: 0 done (or nothing to do), 1 `store verify` found a fault or Loam has one, 2 a config,
an option or data cannot be used, 130 interrupted. Nothing here imports Prefect or torch before a
command needs them.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from flows import cli_corpus, cli_model, cli_store, showing
from flows.cli_options import ConfigPath, Json, StoreUrl, load
from flows.planning import Plan, make_plan
from flows.running import RunOptions
from llm.errors import LoamError

app = App(
    name="loam",
    help="Grows a language model from raw text, with every token accounted for.",
    help_epilogue="Begin with: loam run flows/configs/quickstart.toml",
    version=lambda: f"loam {version('loam')}",
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
app.command(cli_corpus.status)
app.command(cli_corpus.show)
app.command(cli_model.generate)
app.command(cli_model.models)
app.command(cli_store.store)
app.command(cli_store.export)
app.command(cli_store.repin)
app.command(cli_store.deploy)

Sample = Annotated[int | None, Parameter(validator=Number(gte=1))]


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `loam`. Leaves with an exit code."""
    try:
        code = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        code = 2
    except LoamError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; run again to go on from here", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # Whoever reads has seen enough; what is buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


@app.command(sort_key=0)
def run(
    config: ConfigPath = None,
    /,
    *,
    sample: Sample = None,
    refresh: bool = False,
    accept_losses: bool = False,
    store: StoreUrl = None,
    json: Json = False,
    verbose: bool = False,
) -> None:
    """Grow what the config describes: sources to a corpus, to a trained and registered model.

    Plans first: what is up to date is reused, and where everything is, nothing starts. Stopped at
    any moment, the same command goes on from there.

        loam run flows/configs/quickstart.toml
        loam run my.toml --sample 200
        loam run my.toml --refresh --store s3://bucket/prefix

    Args:
        config: The pipeline's TOML file; `loam.toml` in this folder when not given.
        sample: Take at most so many documents of each source, under names of their own, so that
            nothing real is moved.
        refresh: Look at every source again, however lately it was read.
        accept_losses: Go on where a source has lost more documents than its max_loss allows.
        store: Another place for the artifacts than the config's store.root.
        json: Print what was done as JSON, and everything else to standard error.
        verbose: Show Prefect's own log as well.
    """
    path, pipeline = load(config, store)
    options = RunOptions(refresh=refresh, sample=sample, accept_losses=accept_losses)
    with ExitStack() as stack:
        if json:
            stack.enter_context(redirect_stdout(sys.stderr))
        plan = make_plan(pipeline, options)
        if not plan.nothing_to_do:
            showing.say(_what_runs(plan))
            _prepare_prefect(verbose)
            from flows.pipeline import pipeline as flow

            report = flow(pipeline, options)
    ...
