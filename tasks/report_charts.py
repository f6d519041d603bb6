"""The report's charts: inline SVG out of numbers, without a script and without a library.

Text stays at its own size at every width: labels and grid lines stand at percentages of the plot,
and only the curves lie in a stretched coordinate system. Colours are the page's CSS variables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

_CURVE_UNITS = 10_000
_COLOURS = 5


@dataclass(frozen=True)
class Series:
    """A named curve of (x, y) points in the order of x; `dashed` tells it apart without colour.
    `dots` are points of their own beside it: what was measured, where the curve is a law."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    dots: Sequence[tuple[float, float]] = ()


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
    height: int = 240,
    max_points: int = 400,
) -> Markup:
    """A figure with the curves of `series`, axes, and a legend where there are several.

    `log_y` needs values above zero; others are left out, as are infinities and NaN; `log_x` needs
    every x above zero. `from_zero` starts a linear axis at zero, so that heights compare. Returns
    an empty string where nothing can be drawn.
    """
    curves = [
        Series(
            s.name,
            thin(_drawable(s.points, log_y), max_points),
            s.dashed,
            _drawable(s.dots, log_y),
        )
        for s in series
    ]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return Markup("")
    places = [place for curve in curves for place in (*curve.points, *curve.dots)]
    xs = _bounds(_scaled(x, log_x) for x, _ in places)
    floor = [0.0] if from_zero and not log_y else []
    ys = _bounds([*floor, *(_scaled(y, log_y) for _, y in places)])
    x_ticks = log_ticks(10 ** xs[0], 10 ** xs[1]) if log_x else linear_ticks(*xs, 5)
    x_marks = [(_at(_scaled(tick, log_x), xs), tick) for tick in x_ticks]
    y_ticks = log_ticks(10 ** ys[0], 10 ** ys[1]) if log_y else linear_ticks(*ys, 5)
    y_marks = [(100 - _at(_scaled(tick, log_y), ys), tick) for tick in y_ticks]
    body = [_grid_y(y_marks), _axis_x(x_marks)]
    body.append(
        f'<svg viewBox="0 0 {_CURVE_UNITS} {_CURVE_UNITS}" preserveAspectRatio="none" '
        'width="100%" height="100%" overflow="visible">'
    )
    drawn = [
        Series(
            curve.name,
            [(_at(_scaled(x, log_x), xs), _at(_scaled(y, log_y), ys)) for x, y in curve.points],
            curve.dashed,
            [(_at(_scaled(x, log_x), xs), _at(_scaled(y, log_y), ys)) for x, y in curve.dots],
        )
        for curve in curves
    ]
    body += [_curve(curve, index) for index, curve in enumerate(drawn)]
    body.append("</svg>")
    body += [_dots(curve, index) for index, curve in enumerate(drawn)]
    return Markup(  # noqa: S704 - every text in it is escaped above
        f'<figure class="chart"><figcaption>{escape(title)}'
        f"<small>{escape(x_label)} &rarr;{_log_scales(log_x, log_y)}</small></figcaption>"
        f'<svg class="plot" role="img" height="{height}" aria-label="{_summary(title, curves)}">'
        f"<title>{_summary(title, curves)}</title>{''.join(body)}</svg>{_legend(curves)}</figure>"
    )


