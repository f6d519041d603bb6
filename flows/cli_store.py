"""The commands for the store itself: verify, gc, export and repin; and deploy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast, get_args

from cyclopts import App, Parameter
from cyclopts.validators import Number

from flows import showing
from flows.cli_model import find_version
from flows.cli_options import KEEP, Flag, Json, StoreUrl, load, store_at, store_in_use
from llm.errors import ConfigError
from tasks.export import Format, export_corpus
from tasks.export_model import ModelFormat, export_version
from tasks.report_page import format_size
from tasks.status import store_status
from tasks.store.gc import KEEP_ENTRIES, collect, garbage
from tasks.store.pins import let_go
from tasks.store.reach import verify as verify_store

store = App(
    name="store", help="Verify the store's objects, and delete what nothing reaches.", group=KEEP
)

READERS = 8


@store.command
def verify(*, ref: str | None = None, store: StoreUrl = None, json: Json = False) -> int:
    """Read every object that a ref or a model reaches, and compare it with its name.

    Lists what is missing, changed, stray (there without anything accounting for it), or erased by
    `loam erase`, with what stands in its place. Exit code 1 when anything is missing or changed, or
    is still there though it was erased.

        loam store verify
        loam store verify --ref corpus/quickstart

    Args:
        ref: Only what this ref reaches, KIND/NAME; stray objects are not looked for then.
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print what was found as JSON.
    """
    place = store_in_use(store)
    kind, _, name = (ref or "").partition("/")
    if ref is not None and not name:
        raise ConfigError(f"--ref {ref}: expected KIND/NAME, such as corpus/{ref}")
    with ThreadPoolExecutor(READERS) as readers:
        found = verify_store(place, readers, (kind, name) if ref else None)
    if json:
        showing.say_json({"ok": found.ok, **asdict(found)})
    else:
        for what in ("missing", "changed", "stray", "erased"):
            for line in getattr(found, what):
                showing.say(f"{what}  {line}")
        for url in found.unfinished:
            showing.say(f"unfinished  {url} was erased and is still there: `loam erase` once more")
        wrong = len(found.missing) + len(found.changed) + len(found.unfinished)
        showing.say(
            f"{showing.counted(found.objects, 'object')} in "
            f"{showing.counted(found.manifests, 'manifest')}, {format_size(found.bytes)}: "
            + ("all as their names say" if found.ok else f"{wrong} wrong")
        )
    return 0 if found.ok else 1


@store.command
def gc(
    *,
    dry_run: Flag = False,
    keep: Annotated[int, Parameter(validator=Number(gte=1), show_default=True)] = KEEP_ENTRIES,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Delete what neither the last entries of a ref nor a registered model reach.

    Pins, trainings on data that is kept, and the pages of a crawl that was stopped stay. Refused
    while a run is at work; a run that begins meanwhile waits. Stopped at any moment, the same
    command goes on.

        loam store gc --dry-run
        loam store gc --keep 2

    Args:
        dry_run: Only list what would go.
        keep: Entries of each ref's history whose artifacts stay.
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print the list as JSON.
    """
    place = store_in_use(store)
    found = garbage(place, keep) if dry_run else collect(place, keep, showing.say)
    if json:
        showing.say_json(found)
        return
    groups = {
        "receipt": found.receipts,
        "manifest": found.manifests,
        "object": found.objects,
        "run": found.runs,
    }
    for what, urls in groups.items() if dry_run else ():
        for url in urls:
            showing.say(f"{what}  {url}")
    counts = ", ".join(showing.counted(len(urls), what) for what, urls in groups.items())
    did = "nothing reaches" if dry_run else "deleted"
    showing.say(f"{did} {counts}: {format_size(found.bytes)} of objects")


