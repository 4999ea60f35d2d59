"""The verdict's calibration: Luthier's gate and four other rules on the same simulated comparisons.

    python benchmarks/verdict.py [--gates 10000] [--sizes 50 200 1000] [--quick] [--pilots 200]

Each gate draws a test set that never leaves its distribution, compares two models on it by `luthier.stats.compare`
and judges by `luthier.release.gate.judge_rule`, at 95 %. Three truths are drawn: no change, a loss of exactly the
margin (2 % of the baseline), and the gain that `luthier.power.detectable` plans for 80 % power: from a million other
rows without a change, and then from a million with the gain of this first plan. Where so many gates are refused that no
gain has 83 % power, the plan is for 70 %. `--pilots` measures instead what pilots as small as the test set say.

The other rules judge the same draws:

* mean: improved if the tuned mean is above the baseline's;
* drop: regressed if the tuned mean is more than 2 % of the baseline below it;
* unpaired z: a change is real if |z| > 1.96, z of two independent means (lm-evaluation-harness' comparison of models);
* bootstrap: the 2.5 and 97.5 percentiles of 1,000 resamples of the paired differences, sample by sample.

It says nothing of the luck of training: a simulated model is a distribution of scores.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.metric import Floats, Sample, SumMetric
from luthier.power import Gate, Pilot, detectable, plan
from luthier.records import Comparison, RuleResult
from luthier.release.gate import judge_rule
from luthier.settings import Rule
from luthier.stats import POWER, compare

SEED = 20261122
CONFIDENCE = 0.95
MARGIN = 0.02
RESAMPLES = 1000
PILOT_ROWS = 1_000_000
NEAR = 0.03
LESS_POWER = 0.7
BLOCK = 250
"""Gates that are drawn at once, and that share the bootstrap's resamples."""
BEAT = Rule(metric="score", must="beat_baseline")
KEEP = Rule(metric="score", must="not_regress", by_relative=MARGIN)

Pairs = tuple[Floats, Floats]
"""Scores of tuned and of baseline, `(gates, n)` each."""
Draw = Callable[[np.random.Generator, tuple[int, int], float], Pairs]
"""Of a generator, `(gates, n)` and the true gain."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A distribution of scores; the baseline's true mean is the same whatever the gain."""

    draw: Draw
    mean: float
    cluster_sizes: tuple[int, ...] = (1,)
    """Of consecutive samples, over and over."""


def right_or_wrong(discordant: float) -> Scores:
    """Half of the baseline's answers are right; a gain above `discordant` makes more of them differ."""

    def draw(rng: np.random.Generator, shape: tuple[int, int], gain: float) -> Pairs:
        differ, u = max(discordant, gain), rng.random(shape)
        won, lost = u < (differ + gain) / 2, u > 1 - (differ - gain) / 2
        both = rng.random(shape) < (0.5 - (differ - gain) / 2) / (1 - differ)
        return np.where(lost, 0.0, won | both), np.where(won, 0.0, lost | both)

    return Scores(draw, 0.5)


def bounded(rng: np.random.Generator, shape: tuple[int, int], gain: float) -> Pairs:
    """Scores in [0, 1], most of them high: half of the answers stay, the others are drawn anew."""
    baseline, mean = rng.beta(2, 1, shape), 2 / 3 + 2 * gain
    return np.where(rng.random(shape) < 0.5, baseline, rng.beta(3 * mean, 3 - 3 * mean, shape)), baseline


def shifted(noise: Callable[[np.random.Generator, tuple[int, int]], Floats]) -> Draw:
    def draw(rng: np.random.Generator, shape: tuple[int, int], gain: float) -> Pairs:
        baseline = rng.beta(2, 2, shape)
        return baseline + gain + 0.15 * noise(rng, shape), baseline

    return draw