def bar(share: float, label: str) -> Markup:
    """A horizontal bar that fills `share` (0 to 1) of its box; `label` says it to a reader."""
    percent = 100 * min(max(share, 0.0), 1.0)
    return Markup(  # noqa: S704 - the label is escaped, the rest are numbers
        f'<svg class="bar" role="img" aria-label="{escape(label)}" width="100%" height="10">'
        f"<title>{escape(label)}</title>"
        '<rect class="track" width="100%" height="10" rx="2"></rect>'
        f'<rect class="fill" width="{percent:.2f}%" height="10" rx="2"></rect></svg>'
    )


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: the means of equal groups of neighbours, with both ends kept."""
    if len(points) <= most:
        return list(points)
    inner, groups = points[1:-1], most - 2
    thinned = [points[0]]
    for group in range(groups):
        members = inner[len(inner) * group // groups : len(inner) * (group + 1) // groups]
        thinned.append(
            (
                math.fsum(x for x, _ in members) / len(members),
                math.fsum(y for _, y in members) / len(members),
            )
        )
    return [*thinned, points[-1]]


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) from `low` to `high`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * k, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` on a log axis: 1, 2, 5 a decade, or the decades only."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    return inside if len(inside) >= 2 else linear_ticks(low, high, 4)


def format_tick(value: float) -> str:
    """A number as short as an axis wants it: 1.5k, 20M, 0.003, 1e-05."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def _drawable(points: Iterable[tuple[float, float]], log_y: bool) -> list[tuple[float, float]]:
    finite = ((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    return [(x, y) for x, y in finite if y > 0 or not log_y]


def _scaled(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _log_scales(log_x: bool, log_y: bool) -> str:
    if log_x:
        return ", both log scales" if log_y else " on a log scale"
    return ", log scale" if log_y else ""


def _bounds(values: Iterable[float]) -> tuple[float, float]:
    """The least and the greatest of `values`, a little apart where they are the same."""
    collected = list(values)
    low, high = min(collected), max(collected)
    margin = (abs(low) or 1.0) * 0.1 if high - low <= 1e-9 * max(abs(low), abs(high)) else 0.0
    return low - margin, high + margin


def _at(value: float, bounds: tuple[float, float]) -> float:
    """Where `value` stands between `bounds`, in per cent."""
    return 100 * (value - bounds[0]) / (bounds[1] - bounds[0])


def _grid_y(marks: list[tuple[float, float]]) -> str:
    return "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{at:.2f}%" y2="{at:.2f}%"></line>'
        f'<text class="tick" x="-8" y="{at:.2f}%" dy="4" text-anchor="end">'
        f"{format_tick(value)}</text>"
        for at, value in marks
    )


def _axis_x(marks: list[tuple[float, float]]) -> str:
    labels = "".join(
        f'<text class="tick" x="{at:.2f}%" y="100%" dy="20" text-anchor="middle">'
        f"{format_tick(value)}</text>"
        for at, value in marks
    )
    return f'<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"></line>{labels}'


def _curve(curve: Series, index: int) -> str:
    """The line through points in per cent of the plot."""
    unit = _CURVE_UNITS / 100
    places = [f"{unit * x:.0f},{unit * (100 - y):.0f}" for x, y in curve.points]
    if len(places) == 1:
        places.append(places[0])
    style = f"curve s{index % _COLOURS}{' dashed' if curve.dashed else ''}"
    return f'<polyline class="{style}" points="{" ".join(places)}"></polyline>'


def _dots(curve: Series, index: int) -> str:
    return "".join(
        f'<circle class="dot s{index % _COLOURS}" cx="{x:.2f}%" cy="{100 - y:.2f}%" r="4"></circle>'
        for x, y in curve.dots
    )


def _summary(title: str, curves: list[Series]) -> str:
    """What the chart shows, for who cannot see it: each curve's first and last value."""
    spans = (
        f"{curve.name} from {format_tick(curve.points[0][1])} to {format_tick(curve.points[-1][1])}"
        for curve in curves
    )
    return escape(f"{title}: {'; '.join(spans)}")


def _legend(curves: list[Series]) -> str:
    if len(curves) < 2:
        return ""
    entries = "".join(
        f'<li><svg width="22" height="10" aria-hidden="true"><line class="curve s{index % _COLOURS}'
        f'{" dashed" if curve.dashed else ""}" x1="0" x2="22" y1="5" y2="5"></line></svg>'
        f"{escape(curve.name)}</li>"
        for index, curve in enumerate(curves)
    )
    return f'<ul class="legend">{entries}</ul>'
