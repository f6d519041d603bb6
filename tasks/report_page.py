"""The report of a run: what it shows, as data, and the one HTML file it becomes.

The page asks for nothing outside itself and runs no script; its content security policy says so,
so that a hostile document's text stays text. Whatever is absent from the data is left out.
"""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import Field

from llm.config import Config
from tasks.report_charts import Series, bar, line_chart


class Fact(Config):
    """A name and its value, shown as they are."""

    name: str
    value: str | int | float


class StageCount(Config):
    """A step of the funnel. `share` is what it leaves of the rows at the start, `work_seconds`
    what its actions took, over all workers and whenever they ran."""

    stage: str
    rows_in: int
    rows_out: int
    dropped: int
    share: float
    text_bytes: int | None = None
    work_seconds: float | None = None


class DropExample(Config):
    """A dropped document, with the part of its scrubbed text that is shown."""

    id: str
    url: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str | None = None
    excerpt: str = ""


class DropReason(Config):
    """How many documents one reason removed, and some of them."""

    stage: str
    reason: str
    count: int
    examples: tuple[DropExample, ...] = ()


class QuarantineExample(Config):
    """A record that could not be read, by its place in its source."""

    source: str
    locator: str
    detail: str | None = None


class QuarantineReason(Config):
    """How many records were set aside for one reason, and some of them."""

    stage: str
    reason: str
    count: int
    examples: tuple[QuarantineExample, ...] = ()


class PiiCount(Config):
    """Findings of one type of personal data, and the documents that held them."""

    type: str
    findings: int
    documents: int


class Benchmark(Config):
    """What of a benchmark stands in the corpus at all (`items_matched`), and what condemned a
    document (`items_leaked`)."""

    name: str
    items: int
    items_matched: int
    items_leaked: int
    documents_dropped: int


class CanaryResult(Config):
    """What became of planted defects: where `wanted`, `caught` of those that reached the stage are
    its recall, else they are false alarms."""

    kind: str
    detail: str
    stage: str
    planted: int
    reached: int
    caught: int
    wanted: bool


class Contamination(Config):
    """A document that was dropped for an item of a benchmark. `overlap` is the part of its
    n-grams that was found."""

    benchmark: str
    item: str
    id: str
    url: str | None = None
    reason: str
    n_ngrams: int
    overlap: float


class LanguageCount(Config):
    """Documents in a language; `None` is one that could not be told."""

    language: str | None
    documents: int


class SourceCount(Config):
    """What a source gave and under which licenses."""

    source: str
    licenses: tuple[str, ...] = ()
    documents: int
    n_bytes: int | None = None


class TokenCount(Config):
    """Tokens of one source in one split, with what fertility is computed from. `words` is None
    where they were not counted."""

    source: str
    split: str
    documents: int
    tokens: int
    words: int | None
    n_bytes: int


class TrainingPoint(Config):
    """What training logged at a step. Loss in nats per token."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None


class ValidationPoint(Config):
    """Validation loss at a step, in nats per token."""

    step: int
    loss: float


class Sample(Config):
    """What the model wrote at a step, after a prompt."""

    step: int
    prompt: str = ""
    text: str


class Score(Config):
    """A model's or a trivial baseline's score on a held-out split."""

    split: str
    name: str
    bits_per_byte: float | None = None
    perplexity: float | None = None
    note: str = ""
    baseline: bool = True


class Registration(Config):
    """The registered version, the names that point at it and what the gate said."""

    model: str
    version: int
    aliases: tuple[str, ...] = ()
    gate_passed: bool | None = None
    gate: str = ""


class LineageStage(Config):
    """A stage's manifest: what it was made of and what came out, by digest."""

    stage: str
    version: int
    fingerprint: str
    inputs: tuple[str, ...] = ()
    data_digest: str = ""
    libraries: dict[str, str] = Field(default_factory=dict)


class Timing(Config):
    """Wall time of a stage in this run; `reused` where its result was there already."""

    stage: str
    seconds: float
    reused: bool = False


