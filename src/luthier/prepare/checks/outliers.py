"""Outliers: rows that ask for something unlike what all others ask for.

How far a row is from its k-th nearest neighbour (Ramaswamy, Rastogi and Shim 2000), by sentence embeddings; it is
suspect beyond the outer fence of all rows' distances (Tukey 1977), so that a set of which no row stands out has none.
Local outlier factors (Breunig et al. 2000) were worse wherever either found much: `benchmarks/checks_meaning.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luthier.embed import PACKAGE, embed
from luthier.prepare.checks.contract import Found, Looked, Suspect, needs
from luthier.prepare.checks.vectors import MOST_ROWS, Floats, drawn, nearest, texts_of, told
from luthier.settings.section import Count, Fraction

CODE = "LU-D177"
NEIGHBOURS = 20
"""So that as many strange rows that are alike do not hide one another."""
FENCE = 1.5
LEAST_ROWS = 100


@needs("meaning", PACKAGE)
def outliers(looked: Looked, most: Fraction = 0.02, rows: Count = MOST_ROWS) -> Found:
    """Args:
    most: The greatest share of the rows that may be suspect; the farthest are.
    rows: At most so many are looked at.
    """
    if len(looked) < LEAST_ROWS:
        return Found(notes=[f"outliers were not looked for: {len(looked)} rows are fewer than {LEAST_ROWS}"])
    places = drawn(np.arange(len(looked)), rows, looked.seed)
    away = distances(embed(texts_of(looked, places)))
    fence = beyond(away)
    far = np.flatnonzero(away > fence)
    far = far[np.argsort(-away[far], kind="stable")][: int(most * len(places))]
    why = f"unlike all others: its {NEIGHBOURS}th nearest is at a distance of {{:.2f}}, that of most within {{:.2f}}"
    suspects = [
        Suspect(int(places[i]), float(1 - fence / away[i] / 2), why.format(away[i], fence)) for i in np.sort(far)
    ]
    return Found(
        suspects, CODE, "drop it, or add more of its kind if it belongs here", notes=told(len(places), len(looked))
    )


def distances(vectors: Floats, k: int = NEIGHBOURS) -> NDArray[np.float32]:
    """(n,) Euclidean, to the k-th nearest of the others."""
    cosines, _ = nearest(vectors, vectors, k, itself=True)
    found: NDArray[np.float32] = np.sqrt(np.maximum(2 - 2 * cosines[:, -1], 0))
    return found


def beyond(away: NDArray[np.float32]) -> float:
    """The upper fence: the third quartile and half as much again as lies between the quartiles."""
    low, high = np.quantile(away, [0.25, 0.75])
    return float(high + FENCE * (high - low))
