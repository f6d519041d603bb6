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
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from flows import (
    cli_card,
    cli_corpus,
    cli_ladder,
    cli_model,
    cli_scaling,
    cli_size,
    cli_store,
    cli_takedown,
    cli_trace,
    showing,
    showing_sizes,
)
from flows.cli_options import (
    GROW,
    KEEP,
    LOOK,
    ConfigPath,
    Flag,
    Json,
    StoreUrl,
    find_line,
    load,
    store_option,
)
from flows.config import PipelineConfig
from flows.planning import Plan, make_plan
from flows.reporting import report_on
from flows.running import RunOptions, run_name
from llm.errors import LoamError
from tasks import inspecting, registry
from tasks.register import model_name
from tasks.report import report_path
from tasks.store.store import Store

app = App(
    name="loam",
    help="Grows a language model from raw text, with every token accounted for.",
    help_epilogue="Begin with: loam run flows/configs/quickstart.toml",
    version=lambda: f"loam {version('loam')}",
    help_format="markdown",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
for command in (cli_corpus.status, cli_corpus.show, cli_model.models, cli_model.generate):
    app.command(command, group=LOOK)
app.command(cli_trace.trace, group=LOOK)
app.command(cli_trace.diff, group=LOOK)
app.command(cli_trace.replay, group=LOOK)
app.command(cli_card.card, group=LOOK)
app.command(cli_store.export, group=KEEP)
app.command(cli_store.repin, group=KEEP)
app.command(cli_takedown.takedown, group=KEEP)
app.command(cli_takedown.erase, group=KEEP)
app.command(cli_size.size, group=LOOK)
app.command(cli_scaling.scaling, group=LOOK)
app.command(cli_ladder.ladder, group=LOOK)
app.command(cli_ladder.attention, group=LOOK)
app.command(cli_store.store)
app.command(cli_store.deploy, group=GROW)

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


@app.command(group=GROW, sort_key=0)
def run(
    config: ConfigPath = None,
    /,
    *,
    sample: Sample = None,
    refresh: Flag = False,
    accept_losses: Flag = False,
    accept_alarms: Flag = False,
    store: StoreUrl = None,
    json: Json = False,
    verbose: Flag = False,
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
        accept_alarms: Publish the corpus though alarms.on = "stop" and something about it is
            unusual.
        store: Another place for the artifacts than the config's store.root.
        json: Print what was done as JSON, and everything else to standard error.
        verbose: Show Prefect's own log as well.
    """
    path, pipeline = load(config, store)
    options = RunOptions(
        refresh=refresh,
        sample=sample,
        accept_losses=accept_losses,
        accept_alarms=accept_alarms,
    )
    with redirect_stdout(sys.stderr) if json else nullcontext():
        planned = make_plan(pipeline, options)
        if planned.nothing_to_do:
            report = _report_of(pipeline, options, planned)
            showing.say(f"nothing to do: {planned.name} is up to date; its report: {report}")
        else:
            showing.say(_what_runs(planned))
            prepare_prefect(verbose)
            from flows.pipeline import pipeline as grow

            report = grow(pipeline, options)
            finish(pipeline, options, report, shlex.quote(str(path)))
    if json:
        ran = [stage.stage for stage in planned.to_run]
        showing.say_json(
            {"nothing_to_do": planned.nothing_to_do, "planned": ran, "report": str(report)}
        )


@app.command(group=GROW, sort_key=1)
def plan(
    config: ConfigPath = None,
    /,
    *,
    sample: Sample = None,
    refresh: Flag = False,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Show what a run would do, why, and about how long it would take; nothing is changed.

    For each stage: it is reused, it runs (and which field or input made it so), or it follows,
    which depends on what the stages before it give.

        loam plan my.toml

    Args:
        config: The pipeline's TOML file; `loam.toml` in this folder when not given.
        sample: As for `loam run`.
        refresh: As for `loam run`.
        store: Another place for the artifacts than the config's store.root.
        json: Print the plan as JSON.
    """
    _, pipeline = load(config, store)
    planned = make_plan(pipeline, RunOptions(refresh=refresh, sample=sample))
    if json:
        showing.say_json(planned.as_json() | {"model": showing_sizes.model_facts(pipeline)})
    else:
        showing.show_plan(planned)
        showing_sizes.show_model(pipeline)


def _report_of(config: PipelineConfig, options: RunOptions, planned: Plan) -> Path:
    """The pipeline's newest report; made now where a run was stopped before it was."""
    path = report_path(config.store.reports, planned.name)
    return path if path.exists() else report_on(config, options, planned.visits)


def _what_runs(planned: Plan) -> str:
    """One line: what is up to date, what runs first and why."""
    first = planned.to_run[0]
    done = sum(stage.action == "reuse" for stage in planned.stages)
    kept = f"{showing.counted(done, 'stage')} up to date; " if done else ""
    return f"{kept}beginning with {first.stage} ({'; '.join(first.why)})"


def prepare_prefect(verbose: bool) -> None:
    """What Prefect reads from the environment when it is imported, unless it is set already.

    Its console log is silenced: an error that Loam raises is told once, by Loam.
    """
    settings = {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(Path(".loam/prefect").absolute()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    }
    if not verbose and "PREFECT_LOGGING_LEVEL" not in os.environ:
        settings["PREFECT_LOGGING_LEVEL"] = "WARNING"
        settings["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # Prefect makes this folder but none above it, and its server does not start without.
    Path(os.environ["PREFECT_HOME"]).expanduser().mkdir(parents=True, exist_ok=True)


def finish(config: PipelineConfig, options: RunOptions, report: Path, path: str) -> None:
    """What a run ends with: a sample of the model, the funnel, the report, what to try next."""
    store = Store.at(config.store.root)
    name = run_name(config, options.sample)
    model = model_name(config.registry, name, options.sample)
    versions = registry.versions(store, model) if config.model is not None else []
    if versions:
        trained = store.manifest(versions[-1].manifests["train"])
        for prompt, text in inspecting.last_samples(store, trained)[:1]:
            showing.say(f"\n{model} {versions[-1].version} writes:\n{prompt}{text}\n")
        showing.say(f"gate: {registry.last_verdict(store, versions[-1])}\n")
    line = find_line(store, f"corpus/{name}")
    showing.show_funnel(inspecting.funnel(store, line))
    at = store_option(config.store.root)
    look = f"loam show corpus/{name}{at}"
    showing.show_set_aside(inspecting.quarantined(store, line, 1), look)
    showing.say(f"\nreport: {report}\n\ntry next:\n  {look}")
    if versions:
        newest = f"{model}@{versions[-1].version}"
        showing.say(f'  loam generate --model {newest} --prompt "The"{at}')
    showing.say(f"  loam plan {path}")