def rare_losses(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Many small gains and rare large losses, which is the side that deceives a gate; skewness -6.2."""
    return np.asarray(np.exp(0.5) - np.exp(rng.standard_normal(shape)))


def shared(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Half of the variance is that of the cluster."""
    owner = clusters(shape[1], CLUSTERS)
    return np.asarray((rng.standard_normal(shape)[:, owner] + rng.standard_normal(shape)) / np.sqrt(2))


def clusters(n: int, sizes: Sequence[int]) -> list[int]:
    """The cluster of each of `n` samples."""
    found = [i for i in range(n) for _ in range(sizes[i % len(sizes)])]
    return found[:n]


CLUSTERS = (1, 2, 3)
SCORES = {
    "right or wrong, 5 % discordant": right_or_wrong(0.05),
    "right or wrong, 20 % discordant": right_or_wrong(0.20),
    "right or wrong, 50 % discordant": right_or_wrong(0.50),
    "bounded": Scores(bounded, 2 / 3),
    "log-normal (sigma 1) losses": Scores(shifted(rare_losses), 0.5),
    "Student t, 2.5 degrees": Scores(shifted(lambda rng, shape: rng.standard_t(2.5, shape)), 0.5),
    "clusters of 1 to 3": Scores(shifted(shared), 0.5, CLUSTERS),
}


def comparer(n: int, sizes: Sequence[int]) -> Callable[[Floats, Floats], Comparison]:
    """`compare` for scores `(n,)`. The samples are made once, and say where their score is found."""
    owners = clusters(n, sizes)
    tuned, baseline = (
        [Sample(str(i), str(c), "", "", side, 0.0, i, i) for i, c in enumerate(owners)]
        for side in ("tuned", "baseline")
    )

    def run(new: Floats, old: Floats) -> Comparison:
        scores = {"tuned": new.tolist(), "baseline": old.tolist()}
        metric = SumMetric(
            "score", lambda s: (scores[s.answer][s.n_tokens], 1.0), lambda sums: sums[..., 0] / sums[..., 1]
        )
        return compare(metric, tuned, baseline, confidence=CONFIDENCE)

    return run


def ours(pairs: Pairs, run: Callable[[Floats, Floats], Comparison], gain: float) -> Iterator[dict[str, float]]:
    for new, old in zip(*pairs, strict=True):
        seen = run(new, old)
        judged: list[RuleResult] = [judge_rule(rule, seen) for rule in (BEAT, KEEP)]
        yield {
            "beat": judged[0].outcome == "PASS",
            "keep": judged[1].outcome == "PASS",
            "covered": seen.low <= gain <= seen.high,
            "used": seen.trouble is None,
        }


def peers(pairs: Pairs, rng: np.random.Generator) -> dict[str, Floats]:
    """What the other rules say of each gate `(gates,)`."""
    tuned, baseline = pairs
    n, difference = tuned.shape[1], tuned - baseline
    mean, base = difference.mean(axis=1), baseline.mean(axis=1)
    z = mean / np.sqrt((tuned.var(axis=1, ddof=1) + baseline.var(axis=1, ddof=1)) / n)
    drawn = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n  # (RESAMPLES, n)
    low = np.percentile(difference @ drawn.T, 2.5, axis=1)
    return {
        "mean beat": mean > 0,
        "drop keep": mean >= -MARGIN * base,
        "z beat": z > 1.96,
        "z keep": z >= -1.96,
        "bootstrap beat": low > 0,
        "bootstrap keep": low > -MARGIN * base,
    }


def simulate(scores: Scores, n: int, gates: int, gain: float, seed: Sequence[int]) -> dict[str, Floats]:
    """What Luthier and the other rules say of each of `gates` draws `(gates,)`."""
    rng, run = np.random.default_rng(seed), comparer(n, scores.cluster_sizes)
    blocks = []
    for start in range(0, gates, BLOCK):
        pairs = scores.draw(rng, (min(BLOCK, gates - start), n), gain)
        rows = list(ours(pairs, run, gain))
        blocks.append({key: np.array([row[key] for row in rows]) for key in rows[0]} | peers(pairs, rng))
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


def pilot(name: str, n: int, gain: float, seed: Sequence[int]) -> Pilot:
    """The differences of `n` other rows, with this true gain."""
    scores = SCORES[name]
    tuned, baseline = scores.draw(np.random.default_rng(seed), (1, n), gain)
    owners = np.array(clusters(n, scores.cluster_sizes))
    return Pilot(tuned[0].astype(float) - baseline[0], owners, name.startswith("right or wrong"))


def planned(name: str, n: int, seed: Sequence[int]) -> tuple[float, float]:
    """The gain that `n` rows are planned to show, and with which power."""
    gain, power = 0.0, POWER
    for stage in (0, 1):
        known = pilot(name, PILOT_ROWS, gain, (*seed, stage))
        reached = detectable(known, n, Gate(confidence=CONFIDENCE, power=POWER + NEAR))
        power = LESS_POWER if reached is None else POWER
        found = detectable(known, n, Gate(confidence=CONFIDENCE, power=power))
        assert found is not None
        gain = found
    return gain, power


def measure_pilots(name: str, n: int, pilots: int) -> str:
    """Of the ranges that pilots of `n` rows give for `n` rows, how many hold what the distribution itself says."""
    seed = (SEED, list(SCORES).index(name), n, 4)
    known = detectable(pilot(name, PILOT_ROWS, 0.0, (*seed, 0)), n)
    plans = [plan(pilot(name, n, 0.0, (*seed, 1, i)), rows=n) for i in range(pilots)]
    ends = [tuple(math.inf if end is None else end for end in (p.low, p.gain, p.high)) for p in plans]
    sought = math.inf if known is None else known
    held = np.array([low <= sought <= high for low, _, high in ends])
    off = np.percentile([gain / sought for _, gain, _ in ends], (5, 50, 95), method="nearest")
    cells = [f"{sought:.3f}", share(held), " / ".join(f"{x:.2f}" for x in off)]
    return "| " + " | ".join([name, str(n), *cells]) + " |"


def measure(name: str, n: int, gates: int) -> tuple[str, str]:
    """The line of Luthier's table and that of the comparison. A star: not as promised."""
    scores, seed = SCORES[name], (SEED, list(SCORES).index(name), n)
    none = simulate(scores, n, gates, 0.0, (*seed, 0))
    loss = simulate(scores, n, gates, -MARGIN * scores.mean, (*seed, 1))
    effect, power = planned(name, n, (*seed, 3))
    gain = simulate(scores, n, gates, effect, (*seed, 2))
    used = np.concatenate([none["used"], loss["used"]])
    covered = np.concatenate([none["covered"], loss["covered"]])[used]
    cells = [
        share(none["beat"], at_most=0.05),
        share(loss["keep"], at_most=0.05),
        share(covered, at_least=0.94) if len(covered) else "-",
        f"{1 - used.mean():.1%}",
        f"{effect:.3f}" + (f" ({power:.0%})" if power != POWER else ""),
        share(gain["beat"], at_least=power - NEAR, at_most=power + NEAR),
    ]
    sides = [
        " / ".join(f"{100 * side[f'{rule}{key}'].mean():.1f}" for rule in rules)
        for side, key, rules in [
            (none, "beat", ("", "mean ", "z ", "bootstrap ")),
            (loss, "keep", ("", "drop ", "z ", "bootstrap ")),
            (gain, "beat", ("", "mean ", "z ", "bootstrap ")),
        ]
    ]
    return "| " + " | ".join([name, str(n), *cells]) + " |", "| " + " | ".join([name, str(n), *sides]) + " |"


def share(seen: Floats, at_least: float = 0.0, at_most: float = 1.0) -> str:
    """Per cent, with the exact 99 % interval (Clopper & Pearson)."""
    from scipy.stats import beta

    count, n = int(seen.sum()), len(seen)
    low = beta.ppf(0.005, count, n - count + 1) if count else 0.0
    high = beta.ppf(0.995, count + 1, n - count) if count < n else 1.0
    star = "" if at_least <= count / n <= at_most else " *"
    return f"{100 * count / n:.1f} ({100 * low:.1f} to {100 * high:.1f}){star}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gates", type=int, default=10_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--quick", action="store_true", help="400 gates each, to see that it runs")
    parser.add_argument("--scores", default="", help="only those whose name begins so, such as 'right'")
    parser.add_argument("--pilots", type=int, help="instead: so many small pilots of each kind and size")
    arguments = parser.parse_args()
    names = [name for name in SCORES if name.startswith(arguments.scores)]
    if arguments.pilots:
        print(
            "| scores | n | gain | in the range | of the gain: 5 % / half / 95 % of the plans |\n|---|---|---|---|---|"
        )
        for n in arguments.sizes:
            for name in names:
                print(measure_pilots(name, n, arguments.pilots), flush=True)
        return
    gates = 400 if arguments.quick else arguments.gates
    rows = []
    for n in arguments.sizes:
        for name in names:
            rows.append(measure(name, n, gates))
            print(*rows[-1], sep="\n", file=sys.stderr, flush=True)
    print(f"{gates:,} gates a cell; per cent (exact 99 % interval); *: not as promised\n")
    print("| scores | n | PASS, no change | PASS, loss of the margin | coverage | refused | planned gain | power |")
    print("|---|---|---|---|---|---|---|---|", *(row for row, _ in rows), sep="\n")
    print("\n| scores | n | no change called a gain: Luthier / mean / unpaired z / bootstrap ", end="")
    print("| loss let through: Luthier / drop / unpaired z / bootstrap | planned gain seen: as the first |")
    print("|---|---|---|---|---|", *(row for _, row in rows), sep="\n")


if __name__ == "__main__":
    main()
