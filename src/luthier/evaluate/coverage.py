"""Coverage: whether the test set looks like the requests that the model really gets, and where rows are lacking.

Test rows and requests are put together and cut into regions without looking at which is which: by each tag that both
have, by length, by script, and by topic where sentence embeddings are installed, else by single words. Of every region
its share among test rows is compared with its share among requests. One procedure gives all p values: the sides are
shuffled, and a region's p is the share of shuffles in which *any* region differs as much (max T, Westfall & Young
1993), so that looking at many regions finds nothing by looking. Rows of one family are shuffled as one.

What no region shows stays unseen: a difference in wording within a topic, or a kind of request that came in fewer than
`MIN_ROWS` rows. It knows no model, and says nothing of how well requests are answered.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

from luthier.conversation import Conversation
from luthier.embed import available
from luthier.errors import EvaluationError, printable
from luthier.evaluate.metrics.text import script, words
from luthier.evaluate.rules import tag_text
from luthier.evaluate.topics import topics
from luthier.metric import Floats
from luthier.records import CoverageReport, Region

MAX_ROWS = 2_000
"""Of each side, drawn by seed: topics of more take minutes and find little more."""
MIN_ROWS = 10
"""A region of fewer rows, both sides together, is not looked at."""
MAX_VALUES = 20
"""A tag of more values is a key or a number, no kind."""
MAX_TOPICS, ROWS_PER_TOPIC = 20, 25
MAX_WORDS = 200
LENGTHS = 5
SHUFFLES, BLOCK = 1_000, 100
ALPHA = 0.05
HALF_WIDTH = 0.1
"""How well a region should be known: half of a 95 % interval, in points of a share of right answers."""
LISTED = 10

By = Literal["topic", "word"]
Cut = tuple[str, Sequence[Collection[str]]]
"""What regions are told apart by, and the regions of each row."""


def coverage(
    test: Sequence[Conversation], requests: Sequence[Conversation], seed: int, by: By | None = None
) -> CoverageReport:
    """Where the test set lacks what the requests have, in shares and in rows.

    `by`: what subjects are told apart by; None: topics where sentence embeddings are installed, else words. Topics
    need English; words hold for any language of `text.words`, but see each word by itself.
    Raises EvaluationError LU-E012 where one side is empty.
    """
    if not test or not requests:
        found = "there is no test row" if requests else "there is no request"
        raise EvaluationError.of("LU-E012", "evaluate.requests", f"{found}: nothing to compare")
    by = by or ("topic" if available() else "word")
    rng = np.random.default_rng(seed)
    rows = [*_drawn(test, rng), *_drawn(requests, rng)]
    n_test = min(len(test), MAX_ROWS)
    keys, inside = _regions(list(_cuts(rows, n_test, by, seed)), len(rows))
    p = _p_values(inside, n_test, _units(rows, n_test), rng)
    regions = [_region(*key, inside[:n_test, r], inside[n_test:, r], float(p[r])) for r, key in enumerate(keys)]
    regions.sort(key=lambda region: region.test - region.requests)
    least = min((region.p for region in regions), default=1.0)
    return CoverageReport(
        n_test=n_test,
        n_requests=len(rows) - n_test,
        p=least,
        half_width=HALF_WIDTH,
        regions=tuple(regions),
        lines=tuple(_lines(regions, least, len(test), len(requests))),
    )


def rows_for(half_width: float, confidence: float = 0.95) -> int:
    """Rows at which the interval of a proportion is no wider to each side, wherever it lies (Wilson's at one half)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return max(1, math.ceil(z * z * (1 / (4 * half_width**2) - 1)))


def _drawn(rows: Sequence[Conversation], rng: np.random.Generator) -> list[Conversation]:
    return [rows[i] for i in sorted(rng.permutation(len(rows))[:MAX_ROWS])]


def _cuts(rows: Sequence[Conversation], n_test: int, by: By, seed: int) -> Iterator[Cut]:
    """Each cut looks at all rows alike: only then are shuffled sides as likely as the true ones."""
    texts = [c.asked_text for c in rows]
    for tag in sorted({t for c in rows[:n_test] for t in c.tags} & {t for c in rows[n_test:] for t in c.tags}):
        values = [tag_text(c.tags.get(tag)) for c in rows]
        if 1 < len(set(values)) <= MAX_VALUES:
            yield f"tag {tag}", [(value,) for value in values]
    bags = [set(words(text)) for text in texts]
    yield "length", _lengths([len(words(text)) for text in texts])
    yield "script", [((script(text) or "none").capitalize(),) for text in texts]
    if by == "topic":
        of_row, names = topics(texts, max(2, min(MAX_TOPICS, len(rows) // ROWS_PER_TOPIC)), seed)
        yield "topic", [(names[topic],) for topic in of_row]
    else:
        commonest = {word for word, _ in Counter(word for bag in bags for word in sorted(bag)).most_common(MAX_WORDS)}
        yield "word", [bag & commonest for bag in bags]


def _lengths(counts: Sequence[int]) -> list[tuple[str]]:
    """Ranges of about equally many rows."""
    ends = sorted({int(np.quantile(counts, i / LENGTHS)) for i in range(1, LENGTHS)})
    starts = [0, *(end + 1 for end in ends)]
    names = [f"{a} to {b} words" if a < b else f"{b} words" for a, b in zip(starts, ends, strict=False)]
    names.append(f"{starts[-1]} words or more")
    return [(names[int(np.searchsorted(ends, count))],) for count in counts]


def _regions(cuts: Sequence[Cut], n: int) -> tuple[list[tuple[str, str]], Floats]:
    """What and name of each region that is looked at, and (n, R) whether a row is in it."""
    of_row = dict(cuts)
    counts = {what: Counter(name for names in of_row[what] for name in names) for what in of_row}
    keys = [(what, name) for what in counts for name, held in sorted(counts[what].items()) if held >= MIN_ROWS]
    return keys, np.array([[name in of_row[what][i] for what, name in keys] for i in range(n)], dtype=np.float64)


def _region(what: str, name: str, test: Floats, requests: Floats, p: float) -> Region:
    n_test = int(test.sum())
    return Region(
        by=what,
        name=name,
        requests=float(requests.mean()),
        test=float(test.mean()),
        n_test=n_test,
        rows_lacking=max(0, rows_for(HALF_WIDTH) - n_test),
        p=p,
    )


def _units(rows: Sequence[Conversation], n_test: int) -> list[Hashable]:
    """What is shuffled as one: the unlike rows of a family. One request that came many times came each time anew."""
    members = Counter(family for family, _ in {(c.family, c.id) for c in rows})
    return [(i < n_test, c.family) if members[c.family] > 1 else i for i, c in enumerate(rows)]


def _p_values(inside: Floats, n_test: int, units: Sequence[Hashable], rng: np.random.Generator) -> Floats:
    """(R,) two-sided p of equal shares, adjusted for all regions."""
    index = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    of_row = np.array([index[unit] for unit in units])
    counts = np.zeros((len(index), inside.shape[1] + 1))  # (U, R + 1), the last column counts rows
    np.add.at(counts, of_row, np.hstack([inside, np.ones((len(inside), 1))]))
    sides = np.zeros(len(index), dtype=bool)
    sides[of_row[:n_test]] = True
    seen = _differences(sides[None], counts)[0]  # (R,)
    beaten = np.zeros_like(seen)
    for _ in range(SHUFFLES // BLOCK):
        shuffled = rng.permuted(np.tile(sides, (BLOCK, 1)), axis=1)  # (B, U)
        largest = _differences(shuffled, counts).max(axis=1, initial=0.0)  # (B,)
        beaten += (largest[:, None] >= seen - 1e-9).sum(axis=0)
    return np.asarray((1 + beaten) / (1 + SHUFFLES))


def _differences(sides: np.ndarray[tuple[int, int], np.dtype[np.bool_]], counts: Floats) -> Floats:
    """(B, R): |z| of the two sides' shares, for each choice of the test side."""
    test, total = sides @ counts, counts.sum(axis=0)  # (B, R + 1), (R + 1,)
    n_test, n_requests = test[:, -1:], total[-1] - test[:, -1:]
    p = total[:-1] / total[-1]
    error = np.sqrt(np.maximum(p * (1 - p), 1e-12) * (1 / n_test + 1 / n_requests))
    return np.asarray(np.abs(test[:, :-1] / n_test - (total[:-1] - test[:, :-1]) / n_requests) / error)


def _lines(regions: Sequence[Region], p: float, n_test: int, n_requests: int) -> Iterator[str]:
    kinds = ", ".join(sorted({region.by for region in regions})) or "nothing"
    outcome = "they differ" if p < ALPHA else "no difference shown"
    yield f"{n_test:,} test rows against {n_requests:,} requests, by {kinds}: {outcome} (p = {p:.3g})"
    if max(n_test, n_requests) > MAX_ROWS:
        yield f"looked at: at most {MAX_ROWS:,} rows of each, drawn by seed"
    for region in regions:
        if region.p < ALPHA:
            word = "too few" if region.test < region.requests else "more than their share"
            shares = f"{region.requests:.1%} of the requests, {region.test:.1%} of the test rows"
            yield f"{word}: {_named(region)}: {shares} (p = {region.p:.2g}){_to_add(region)}"
    short = [r for r in regions if r.by != "word" and r.p >= ALPHA and r.rows_lacking and r.requests]
    if short:
        least = ", ".join(f"{_named(r)} ({r.n_test})" for r in sorted(short, key=lambda r: -r.requests)[:LISTED])
        yield f"in proportion, but under {rows_for(HALF_WIDTH)} rows to judge each by itself: {least}"


def _named(region: Region) -> str:
    return f"{region.by} '{printable(region.name, 60)}'"


def _to_add(region: Region) -> str:
    if not region.rows_lacking or region.test >= region.requests:
        return ""
    return f"; {region.rows_lacking} more rows would judge it to within {HALF_WIDTH * 100:.0f} points"
