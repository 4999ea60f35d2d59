"""Whether the forecast of `luthier check --learning-curve` keeps its promise, by simulation.

    python benchmarks/learning_curve.py [--curves 200]

A power law gives the share of right answers after 100, 200, 400 and 800 rows; each training's luck and each item's ease
are drawn; models answer. Asked is what 1,600 rows bring over 800. Told: how often the interval holds the true gain
(nominal 90 %), and how wide it is. The last law is none: it breaks off at 400 rows, as a model at its limit does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import numpy as np

from luthier.metric import MeanMetric, Sample
from luthier.tune.power_law import forecast

SIZES, NOW, THEN = (100, 200, 400, 800), 800, 1600
LAWS: dict[str, Callable[[float], float]] = {
    "0.9 - 4 n^-0.5": lambda n: 0.9 - 4 * n**-0.5,
    "0.95 - 1.2 n^-0.2": lambda n: 0.95 - 1.2 * n**-0.2,
    "0.7, whatever n": lambda n: 0.7,
    "a power law up to 400, then flat": lambda n: 0.9 - 4 * min(n, 400) ** -0.5,
}
RIGHT = MeanMetric("right", lambda s: s.answer == s.reference)


def answers(rng: np.random.Generator, law: Callable[[float], float], n_items: int, n_seeds: int, luck: float) -> list:
    ease = rng.normal(0, 0.15, n_items)
    found = []
    for n in SIZES:
        shares = law(n) + rng.normal(0, luck, n_seeds)
        right = rng.random((n_seeds, n_items)) < shares[:, None] + ease
        found.append(
            [[Sample(str(i), str(i), "?", "1", str(int(r)), 0.0, 1, 1) for i, r in enumerate(of)] for of in right]
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=200)
    n_curves = parser.parse_args().curves
    print("| law | items | seeds | luck | true gain | interval holds it | median gain told | median width |")
    print("|---|---|---|---|---|---|---|---|")
    for name, law in LAWS.items():
        for n_items, n_seeds, luck in ((60, 2, 0.02), (200, 2, 0.02), (200, 3, 0.05)):
            rng, true = np.random.default_rng(5), law(THEN) - law(NOW)
            told = [
                forecast(
                    RIGHT, SIZES, answers(rng, law, n_items, n_seeds, luck), now=NOW, then=THEN, confidence=0.9, seed=k
                )
                for k in range(n_curves)
            ]  # fmt: skip
            held = sum(f.low - 1e-12 <= true <= f.high for f in told) / n_curves
            gain, width = median(f.gain for f in told), median(f.high - f.low for f in told)
            print(
                f"| {name} | {n_items} | {n_seeds} | {luck} | {true:.3f} | {held:.0%} | {gain:.3f} | {width:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
