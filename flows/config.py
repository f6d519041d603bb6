"""A pipeline's config: one TOML file, validated, with errors that name the key."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from flows.dial import DIAL_KEYS, add_the_dial, turn_the_dial
from llm.config import Config
from llm.config_model import ModelConfig
from llm.config_train import TrainConfig
from llm.errors import ConfigError
from llm.mixture import check_weights
from tasks.alarms import AlarmConfig
from tasks.annotate import AnnotateConfig
from tasks.benchmarks import DecontaminateConfig
from tasks.evaluate import EvaluateConfig
from tasks.page_text import ExtractConfig
from tasks.planting import CanaryConfig
from tasks.quality import QualityConfig
from tasks.register import RegisterConfig
from tasks.scrub import ScrubConfig
from tasks.select import SelectConfig
from tasks.signatures import DedupConfig
from tasks.sources import Source
from tasks.split import SplitConfig
from tasks.tokenise import TokeniseConfig


class StoreConfig(Config):
    """Where artifacts lie, and how they are cut and made."""

    root: str = ".loam/store"
    """The store: a folder, file:///... or s3://bucket/prefix."""

    executor: Literal["processes", "dask"] = "processes"
    """Where the work on shards runs: in processes of this machine, or on a Dask cluster."""

    workers: int = Field(2, ge=1)
    """Processes that work on shards at a time; on a Dask cluster elsewhere, what it has."""

    dask_address: str | None = None
    """The scheduler of a Dask cluster, such as tcp://scheduler:8786; without one, a local cluster
    of `workers` is started for the run."""

    shard_rows: int = Field(65536, ge=1)
    """Most documents in a shard."""

    shard_bytes: int = Field(128 << 20, ge=1)
    """About the most bytes of text in a shard."""

    cache_dir: str = ".loam/cache"
    """A local folder for prepared tokens; it can be deleted between runs."""

    reports: str = ".loam/reports"
    """A local folder for the HTML reports."""