def export(
    ref: str,
    /,
    *,
    to: str,
    format: Annotated[Format | ModelFormat | None, Parameter(show_default=False)] = None,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Write the live documents of a corpus, or a model, as files that other programs open.

    A corpus becomes one file per shard, with the split that each document is in; a model the folder
    that transformers, vLLM and SGLang load, or the one file that llama.cpp does.

        loam export corpus/quickstart --to exported
        loam export quickstart --to s3://bucket/corpus --format jsonl
        loam export model/quickstart --to exported-model
        loam export model/quickstart@2 --to quickstart.gguf --format gguf-q8_0

    Args:
        ref: The corpus, such as corpus/main or main; or model/NAME, model/NAME@ALIAS or
            model/NAME@VERSION, where NAME alone means its champion.
        to: A folder or URL, which must not hold an export yet; for GGUF the file.
        format: Of a corpus parquet, unless given, or jsonl. Of a model huggingface, unless given;
            gguf in 32 bits or gguf-q8_0 in 8, both with the package of the extra loam[gguf].
        store: The store; else LOAM_STORE, else .loam/store.
        json: Print what was written as JSON.
    """
    kind, _, rest = ref.partition("/")
    if rest and kind not in ("corpus", "model"):
        raise ConfigError(f"a corpus or a model is exported, not {ref}: corpus/NAME or model/NAME")
    place, of_model = store_at(store), bool(rest) and kind == "model"
    formats = get_args(ModelFormat if of_model else Format)
    if format not in (None, *formats):
        raise ConfigError(f"{ref} is exported as {' or '.join(formats)}, not as {format}")
    if of_model:
        version = find_version(place, rest)
        written = export_version(place, version, to, cast(ModelFormat, format or "huggingface"))
        said = f"{version.name} {version.version}"
    else:
        written = export_corpus(place, rest or ref, to, cast(Format, format or "parquet"))
        said = showing.counted(written["rows"], "document")
    if json:
        showing.say_json({"to": to, **written})
    else:
        showing.say(f"{said} in {showing.counted(written['files'], 'file')} at {to}")


# What lets go of a pin means to the next run, by the beginning of the pin's name.
_CONSEQUENCES = {
    "tokenizer": "learns a new tokenizer from its corpus, and tokenises and trains anew",
    "heldout": (
        "draws a new held-out set; models measured on the old one do not compare with those on "
        "the new one, and the champion stays until one is promoted by hand"
    ),
    "benchmark-": "reads the benchmark's file again and decontaminates against what it holds then",
    "language-model": "reads the language model's file again and annotates every document with it",
    "compared-tokenizer": "reads the compared tokenizer's file again and counts its tokens",
    "quality-model": "reads the quality model's file again and annotates every document with it",
    "topic-model": "reads the topic model's file again and annotates every document with it",
    "quality_cut": "finds the score to cut at from the documents there are then",
    "quality": "trains a new quality classifier, and annotates every document with it",
}


def repin(pin: str, config: Path, /, *, store: StoreUrl = None) -> None:
    """Let go of something a pipeline learnt and holds, so that the next run learns it anew.

    The pins: tokenizer, compared-tokenizer, heldout, benchmark-NAME, language-model,
    quality-model, topic-model, quality, quality_cut.

        loam repin tokenizer my.toml

    Args:
        pin: The pin's name.
        config: The pipeline's TOML file.
        store: Another place of the artifacts than the config's store.root.
    """
    _, pipeline = load(config, store)
    place = store_at(pipeline.store.root)
    if not let_go(place, pipeline.name, pin):
        pins = [(p.name.partition("/"), p.sha256) for p in store_status(place).pins]
        held = [name for (pipe, _, name), sha256 in pins if pipe == pipeline.name and sha256]
        known = ", ".join(held) or "none"
        raise ConfigError(f"{pipeline.name} holds no pin '{pin}'; the pins it holds: {known}")
    does = next((does for name, does in _CONSEQUENCES.items() if pin.startswith(name)), "makes it")
    showing.say(f"let go of {pin}; the next run {does}")


def deploy(
    config: Path, /, *, cron: str | None = None, store: StoreUrl = None, json: Json = False
) -> None:
    """Register the pipeline's flows with a Prefect server, each with a schedule.

    Needs a server, such as `make up` starts. Doing it twice updates what is there.

        loam deploy my.toml --cron "0 3 * * *"

    Args:
        config: The pipeline's TOML file.
        cron: When the whole pipeline runs; its other flows keep their own schedules.
        store: Another place for the artifacts than the config's store.root.
        json: Print the names as JSON.
    """
    path, pipeline = load(config, store)
    from flows.deploying import deploy as register

    names = register(path, pipeline, cron)
    if json:
        showing.say_json(names)
    else:
        for name in names:
            showing.say(f"deployed {name}")
