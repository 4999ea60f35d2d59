"""From a recipe's `{use: rouge1, stem: true}` to a metric, whoever wrote it.

A plug-in is either a *score function*, whose first parameter is called `sample`,

    def polite(sample: Sample, word: str = "please") -> float | bool | None: ...

averaged over the samples for which it is not None (higher is better, unless marked `@lower_is_better`), or else
a *factory* `(**params) -> Metric`. A parameter `labels` is filled with the task's labels, `folder` with the recipe's
folder. What a plug-in does wrong is said with its name and the sample that met it. Knows none of the metrics.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import EvaluationError, LuthierError, printable
from luthier.metric import Floats, MeanMetric, Metric, Sample, show
from luthier.plugins import METRICS
from luthier.settings import Use, metric_name


def build(use: Use, labels: tuple[str, ...], folder: Path | None) -> Metric:
    """The metric that a recipe names, under its reported name; `folder` is searched for `module:function` first.

    Raises RecipeError LU-R010, LU-R011 (not found), EvaluationError LU-E003 (cannot be made so). What it returns raises
    EvaluationError LU-E004 (it raised) and LU-E005 (it returned what no metric returns), naming the sample.
    """
    name, where = metric_name(use), f"metric '{use.use}'"
    found = METRICS.find(use.use, where, folder)
    parameters, params = inspect.signature(found).parameters, use.params
    if "labels" in parameters:
        params["labels"] = tuple(params.get("labels", labels))
        if not params["labels"] and parameters["labels"].default is inspect.Parameter.empty:
            raise EvaluationError.of(
                "LU-E003", where, "needs labels, and the task has none", "it is for classification"
            )
    if "folder" in parameters:
        params.setdefault("folder", folder)
    if next(iter(parameters), None) == "sample":
        score = partial(_number, partial(found, **params))
        return Checked(name, MeanMetric(name, score, getattr(found, "higher_is_better", True)))
    with _blaming("LU-E003", where):
        metric = found(**params)
    if not isinstance(metric, Metric):
        advice = "call the first parameter `sample` to write a score function, or return a luthier.metric.Metric"
        raise EvaluationError.of("LU-E003", where, f"its factory returned {_shown(metric)}, not a Metric", advice)
    return Checked(name, metric)


@dataclass(frozen=True, slots=True)
class Checked:
    """A metric under its reported name; what a plug-in does wrong is said together with the sample that met it."""

    name: str
    metric: Metric

    @property
    def higher_is_better(self) -> bool:
        return self.metric.higher_is_better

    def prepare(self, samples: Sequence[Sample]) -> None:
        with _blaming("LU-E004", f"metric '{self.name}'"):
            show(self.metric, samples)

    def stats(self, sample: Sample) -> Sequence[float] | None:
        where = f"sample {sample.id}: metric '{self.name}'"
        with _blaming("LU-E004", where):
            found = self.metric.stats(sample)
        if found is None:
            return None
        try:
            values = tuple(float(x) for x in found)
        except (TypeError, ValueError):
            values = ()
        if not values or not all(map(math.isfinite, values)):
            advice = "finite numbers, or None where the metric does not apply"
            raise EvaluationError.of("LU-E005", where, f"gave {_shown(found)}", advice)
        return values

    def combine(self, sums: Floats) -> Floats:
        where = f"metric '{self.name}'"
        with _blaming("LU-E004", where):
            values = np.asarray(self.metric.combine(sums), dtype=np.float64)
        if values.shape != sums.shape[:-1]:
            found = f"combine turned shape {sums.shape} into {values.shape}, not {sums.shape[:-1]}"
            raise EvaluationError.of("LU-E005", where, found, "take a statistic as sums[..., 0]")
        return values


@contextmanager
def _blaming(code: str, where: str) -> Iterator[None]:
    """A plug-in may raise anything: say whose it is, and where it happened."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        raise EvaluationError.of(code, where, f"raised {type(error).__name__}: {printable(str(error))}") from error


def _number(score: Callable[[Sample], Any], sample: Sample) -> float | None:
    """The score as a number; a text that happens to look like one is a mistake, so `float()` alone will not do."""
    value = score(sample)
    if value is None or isinstance(value, Real | np.bool_):
        return None if value is None else float(value)
    advice = "a number, True, False, or None where the metric does not apply"
    raise EvaluationError.of("LU-E005", f"sample {sample.id}", f"the metric's score is {_shown(value)}", advice)


def _shown(value: Any) -> str:
    return f"{printable(repr(value), 60)} ({type(value).__name__})"
