"""Small plots as SVG text: intervals, pairs of intervals, shares, lines. Pure functions, no dependency.

Everything is drawn in currentColor inside groups with a class (`tuned`, `base`, `muted`), so a page gives
colours by CSS and dark mode costs nothing; without CSS a plot is still readable. Sizes are in SVG units,
meant to be shown at about one CSS pixel each. Shape tells what colour tells: tuned is filled, base is hollow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape as escape_html

from luthier.release.wording import visible

Scale = Callable[[float], float]
Span = tuple[float, float, float]
"""(value, low, high)"""
LARGEST = 1e100


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]
    style: str
    """CSS class of its group: `tuned`, `base` or `muted`."""
    dots: bool = False


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high], about so many."""
    if not (drawable(low) and drawable(high)) or high <= low:
        return []
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(ticks: Sequence[float], *, signed: bool = False) -> list[str]:
    """Labels with just the decimals that the step needs; `signed` writes +0.1."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) if ticks else 1.0
    decimals = next((d for d in range(9) if abs(round(step, d) - step) <= 1e-6 * (abs(step) or 1)), 9)
    sign = "+" if signed else ""
    return [(f"{t:{sign},.{decimals}f}" if round(t, decimals) else "0").replace("-", "−") for t in ticks]


def interval_plot(
    span: Span,
    required: float | None = None,
    *,
    domain: tuple[float, float] | None = None,
    width: int = 260,
    label: str = "",
) -> str:
    """A dot and whisker of a gain, with the zero line; `required` marks where the whisker must not reach.

    Right is better. With a `domain` the axis is left out, so that rows of a table share one scale.
    """
    axis = domain is None
    height = 74 if axis else 24
    marks = [0.0, *span] + ([] if required is None else [required])
    if not drawable(span[0]):
        return _svg(
            width, height, "no number", label, [_text(width / 2, height / 2 + 4, "no number", "middle", "muted")]
        )
    low, high = domain or _padded(marks)
    x = _scale(low, high, 10, width - 10)
    y, top, bottom = (24.0, 6.0, 40.0) if axis else (12.0, 0.0, 24.0)
    parts = []
    if required is not None and drawable(required):
        parts += _margin(x(required), top, bottom, words=axis, width=width, at_zero=required == 0)
    parts.append(_line(x(0), top, x(0), bottom, "zero"))
    parts.append(_whisker(span, x, y, "tuned"))
    if axis:
        parts += _axis(low, high, x, bottom, about=4, signed=True)
        parts += [_text(2, 72, "← worse", "start", "muted"), _text(width - 2, 72, "better →", "end", "muted")]
    return _svg(width, height, label or "change with its interval", _describe(span, required), parts)


def pair_plot(baseline: Span, tuned: Span, *, width: int = 260, label: str = "") -> str:
    """Base above tuned on one scale, each a dot and whisker. The axis need not hold zero."""
    height, left = 66, 44
    finite = [v for v in (*baseline, *tuned) if drawable(v)]
    if not finite:
        return _svg(width, height, "no numbers", label, [_text(width / 2, 36, "no numbers", "middle", "muted")])
    low, high = _padded(finite)
    x = _scale(low, high, left, width - 10)
    parts = []
    for name, span, y, style in (("base", baseline, 12.0, "base"), ("tuned", tuned, 32.0, "tuned")):
        parts.append(_text(0, y + 4, name, "start", style))
        parts.append(
            _whisker(span, x, y, style) if drawable(span[0]) else _text(left, y + 4, "no number", "start", "muted")
        )
    parts += _axis(low, high, x, 46, about=4)
    words = f"base: {_describe(baseline)}; tuned: {_describe(tuned)}"
    return _svg(width, height, label or "base and tuned with their intervals", words, parts)


def share_bar(wins: int, ties: int, losses: int, *, width: int = 260) -> str:
    """Wins, ties and losses as one bar: solid, faint, striped by an outline."""
    total = wins + ties + losses
    words = f"{wins} wins, {ties} ties, {losses} losses"
    parts, at = [], 0.0
    for n, style, opacity in ((wins, "tuned", "1"), (ties, "muted", "0.25"), (losses, "base", "1")):
        size = width * n / total if total else 0
        if size:
            parts.append(
                f'<g class="{style}"><rect x="{at:.1f}" y="0" width="{max(size - 1, 0.5):.1f}" height="8" rx="1" '
                f'fill="currentColor" fill-opacity="{opacity}"/></g>'
            )
        at += size
    return _svg(width, 8, words, "", parts)


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    mark: tuple[float, float, str] | None = None,
    width: int = 900,
    height: int = 320,
    label: str = "",
) -> str:
    """Lines over a grid of round numbers. `mark` is (x, y, words): a ring with a dashed line down to the axis."""
    kept = [(s, [(a, b) for a, b in s.points if drawable(a) and drawable(b)]) for s in series]
    points = [p for _, ps in kept for p in ps]
    if not points:
        return _svg(
            width, 60, label or "no points", "", [_text(width / 2, 34, "nothing was recorded", "middle", "muted")]
        )
    x_low, x_high = _widened(min(a for a, _ in points), max(a for a, _ in points))
    y_low, y_high = _padded([b for _, b in points])
    left, right, top, bottom = 48.0, width - 14.0, 40.0, height - 44.0
    x, y = _scale(x_low, x_high, left, right), _scale(y_low, y_high, bottom, top)
    parts = _grid(y_low, y_high, y, left, right)
    parts += _axis(x_low, x_high, x, bottom, about=max(3, width // 130))
    parts.append(_text((left + right) / 2, height - 6, x_label, "middle", "muted"))
    parts.append(_text(0, 12, y_label, "start", "muted"))
    parts += [_polyline(s, ps, x, y) for s, ps in kept if ps]
    if mark and drawable(mark[0]) and drawable(mark[1]):
        parts += _ring(x(mark[0]), y(mark[1]), bottom, mark[2], left, right)
    parts += _legend([s for s, ps in kept if ps], right)
    words = "; ".join(f"{s.name}: from {_short(ps[0][1])} to {_short(ps[-1][1])}" for s, ps in kept if ps)
    return _svg(width, height, label or y_label, words, parts)


def drawable(value: float) -> bool:
    """Finite, and not so large that a scale overflows."""
    return abs(value) < LARGEST


def _padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    finite = [v for v in values if drawable(v)]
    low, high = _widened(min(finite), max(finite))
    pad = (high - low) * share
    return low - pad, high + pad


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range of some width, also around a single value."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-9):
        return low, high
    pad = abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """Linear, held inside the plot: an infinite end is drawn at the edge."""

    def at(value: float) -> float:
        share = min(max((value - low) / (high - low), 0.0), 1.0) if not math.isnan(value) else 0.0
        return start + share * (end - start)

    return at


def escape(words: str) -> str:
    """Fit for an attribute or a text of XML, which allows no control characters even as references."""
    return escape_html(visible(words))


def _svg(width: int, height: int, title: str, description: str, parts: Sequence[str]) -> str:
    described = f"<desc>{escape(description)}</desc>" if description else ""
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{described}{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str, style: str) -> str:
    return (
        f'<g class="{style}"><text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11.5" '
        f'fill="currentColor">{escape(words)}</text></g>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str, dashes: str = "", thick: float = 1) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<g class="{style}"><line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="currentColor" stroke-width="{thick}"{dashed}/></g>'
    )


def _whisker(span: Span, x: Scale, y: float, style: str) -> str:
    value, low, high = span
    filled = style == "tuned"
    bar = (
        ""
        if math.isnan(low) or math.isnan(high)
        else (
            f'<path d="M{x(low):.1f} {y - 4:.1f}v8M{x(low):.1f} {y:.1f}H{x(high):.1f}M{x(high):.1f} {y - 4:.1f}v8" '
            'fill="none" stroke="currentColor" stroke-width="2"/>'
        )
    )
    paint = 'fill="currentColor"' if filled else 'class="hollow" fill="none" stroke="currentColor" stroke-width="2"'
    return f'<g class="{style}">{bar}<circle cx="{x(value):.1f}" cy="{y:.1f}" r="{5 if filled else 4.5}" {paint}/></g>'


def _margin(at: float, top: float, bottom: float, *, words: bool, width: int, at_zero: bool) -> list[str]:
    """The dashed limit, the side of it that fails faintly shaded, and its name."""
    parts = [
        (
            f'<g class="base"><rect x="0" y="{top:.1f}" width="{at:.1f}" height="{bottom - top:.1f}" '
            'fill="currentColor" fill-opacity="0.09"/></g>'
        ),
        _line(at, top, at, bottom, "base", dashes="4 3", thick=1.5),
    ]
    if words:
        right = at < width - 60
        parts.append(
            _text(
                at + 5 if right else at - 5,
                10,
                "limit = 0" if at_zero else "limit",
                "start" if right else "end",
                "base",
            )
        )
    return parts


def _axis(low: float, high: float, x: Scale, y: float, *, about: int, signed: bool = False) -> list[str]:
    ticks = nice_ticks(low, high, about)
    parts = [_line(x(low), y, x(high), y, "axis")]
    for tick, label in zip(ticks, tick_labels(ticks, signed=signed), strict=True):
        parts += [_line(x(tick), y, x(tick), y + 4, "axis"), _text(x(tick), y + 17, label, "middle", "muted")]
    return parts


def _grid(low: float, high: float, y: Scale, left: float, right: float) -> list[str]:
    ticks = nice_ticks(low, high, 5)
    parts = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts += [_line(left, y(tick), right, y(tick), "gridline"), _text(left - 8, y(tick) + 4, label, "end", "muted")]
    return parts


def _polyline(series: Series, points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    thick, opacity = ("2.2", "1") if series.dots else ("1.4", "0.75")
    dots = "".join(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="currentColor"/>' for a, b in points)
    return (
        f'<g class="{series.style}"><polyline points="{path}" fill="none" stroke="currentColor" stroke-width="{thick}" '
        f'stroke-opacity="{opacity}" stroke-linejoin="round"/>{dots if series.dots or len(points) == 1 else ""}</g>'
    )


def _ring(x: float, y: float, bottom: float, words: str, left: float, right: float) -> list[str]:
    anchor = "end" if x > right - 60 else "start" if x < left + 60 else "middle"
    return [
        _line(x, y + 8, x, bottom, "tuned", dashes="3 3"),
        f'<g class="tuned"><circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="currentColor" stroke-width="2"/>'
        "</g>",
        _text(x, y - 14, words, anchor, "tuned"),
    ]


def _legend(series: Sequence[Series], right: float) -> list[str]:
    parts, at = [], right
    for s in reversed(series):
        start = at - 6.2 * len(s.name)
        parts.append(_text(start, 12, s.name, "start", s.style))
        parts.append(_line(start - 24, 8, start - 6, 8, s.style, thick=2.2 if s.dots else 1.4))
        parts += [f'<g class="{s.style}"><circle cx="{start - 15:.1f}" cy="8" r="3" fill="currentColor"/></g>'] * s.dots
        at = start - 38
    return parts


def _describe(span: Span, required: float | None = None) -> str:
    value, low, high = map(_short, span)
    return f"{value}, interval {low} to {high}" + ("" if required is None else f", limit {_short(required)}")


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not defined"
