"""Plots are well-formed, titled, and draw what they are given wherever the numbers lie."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from evidence import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from luthier.page import plots

NUMBERS = st.floats(-1e100, 1e100)


def coordinates(svg: str) -> list[float]:
    found = re.findall(r'\s(?:x1|x2|y1|y2|cx|cy|x|y|width|height)="([^"%]+)"', svg)
    path = [
        n
        for points in re.findall(r'\s(?:points|d)="([^"]+)"', svg)
        for n in re.findall(r"-?[\d.]+(?:e-?\d+)?|nan|inf", points)
    ]
    return [float(n) for n in found + path]


@given(NUMBERS, NUMBERS, NUMBERS, st.none() | NUMBERS)
def test_interval_plot_is_well_formed_whatever_the_numbers(value, low, high, limit):
    svg = plots.interval_plot((value, low, high), limit, label="change")
    assert ElementTree.fromstring(svg).find("title") is not None
    assert all(math.isfinite(n) for n in coordinates(svg))


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS), st.tuples(NUMBERS, NUMBERS, NUMBERS))
def test_pair_plot_is_well_formed_whatever_the_numbers(baseline, tuned):
    svg = plots.pair_plot(baseline, tuned, label="both")
    ElementTree.fromstring(svg)
    assert all(math.isfinite(n) for n in coordinates(svg))


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4), st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4))
def test_reliability_plot_is_well_formed_with_any_bins(baseline, tuned):
    bins = ([(sure, span, 20) for sure, *span in side] for side in (baseline, tuned))
    svg = plots.reliability_plot(*bins, label="sure and right")
    assert ElementTree.fromstring(svg).find("title") is not None
    assert all(math.isfinite(n) for n in coordinates(svg))
    assert svg.count("<circle") == len(baseline) + len(tuned) + bool(baseline) + bool(tuned)


def test_the_reliability_diagonal_joins_equal_sureness_and_share():
    svg = plots.reliability_plot([], [(0.5, (0.5, 0.4, 0.6), 9)], label="")
    x1, y1, x2, y2 = (
        float(n) for n in re.search(r'class="zero"><line x1="(.*?)" y1="(.*?)" x2="(.*?)" y2="(.*?)"', svg).groups()
    )
    x, y = (float(n) for n in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="5"', svg)[0])
    assert (x, y) == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2), abs=0.1)


def test_rows_that_share_a_domain_share_the_scale_of_the_axis():
    axis = plots.axis_plot((0.0, 1.0), label="share")
    at = {word: float(x) for x, word in re.findall(r'<text x="([\d.]+)"[^>]*>([\d.]+)</text>', axis)}
    for value in (0.25, 0.75):
        pair = plots.pair_plot((value, 0, 1), (value, 0, 1), domain=(0.0, 1.0), label="")
        alone = plots.interval_plot((value, 0, 1), domain=(0.0, 1.0), label="")
        for svg in (pair, alone):
            assert "<text" not in svg
            assert float(re.search(r'<circle cx="([\d.]+)"', svg)[1]) == pytest.approx(at[f"{value:.2f}"], abs=0.1)


def chart(points, words="nll"):
    series = [plots.Series(words, points, "base"), plots.Series("validation", points[:1], "tuned", dots=True)]
    mark = (*points[0], words)
    return plots.line_chart(series, x_label=words, y_label=words, mark=mark, width=900, height=320, label=words)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_line_chart_is_well_formed_whatever_the_points(points):
    svg = chart(points)
    ElementTree.fromstring(svg)
    assert all(math.isfinite(n) for n in coordinates(svg))


def test_the_dot_lies_between_its_ends_and_right_is_better():
    svg = plots.interval_plot((0.2, 0.1, 0.3), 0.0, label="change")
    dot = float(re.search(r'<circle cx="([\d.]+)"', svg)[1])
    low, high = (float(x) for x in re.search(r"M([\d.]+) [\d.]+v8M.*?H([\d.]+)M", svg).groups())
    zero = float(re.search(r'class="zero"><line x1="([\d.]+)"', svg)[1])
    assert zero < low < dot < high
    assert "better" in svg and "limit" in svg


def test_limit_is_drawn_at_its_place():
    at = [
        float(re.search(r'<line x1="([\d.]+)"[^>]*dasharray', plots.interval_plot((0.2, -0.1, 0.3), r, label=""))[1])
        for r in (-0.05, 0.0, 0.15)
    ]
    assert at == sorted(at) and len(set(at)) == 3


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.sampled_from([4, 5, 7]))
def test_ticks_are_round_inside_and_even(low, width, about):
    ticks = plots.nice_ticks(low, low + width, about)
    assert 2 <= len(ticks) <= about + 2
    assert all(low - width * 1e-6 <= t <= low + width * (1 + 1e-6) for t in ticks)
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)


@pytest.mark.parametrize(
    ("ticks", "signed", "labels"),
    [
        ([-0.05, 0.0, 0.05], True, ["−0.05", "0", "+0.05"]),
        ([0, 1000, 2000], False, ["0", "1,000", "2,000"]),
    ],
)
def test_tick_labels(ticks, signed, labels):
    assert plots.tick_labels(ticks, signed=signed) == labels


def test_words_are_escaped_and_control_characters_shown():
    svg = chart([(0, 1), (1, 2)], HOSTILE)
    assert "<script" not in svg and "\x00" not in svg and "\u202e" not in svg
    ElementTree.fromstring(svg)


def test_shares_add_up_to_the_whole_width():
    svg = plots.share_bar(10, 70, 20)
    widths = [float(w) + 1 for w in re.findall(r'<rect [^>]*?width="([\d.]+)"', svg)]
    assert widths == [26, 182, 52]
    ElementTree.fromstring(plots.share_bar(0, 1, 0))


def test_everything_is_drawn_in_current_color():
    svg = plots.interval_plot((0.2, 0.1, 0.3), 0.0, label="") + plots.pair_plot((1, 0, 2), (2, 1, 3), label="")
    svg += plots.share_bar(1, 2, 3)
    assert set(re.findall(r'(?:fill|stroke)="([^"]+)"', svg)) <= {"currentColor", "none"}
