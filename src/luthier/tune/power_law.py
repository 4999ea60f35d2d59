"""What more rows would bring: a power law through a metric's values at several sizes, and how sure it is.

The value after training with n rows is taken for

    y(n) = a - b n^-c,    b >= 0 where more is better

(Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically"; Kaplan et al. 2020): more rows do no harm,
and bring ever less. a and b are least squares at each c of a grid, and the best c is taken; a stays within what the
metric may be where that is known.

The interval is a bootstrap of the whole: items are drawn anew, the same for all sizes, since all models were asked the
same; to each value the luck of training is added, with the spread between seeds pooled over the sizes; and each draw is
fitted anew. What it does not cover is that the law may not hold, above all beyond the largest size.

Shapes: P sizes, S seeds, G clusters of items, k statistics of a metric, B draws. Knows nothing of runs and recipes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.metric import Floats, Metric, Sample

DRAWS = 2_000
EXPONENTS = np.geomspace(0.05, 2.0, 40)
MIN_SIZES = 3


@dataclass(frozen=True, slots=True)
class Forecast:
    """The metric at the present size and at another, and the gain: positive is better."""

    now: float
    then: float
    gain: float
    low: float
    high: float


def forecast(
    metric: Metric,
    sizes: Sequence[int],
    answers: Sequence[Sequence[Sequence[Sample]]],
    *,
    now: int,
    then: int,
    confidence: float,
    seed: int,
) -> Forecast:
    """What `then` rows would bring over `now`, with an interval.

    Args:
        answers: For each size and seed, the same samples in the same order.

    The fit is of the values as they are; interval and fit may disagree a little, as ever with a bootstrap.
    """
    sums = _sums(metric, answers)  # (P, S, G, k)
    n_sizes, n_seeds, n_items, _ = sums.shape
    sign = 1.0 if metric.higher_is_better else -1.0
    values = _combined(metric, sums.sum(axis=2))  # (P, S)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n_items, np.full(n_items, 1 / n_items), size=DRAWS).astype(float)  # (B, G)
    drawn = _combined(metric, np.einsum("bg,psgk->bpsk", weights, sums)).mean(axis=2)  # (B, P)
    if n_seeds > 1:
        freedom = n_sizes * (n_seeds - 1)
        spread = math.sqrt(float(values.var(axis=1, ddof=1).mean()) / n_seeds)
        drawn = drawn + spread * rng.standard_t(freedom, size=drawn.shape)
    whole = np.concatenate([values.mean(axis=1)[None], drawn])
    bound = _bound(metric, values)
    at = _fitted(np.asarray(sizes, dtype=float), sign * whole, np.array([now, then], dtype=float), bound)
    gains = at[:, 1] - at[:, 0]
    low, high = np.quantile(gains[1:], [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Forecast(sign * at[0, 0], sign * at[0, 1], float(gains[0]), float(low), float(high))


def _bound(metric: Metric, values: Floats) -> float:
    """The best that the metric may be, with its sign: shares end at 1, and what is better small ends at 0."""
    if not metric.higher_is_better:
        return 0.0
    return 1.0 if float(values.min()) >= -1 and float(values.max()) <= 1 else math.inf


def _fitted(sizes: Floats, values: Floats, wanted: Floats, bound: float) -> Floats:
    """`(B, P)` values, more is better -> `(B, W)` values of the law at the sizes that are wanted."""
    best = np.full(len(values), np.inf)
    found = np.zeros((len(values), len(wanted)))
    scale = sizes.max()
    for c in EXPONENTS:
        x, at = (sizes / scale) ** -c, (wanted / scale) ** -c
        dx = x - x.mean()
        b = np.maximum(-(values @ dx) / (dx @ dx), 0.0)
        a = np.minimum(values.mean(axis=1) + b * x.mean(), bound)
        error = ((values - a[:, None] + b[:, None] * x) ** 2).sum(axis=1)
        better = error < best
        best[better] = error[better]
        found[better] = (a[:, None] - b[:, None] * at)[better]
    return found


def _sums(metric: Metric, answers: Sequence[Sequence[Sequence[Sample]]]) -> Floats:
    """`(P, S, G, k)`: statistics summed by cluster, of the samples to which the metric applies after every training."""
    runs = [run for size in answers for run in size]
    found = [[metric.stats(sample) for sample in run] for run in runs]
    applies = [i for i in range(len(runs[0])) if all(one[i] is not None for one in found)]
    clusters = {cluster: g for g, cluster in enumerate(dict.fromkeys(runs[0][i].cluster for i in applies))}
    of = [clusters[runs[0][i].cluster] for i in applies]
    table = np.array([[one[i] for i in applies] for one in found], dtype=float)  # (P S, items, k)
    sums = np.zeros((len(runs), len(clusters), table.shape[-1]))
    for item, cluster in enumerate(of):
        sums[:, cluster] += table[:, item]
    return sums.reshape(len(answers), -1, *sums.shape[1:])


def _combined(metric: Metric, sums: Floats) -> Floats:
    with np.errstate(all="ignore"):
        return np.asarray(metric.combine(sums), dtype=float)
