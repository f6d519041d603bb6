"""The plot of a scaling law: one HTML file, without a script and without a library."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llm.scaling import Scaling, Trained
from tasks.report_charts import Series, line_chart

_STEPS = 40
"""Points of a curve."""


def render_scaling(name: str, made: Scaling) -> str:
    """The page: loss by parameters and by tokens, the runs, the law, the prediction."""
    environment = Environment(
        loader=PackageLoader("tasks"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    charts = [
        _chart("loss by parameters", "parameters", made, lambda run: run.point.parameters,
               lambda run: run.point.tokens, made.law.loss),
        _chart("loss by tokens", "tokens", made, lambda run: run.point.tokens,
               lambda run: run.point.parameters, lambda x, kept: made.law.loss(kept, x)),
    ]  # fmt: skip
    rows = [(run, made.law.loss(run.point.parameters, run.point.tokens)) for run in made.runs]
    template = environment.get_template("scaling.html.j2")
    return template.render(name=name, made=made, charts=charts, rows=rows)


def _chart(
    title: str,
    x_label: str,
    made: Scaling,
    x_of: Callable[[Trained], int],
    kept_of: Callable[[Trained], int],
    loss: Callable[[float, float], float],
) -> Markup:
    """The runs as dots and the law as a line for each value of what is not on the axis."""
    other = "tokens" if x_label == "parameters" else "parameters"
    runs = [*made.runs, *([made.check] if made.check else [])]
    end = max(made.prediction.parameters, *(run.point.parameters for run in runs))
    if x_label == "tokens":
        end = max(made.prediction.tokens, *(run.point.tokens for run in runs))
    begin = min(x_of(run) for run in runs)
    series = []
    for kept in _groups(kept_of(run) for run in made.runs):
        curve = [(x, loss(x, kept)) for x in _spread(begin, end)]
        dots = [(x_of(r), r.point.loss) for r in made.runs if _same(kept_of(r), kept)]
        series.append(Series(f"{_short(kept)} {other}", curve, dots=dots))
    predicted = made.prediction
    at = predicted.parameters if x_label == "parameters" else predicted.tokens
    kept = predicted.tokens if x_label == "parameters" else predicted.parameters
    curve = [(x, loss(x, kept)) for x in _spread(begin, end)]
    reached = [(x_of(made.check), made.check.point.loss)] if made.check else [(at, predicted.loss)]
    name = f"{_short(kept)} {other}, predicted{' and reached' if made.check else ''}"
    series.append(Series(name, curve, dashed=True, dots=reached))
    return line_chart(title, series, x_label=x_label, log_x=True, height=320)


def _groups(values: Iterable[int]) -> list[int]:
    """The distinct values, those that differ by rounding to whole steps taken together."""
    groups: list[int] = []
    for value in sorted(values):
        if not groups or not _same(value, groups[-1]):
            groups.append(value)
    return groups


def _same(one: int, other: int) -> bool:
    return abs(one / other - 1) < 0.02


def _spread(begin: float, end: float) -> list[float]:
    """Values from one to the other, in equal ratios."""
    return [begin * (end / begin) ** (step / _STEPS) for step in range(_STEPS + 1)]


def _short(value: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return str(value)
