"""How much data is enough: the recipe trained on nested parts of its rows, and what twice the rows would bring.

The rows are those of trials (`nested.py`): the recipe's own test and validation sides take no part, each part of the
training rows holds the smaller ones, and all models are asked the same. `power_law.py` has the statistics.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from luthier import lifecycle
from luthier.progress import Quiet, Reporter
from luthier.records import AuditReport, CurvePoint, LearningCurve
from luthier.settings import fingerprint
from luthier.target import open_target, workspace_of
from luthier.tune.nested import make_nest
from luthier.tune.power_law import forecast
from luthier.tune.shop import Shop, measured
from luthier.tune.variants import BASELINE, check_seeds

SHARES = (0.125, 0.25, 0.5, 1.0)
HELD_OUT = 0.3
"""Of the training side, as trials hold it out by default: half of it is asked, and half is left to them."""


def learning_curve(
    target: str | Path,
    *,
    seeds: int = 2,
    overrides: tuple[str, ...] = (),
    metric: str | None = None,
    workspace: Path | None = None,
    report: Reporter | None = None,
) -> tuple[LearningCurve, Path]:
    """The curve, and the file that it is kept in.

    Args:
        seeds: Trainings at each size, with the recipe's seed and the next.
        metric: What is forecast; None: the recipe's first rule's on its own test rows.

    Raises as `trials` does, and Stopped where a training stops.
    """
    say = report or Quiet()
    workspace = workspace or workspace_of(target)
    recipe, origin = open_target(target, overrides, say)
    chosen = check_seeds(seeds, recipe.seed)
    outer = lifecycle.run(target, overrides=overrides, workspace=workspace, until="prepare", report=say)
    nest = make_nest(recipe, origin, outer.folder, workspace, HELD_OUT)
    shop = Shop(nest, {}, measured(nest, metric), chosen, SHARES, (), workspace, say)
    say.say(f"{len(SHARES) * len(chosen)} runs, of the cost of {sum(SHARES) * len(chosen):.3g} full ones")
    answers, points = [], []
    for share in SHARES:
        answers.append(shop.ask(BASELINE, chosen, share, "choose"))
        runs = shop.runs[-len(chosen) :]
        n = AuditReport.read(workspace / runs[-1].run / "prepare" / "audit.json").sides["train"]
        points.append(CurvePoint(rows=n, values=tuple(run.value for run in runs)))
    now = AuditReport.read(outer.folder / "prepare" / "audit.json").sides["train"]
    judge, confidence = shop.metric(shop.runs[-1].run), recipe.evaluate.confidence
    sizes = [point.rows for point in points]
    told = forecast(judge, sizes, answers, now=now, then=2 * now, confidence=confidence, seed=recipe.seed)
    found = LearningCurve(
        name=recipe.name,
        metric=judge.name,
        higher_is_better=judge.higher_is_better,
        confidence=confidence,
        asked=len(answers[0][0]),
        points=tuple(points),
        rows=now,
        value=told.now,
        twice=told.then,
        gain=told.gain,
        low=told.low,
        high=told.high,
        runs=tuple(shop.runs),
    )
    asked = fingerprint([recipe.model_dump(mode="json"), chosen, SHARES, found.metric, HELD_OUT])
    path = nest.folder / f"learning-curve-{asked[:6]}.json"
    found.write(path)
    return found, path


def in_words(curve: LearningCurve) -> str:
    """One sentence: what twice the data would probably bring."""
    way = "higher" if curve.higher_is_better else "lower"
    mean = fmean(curve.points[-1].values)
    interval = f"{curve.confidence:.0%} interval {curve.low:.2g} to {curve.high:.2g}"
    brings = f"twice the rows ({2 * curve.rows:,}) would probably bring {curve.metric} {curve.gain:.2g} {way}"
    return f"{brings} ({interval}), from {curve.value:.3g}; {mean:.3g} was seen with {curve.points[-1].rows:,} rows"