class PipelineConfig(Config):
    """A pipeline: sources, the corpus grown from them, and the model trained on it."""

    name: str = Field("main", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """The pipeline's name: its refs are `corpus/<name>`, `snapshot/<name>/<source>`, ..."""

    store: StoreConfig = StoreConfig()
    """Where artifacts lie, and how they are made."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where the documents come from. Each has a `name` and a `kind`: `crawl` (with `seeds`),
    `import` (with `paths`) or `pydoc`."""

    extract: ExtractConfig = ExtractConfig()
    """Main text out of HTML, and the normalization of all text."""

    annotate: AnnotateConfig = AnnotateConfig()
    """Language, quality and topic signals."""

    quality: QualityConfig | None = None
    """Trains a quality classifier on two sets of documents: one for `annotate` to score with."""

    select: SelectConfig = SelectConfig()
    """Thresholds over the signals."""

    dedup: DedupConfig = DedupConfig()
    """Exact and near-duplicates."""

    scrub: ScrubConfig = ScrubConfig()
    """Personal data."""

    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """Benchmarks that must not be trained on."""

    split: SplitConfig = SplitConfig()
    """What is held out."""

    canaries: CanaryConfig | None = None
    """Plants made-up defects beside the corpus, and measures what the stages catch of them."""

    alarms: AlarmConfig = AlarmConfig()
    """What is unusual about a corpus, and whether a run stops for it."""

    tokenizer: TokeniseConfig = TokeniseConfig()
    """The tokenizer."""

    model: ModelConfig | None = None
    """The model's shape; without it the pipeline ends with the corpus. `depth = 8` in it fills what
    this section and `train` leave out (see `llm/depth.py`)."""

    train: TrainConfig = TrainConfig()
    """How the model is trained. With `model.depth`, `tokens` may stand for `steps`."""

    evaluate: EvaluateConfig = EvaluateConfig()
    """On what the model is measured."""

    registry: RegisterConfig = RegisterConfig()
    """What the model is called and when a version takes over."""

    @model_validator(mode="before")
    @classmethod
    def _depth_sets_the_rest(cls, data: Any) -> Any:
        return turn_the_dial(data) if isinstance(data, dict) else data

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        add_the_dial(schema, handler)
        return schema

    @model_validator(mode="after")
    def _one_quality_classifier(self) -> Self:
        if self.quality and self.annotate.quality_model:
            raise ValueError(
                "annotate.quality_model brings a quality classifier and the section quality trains "
                "one: keep one of the two"
            )
        return self

    @model_validator(mode="after")
    def _the_model_can_be_exported(self) -> Self:
        if self.model and self.model.family == "speedrun":
            raise ValueError(
                "model.family is 'speedrun', and a pipeline ends with an export: no other program "
                "has that family's parts. Take family 'llama' with qk_norm = true, which comes "
                "closest, or train this one by itself: python -m llm.train SPEC.json"
            )
        return self

    @model_validator(mode="after")
    def _sources_have_names_of_their_own(self) -> Self:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called {name!r}: give each its own name")
        unknown = sorted(set(self.split.sources) - set(names))
        if unknown:
            raise ValueError(f"split.sources names {unknown}, but the sources are {names}")
        return self

    @model_validator(mode="after")
    def _weights_speak_of_the_sources(self) -> Self:
        trained_on = [
            source.name
            for source in self.sources
            if self.split.sources.get(source.name, "train") == "train"
        ]
        if self.model and self.train.data.weights:
            try:
                check_weights(self.train.data.weights, trained_on)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self


def read_config(path: str | Path) -> PipelineConfig:
    """A pipeline from its TOML file. Raises ConfigError naming the file and the key."""
    try:
        body = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no config at {path}{_nearest_file(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        data = tomllib.loads(body)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return parse_config(data, str(path))


def parse_config(data: dict[str, Any], where: str) -> PipelineConfig:
    """A pipeline from plain data. Raises ConfigError naming `where` and each wrong key."""
    try:
        return PipelineConfig.model_validate(data)
    except ValidationError as error:
        # A list whose every item is wrong counts as empty too: the items say more.
        problems = [p for p in error.errors() if p["type"] != "too_short" or not p["input"]]
        lines = [_explain(dict(problem)) for problem in problems]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def _explain(problem: dict[str, Any]) -> str:
    place = tuple(part for part in problem["loc"])
    key = ".".join(str(part) for part in place)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        nearest = difflib.get_close_matches(str(place[-1]), known, 1, 0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known keys: {', '.join(known)}"
        return f"unknown key '{key}'; {hint}"
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    if problem["type"] == "union_tag_not_found":
        return f"'{key}.kind' is missing; known kinds: {_kinds()}"
    if problem["type"] == "union_tag_invalid":
        return f"{key}.kind: there is no kind '{problem['ctx']['tag']}'; known kinds: {_kinds()}"
    if problem["type"] == "tuple_type" and isinstance(problem["input"], dict):
        return f"{key} is a list of tables: write [[{key}]], not [{key}]"
    if problem["type"] == "too_short":
        return f"{key}: the list is empty"
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    found = f" (found {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{key}: {message}{found}" if key else message


def _kinds() -> str:
    kinds = [get_args(model.model_fields["kind"].annotation) for model in _models_in(Source)]
    return ", ".join(repr(kind) for (kind,) in kinds)


def _keys_at(place: tuple[Any, ...]) -> list[str]:
    """The keys a config knows at a place in it, following its fields' types."""
    model: type[BaseModel] = PipelineConfig
    for part in place:
        if isinstance(part, int):
            continue
        if part in model.model_fields:
            found = _models_in(model.model_fields[part].annotation)
        else:
            found = [m for m in _models_in(Source) if m.__name__.lower().startswith(str(part))]
        if found:
            model = found[0]
    return sorted({*model.model_fields, *DIAL_KEYS.get(place, ())})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _nearest_file(path: Path) -> str:
    there = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    nearest = difflib.get_close_matches(path.name, there, 1, 0.5)
    return f"; did you mean {path.parent / nearest[0]}?" if nearest else ""
