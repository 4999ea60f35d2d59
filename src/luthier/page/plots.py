"""Small plots as SVG text: intervals, pairs of intervals, shares, lines, reliability. Pure functions, no dependency.

Everything is drawn in currentColor inside groups with a class (`tuned`, `base`, `muted`), so a page gives
colours by CSS and dark mode costs nothing; without CSS a plot is still readable. Sizes are in SVG units,
meant to be shown at about one CSS pixel each. Shape tells what colour tells: tuned is filled, base is hollow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from luthier.page.words import visible

Scale = Callable[[float], float]
Span = tuple[float, float, float]
"""(value, low, high)"""
Bin = tuple[float, Span, int]
"""(sureness, share right with its interval, n)"""
WIDTH = 260
"""Of every plot but the line chart and the reliability plot."""


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]
    style: str
    """CSS class of its group: `tuned`, `base` or `muted`."""
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    name: str
    counts: Sequence[int]
    style: str
    """CSS class of its group: `tuned` is filled, `base` an outline."""


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high], about so many; `low < high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(ticks: Sequence[float], *, signed: bool = False) -> list[str]:
    """Labels with just the decimals that the step needs; `signed` writes +0.1."""
    step = ticks[1] - ticks[0]
    decimals = next((d for d in range(9) if abs(round(step, d) - step) <= 1e-6 * step), 9)
    sign = "+" if signed else ""
    return [(f"{t:{sign},.{decimals}f}" if round(t, decimals) else "0").replace("-", "−") for t in ticks]


def interval_plot(
    span: Span, limit: float | None = None, *, domain: tuple[float, float] | None = None, label: str
) -> str:
    """A dot and whisker of a gain, with the zero line; `limit` marks what the whisker must not reach.

    Right is better. With a `domain` axis and words are left out: rows of a table share one scale, see `axis_plot`.
    """
    low, high = domain or padded([0.0, *span, *([] if limit is None else [limit])])
    x = _scale(low, high, 10, WIDTH - 10)
    y, top, bottom = (12.0, 0.0, 24.0) if domain else (24.0, 6.0, 40.0)
    parts = []
    if limit is not None:
        parts += _limit(x(limit), top, bottom, "" if domain else "limit" if limit else "limit = 0")
    parts.append(_line(x(0), top, x(0), bottom, "zero"))
    parts.append(_whisker(span, x, y, "tuned"))
    if domain is None:
        parts += _axis(low, high, x, bottom, about=4, signed=True)
        parts += [_text(2, 72, "← worse", "start", "muted"), _text(WIDTH - 2, 72, "better →", "end", "muted")]
    words = _describe(span) + ("" if limit is None else f", limit {_short(limit)}")
    return _svg(WIDTH, 24 if domain else 74, label, words, parts)


def pair_plot(baseline: Span, tuned: Span, *, domain: tuple[float, float] | None = None, label: str) -> str:
    """Base above tuned on one scale, each a dot and whisker. The axis need not hold zero.

    With a `domain` axis and names are left out, as in `interval_plot`.
    """
    low, high = domain or padded([*baseline, *tuned])
    x = _scale(low, high, 10 if domain else 44, WIDTH - 10)
    rows = (("base", baseline, 8.0 if domain else 12.0), ("tuned", tuned, 22.0 if domain else 32.0))
    parts = []
    for style, span, y in rows:
        parts += [] if domain else [_text(0, y + 4, style, "start", style)]
        parts.append(_whisker(span, x, y, style))
    if domain is None:
        parts += _axis(low, high, x, 46, about=4)
    words = f"base: {_describe(baseline)}; tuned: {_describe(tuned)}"
    return _svg(WIDTH, 30 if domain else 66, label, words, parts)


def axis_plot(domain: tuple[float, float], *, signed: bool = False, label: str) -> str:
    """The axis alone, to stand under rows that share the `domain`."""
    low, high = domain
    return _svg(WIDTH, 22, label, "", _axis(low, high, _scale(low, high, 10, WIDTH - 10), 1, about=4, signed=signed))


def share_bar(wins: int, ties: int, losses: int) -> str:
    """Wins, ties and losses as one bar: solid, faint, solid."""
    parts, at = [], 0.0
    for n, style, opacity in ((wins, "tuned", "1"), (ties, "muted", "0.25"), (losses, "base", "1")):
        size = WIDTH * n / (wins + ties + losses)
        if size:
            parts.append(
                f'<g class="{style}"><rect x="{at:.1f}" y="0" width="{max(size - 1, 0.5):.1f}" height="8" rx="1" '
                f'fill="currentColor" fill-opacity="{opacity}"/></g>'
            )
        at += size
    return _svg(WIDTH, 8, "wins, ties and losses", f"{wins}, {ties} and {losses}", parts)


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    mark: tuple[float, float, str],
    width: int,
    height: int,
    label: str,
) -> str:
    """Lines over a grid of round numbers. `mark` is (x, y, words): a ring with a dashed line down to the axis."""
    xs, ys = zip(*(point for s in series for point in s.points), strict=True)
    x_low, x_high = _widened(min(xs), max(xs))
    y_low, y_high = padded(ys)
    left, right, top, bottom = 48.0, width - 14.0, 40.0, height - 44.0
    x, y = _scale(x_low, x_high, left, right), _scale(y_low, y_high, bottom, top)
    parts = _grid(y_low, y_high, y, left, right)
    parts += _axis(x_low, x_high, x, bottom, about=max(4, width // 130))
    parts.append(_text((left + right) / 2, height - 6, x_label, "middle", "muted"))
    parts.append(_text(0, 12, y_label, "start", "muted"))
    parts += [_polyline(s, x, y) for s in series]
    parts += _ring(x(mark[0]), y(mark[1]), bottom, mark[2], left, right)
    parts += _legend(series, right)
    words = "; ".join(f"{s.name}: from {_short(s.points[0][1])} to {_short(s.points[-1][1])}" for s in series)
    return _svg(width, height, label, words, parts)


def histogram(edges: Sequence[int], groups: Sequence[Bars], *, x_label: str, label: str) -> str:
    """Shares of each group, of some rows each, between neighbouring edges; bins are drawn equally wide."""
    width, height = 720, 240
    left, right, top, bottom = 48.0, width - 14.0, 32.0, height - 44.0
    shares = {g.name: [n / (sum(g.counts) or 1) for n in g.counts] for g in groups}
    x = _scale(0, len(edges) - 1, left, right)
    highest = 1.06 * max(share for found in shares.values() for share in found)
    y = _scale(0, highest, bottom, top)
    parts = _grid(0, highest, y, left, right)
    for group in groups:
        found = shares[group.name]
        if group.style == "tuned":
            bars = "".join(
                f'<rect x="{x(i) + 1:.1f}" y="{y(s):.1f}" width="{x(1) - x(0) - 2:.1f}" height="{bottom - y(s):.1f}" '
                'fill="currentColor" fill-opacity="0.55"/>'
                for i, s in enumerate(found)
                if s
            )
        else:
            steps = "".join(f"V{y(s):.1f}H{x(i + 1):.1f}" for i, s in enumerate(found))
            path = f"M{x(0):.1f} {bottom:.1f}{steps}V{bottom:.1f}"
            bars = f'<path d="{path}" fill="none" stroke="currentColor" stroke-width="1.8"/>'
        parts.append(f'<g class="{group.style}">{bars}</g>')
    parts.append(_line(left, bottom, right, bottom, "axis"))
    every = -(-len(edges) // 12)
    parts += [
        _text(x(i), bottom + 17, f"{edge:,}", "middle", "muted") for i, edge in enumerate(edges) if i % every == 0
    ]
    parts += [
        _text((left + right) / 2, height - 6, x_label, "middle", "muted"),
        _text(0, 12, "share of rows", "start", "muted"),
    ]
    parts += _legend([Series(g.name, (), g.style, dots=g.style == "tuned") for g in groups], right)
    words = "; ".join(f"{g.name}: {sum(g.counts):,} rows, most from {edges[_largest(g.counts)]:,}" for g in groups)
    return _svg(width, height, label, words, parts)


def _largest(counts: Sequence[int]) -> int:
    return max(range(len(counts)), key=counts.__getitem__)


def reliability_plot(baseline: Sequence[Bin], tuned: Sequence[Bin], *, label: str) -> str:
    """How sure (right) against how often right (up), of answers of about the same sureness, with intervals.

    On the dashed diagonal a model is right as often as it is sure to be; below it, it is too sure.
    """
    size, left, top = 380, 46.0, 32.0
    right, bottom = size - 14.0, size - 46.0
    x, y = _scale(0, 1, left, right), _scale(0, 1, bottom, top)
    parts = [*_grid(0, 1, y, left, right), *_axis(0, 1, x, bottom, about=5)]
    parts += [_line(x(0), y(0), x(1), y(1), "zero", dashes="5 4")]
    parts += [_text((left + right) / 2, size - 8, "how sure of the label", "middle", "muted")]
    parts += [_text(0, 12, "share right", "start", "muted")]
    for style, bins in (("base", baseline), ("tuned", tuned)):
        points = [(sure, share) for sure, (share, _, _), _ in bins]
        parts += [_polyline(Series(style, points, style), x, y)] if len(points) > 1 else []
        parts += [_upright(span, x(sure), y, style) for sure, span, _ in bins]
    shown = [Series(name, (), name, dots=True) for name, bins in (("base", baseline), ("tuned", tuned)) if bins]
    parts += _legend(shown, right)
    words = "; ".join(
        f"{name}: " + ", ".join(f"sure {_short(sure)}, right {_describe(span)}, n {n}" for sure, span, n in bins)
        for name, bins in (("base", baseline), ("tuned", tuned))
        if bins
    )
    return _svg(size, size, label, words, parts)


def padded(values: Sequence[float]) -> tuple[float, float]:
    """A range that holds all values, with some air."""
    low, high = _widened(min(values), max(values))
    pad = (high - low) * 0.06
    return low - pad, high + pad


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range of some width, also around a single value."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-9):
        return low, high
    pad = abs(high) * 0.1 if abs(high) > 1e-9 else 1.0
    return low - pad, high + pad


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _xml(words: str) -> str:
    """Fit for an attribute or a text of XML, which allows no control characters even as references."""
    return escape(visible(words))


def _svg(width: int, height: int, title: str, description: str, parts: Sequence[str]) -> str:
    name = _xml(title)
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{name}"><title>{name}</title><desc>{_xml(description)}</desc>{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str, style: str) -> str:
    return (
        f'<g class="{style}"><text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11.5" '
        f'fill="currentColor">{_xml(words)}</text></g>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str, dashes: str = "", thick: float = 1) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<g class="{style}"><line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="currentColor" stroke-width="{thick}"{dashed}/></g>'
    )


def _whisker(span: Span, x: Scale, y: float, style: str) -> str:
    at, low, high = (x(value) for value in span)
    return (
        f'<g class="{style}"><path d="M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 4:.1f}v8" '
        f'fill="none" stroke="currentColor" stroke-width="2"/>{_dot(at, y, style)}</g>'
    )


def _upright(span: Span, x: float, y: Scale, style: str) -> str:
    """A whisker that stands."""
    at, low, high = (y(value) for value in span)
    return (
        f'<g class="{style}"><path d="M{x - 3:.1f} {low:.1f}h6M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {high:.1f}h6" '
        f'fill="none" stroke="currentColor" stroke-width="1.5"/>{_dot(x, at, style)}</g>'
    )


def _dot(x: float, y: float, style: str, radius: float = 5) -> str:
    filled = style == "tuned"
    paint = 'fill="currentColor"' if filled else 'class="hollow" fill="none" stroke="currentColor" stroke-width="2"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius if filled else radius - 0.5:g}" {paint}/>'


def _limit(at: float, top: float, bottom: float, words: str) -> list[str]:
    """The dashed limit, the side of it that fails faintly shaded, and its name."""
    side, anchor = (5, "start") if at < WIDTH - 60 else (-5, "end")
    return [
        (
            f'<g class="base"><rect x="0" y="{top:.1f}" width="{at:.1f}" height="{bottom - top:.1f}" '
            'fill="currentColor" fill-opacity="0.09"/></g>'
        ),
        _line(at, top, at, bottom, "base", dashes="4 3", thick=1.5),
        *([_text(at + side, 10, words, anchor, "base")] if words else []),
    ]


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


def _polyline(series: Series, x: Scale, y: Scale) -> str:
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in series.points)
    thick, opacity = ("2.2", "1") if series.dots else ("1.4", "0.75")
    with_dots = series.points if series.dots or len(series.points) == 1 else ()  # one point makes no line
    dots = "".join(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="currentColor"/>' for a, b in with_dots)
    return (
        f'<g class="{series.style}"><polyline points="{path}" fill="none" stroke="currentColor" stroke-width="{thick}" '
        f'stroke-opacity="{opacity}" stroke-linejoin="round"/>{dots}</g>'
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
        parts += [f'<g class="{s.style}">{_dot(start - 12, 8, s.style, 3.5)}</g>'] * s.dots
        at = start - 38
    return parts


def _describe(span: Span) -> str:
    value, low, high = map(_short, span)
    return f"{value}, interval {low} to {high}"


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")