class ReportData(Config):
    """Everything a report shows. Each part but the head may be empty and is then left out."""

    title: str
    run: str
    ref: str = ""
    when: str = ""
    verdict: str = ""
    alarms: tuple[str, ...] = ()
    highlights: tuple[Fact, ...] = ()
    funnel: tuple[StageCount, ...] = ()
    drops: tuple[DropReason, ...] = ()
    quarantine: tuple[QuarantineReason, ...] = ()
    pii: tuple[PiiCount, ...] = ()
    canaries: tuple[CanaryResult, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    contaminations: tuple[Contamination, ...] = ()
    n_contaminations: int = 0
    sources: tuple[SourceCount, ...] = ()
    languages: tuple[LanguageCount, ...] = ()
    tokens: tuple[TokenCount, ...] = ()
    tokenizer: tuple[Fact, ...] = ()
    reserved_tokens: tuple[str, ...] = ()
    model: tuple[Fact, ...] = ()
    recipe: tuple[Fact, ...] = ()
    machine: tuple[Fact, ...] = ()
    training: tuple[TrainingPoint, ...] = ()
    validation: tuple[ValidationPoint, ...] = ()
    samples: tuple[Sample, ...] = ()
    evaluation: tuple[Score, ...] = ()
    registration: Registration | None = None
    lineage: tuple[LineageStage, ...] = ()
    timings: tuple[Timing, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    config_toml: str = ""
    notes: tuple[str, ...] = ()


# Anchor, heading, and the fields of which one must be there for the section to be shown.
SECTIONS = (
    ("funnel", "Funnel", ("funnel",)),
    ("drops", "Dropped documents", ("drops",)),
    ("quarantine", "Quarantine", ("quarantine",)),
    ("pii", "Personal data", ("pii",)),
    ("contamination", "Contamination", ("benchmarks", "contaminations")),
    ("canaries", "Canaries", ("canaries",)),
    ("sources", "Sources", ("sources",)),
    ("languages", "Languages", ("languages",)),
    ("tokens", "Tokens", ("tokens", "tokenizer")),
    ("model", "Model", ("model", "recipe", "machine")),
    ("training", "Training", ("training", "validation")),
    ("samples", "Samples over time", ("samples",)),
    ("evaluation", "Evaluation", ("evaluation",)),
    ("registry", "Registry", ("registration",)),
    ("lineage", "Lineage", ("lineage",)),
    ("timings", "Timings", ("timings",)),
    ("versions", "Versions and config", ("versions", "config_toml")),
)


def render_report(data: ReportData) -> str:
    """The report as one HTML document."""
    environment = Environment(
        loader=PackageLoader("tasks", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=format_count, number=format_number, percent=format_percent, size=format_size,
        duration=format_duration,
    )  # fmt: skip
    environment.tests["web"] = lambda url: str(url).startswith(("https://", "http://"))
    sections = [
        (anchor, heading)
        for anchor, heading, fields in SECTIONS
        if any(getattr(data, field) for field in fields)
    ]
    return environment.get_template("report.html.j2").render(
        data=data, sections=sections, bar=bar, charts=_training_charts(data)
    )


def _training_charts(data: ReportData) -> dict[str, Markup]:
    """The curves of training by name; one that has no points is an empty string."""

    def logged(field: str) -> list[tuple[float, float]]:
        values = ((point.step, getattr(point, field)) for point in data.training)
        return [(step, value) for step, value in values if value is not None]

    def small(title: str, field: str, log_y: bool = False) -> Markup:
        curve = Series(title, logged(field))
        return line_chart(
            title, [curve], log_y=log_y, from_zero=not log_y, height=130, max_points=120
        )

    validation = [(float(point.step), point.loss) for point in data.validation]
    return {
        "loss": line_chart(
            "Loss, nats per token",
            [Series("training", logged("loss")), Series("validation", validation, dashed=True)],
        ),
        "learning_rate": small("Learning rate", "learning_rate"),
        "grad_norm": small("Gradient norm", "grad_norm", log_y=True),
        "throughput": small("Tokens per second", "tokens_per_second"),
    }


def format_count(value: int) -> str:
    """1,234,567"""
    return f"{value:,}"


def format_number(value: float | int | str | None) -> str:
    """Four significant digits with thousands set apart; text as it is; nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_percent(share: float) -> str:
    """A share of one as per cent, with a decimal where it is small."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1f} %"


def format_size(value: int | None) -> str:
    """Bytes in the largest decimal unit that leaves a number above one."""
    if value is None:
        return "–"
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} B"


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: 0.8 s, 42 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
