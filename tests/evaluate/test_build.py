"""A recipe's metric: the conventions for plug-ins, and what is said when one goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from luthier.errors import RecipeError, UserError
from luthier.evaluate.metrics.build import build
from luthier.metric import Metric
from luthier.settings import Use

from .samples import sample, stats, value

OWN = """
import numpy as np
from luthier.metric import MeanMetric
from luthier.metric import lower_is_better

def polite(sample, word="please"):
    return word in sample.answer

@lower_is_better
def rude(sample):
    return None if not sample.answer else "!" in sample.answer

def contains(sample):
    wanted = sample.tags.get("must_contain")
    return None if not wanted else all(text in sample.answer for text in wanted)

def is_label(sample, labels):
    return sample.answer in labels

def words(scale=1.0):
    return MeanMetric("anything", lambda s: scale * len(s.answer.split()), higher_is_better=False)

def fails(sample):
    return 1 / len(sample.answer)

def texts(sample):
    return "0.5"

def nan(sample):
    return float("nan")

def numpy_scores(sample):
    return np.float32(0.25) if sample.answer else np.bool_(True)

def nothing():
    return None

def picky(level):
    raise ValueError("must be\\x1b[31m 1 or 2")

class Odd:
    name, higher_is_better = "odd", True
    def __init__(self, stats=(1.0, 1.0), combine=lambda sums: sums[0]):
        self._stats, self._combine = stats, combine
    def stats(self, sample):
        return self._stats
    def combine(self, sums):
        return self._combine(sums)

def odd_shape():
    return Odd()

def odd_stats():
    return Odd(stats=("a", 1.0))

def no_stats():
    return Odd(stats=())

def single():
    return Odd(stats=3.0)

def odd_combine():
    return Odd(combine=lambda sums: sums[..., 7])
"""


@pytest.fixture
def own(tmp_path: Path):  # type: ignore[no-untyped-def]
    (tmp_path / "own.py").write_text(OWN)

    def make(name: str, labels: tuple[str, ...] = (), **params: object) -> Metric:
        return build(Use(use=f"own:{name}", **params), labels, tmp_path)

    return make


def test_a_score_function_is_averaged_under_its_own_name(own) -> None:  # type: ignore[no-untyped-def]
    metric = own("polite", word="thanks")
    assert (metric.name, metric.higher_is_better) == ("polite", True)
    assert value(metric, [sample("thanks a lot"), sample("no")]) == 0.5
    assert isinstance(metric, Metric)


def test_none_means_that_the_metric_does_not_apply(own) -> None:  # type: ignore[no-untyped-def]
    metric = own("contains")
    samples = [sample("1.35 litres", tags={"must_contain": ["1.35"]}), sample("so much")]
    assert stats(metric, samples).tolist() == [[1.0, 1.0]]


def test_a_score_function_may_say_that_less_is_better(own) -> None:  # type: ignore[no-untyped-def]
    assert not own("rude").higher_is_better


def test_numpy_scores_are_numbers(own) -> None:  # type: ignore[no-untyped-def]
    assert stats(own("numpy_scores"), [sample("x"), sample("")]).tolist() == [[0.25, 1.0], [1.0, 1.0]]


def test_a_factory_makes_a_metric_and_the_recipe_names_it(own) -> None:  # type: ignore[no-untyped-def]
    metric = own("words", scale=2.0)
    assert (metric.name, metric.higher_is_better) == ("words", False)
    assert value(metric, [sample("one two"), sample("three")]) == 3.0


def test_labels_are_given_unless_the_recipe_sets_them(own, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert value(own("is_label", ("yes", "no")), [sample("yes")]) == 1.0
    assert value(build(Use(use="own:is_label", labels=["maybe"]), ("yes", "no"), tmp_path), [sample("yes")]) == 0.0


def test_labels_that_the_task_has_not(own) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="LU-E003 metric 'own:is_label': needs labels"):
        own("is_label")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r"LU-E004 sample s7: metric 'fails': raised ZeroDivisionError"),
        ("texts", r"LU-E005 sample s7: the metric's score is '0.5' \(str\)"),
        ("nan", r"LU-E005 sample s7: metric 'nan': gave \(nan, 1.0\)"),
        ("odd_stats", r"LU-E005 sample s7: metric 'odd_stats': gave \('a', 1.0\)"),
        ("no_stats", r"LU-E005 sample s7: metric 'no_stats': gave \(\)"),
        ("single", r"LU-E005 sample s7: metric 'single': gave 3.0 \(float\)"),
    ],
)
def test_a_mistake_names_the_metric_and_the_sample(own, name: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        own(name).stats(sample("", id="s7"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd_shape", r"LU-E005 metric 'odd_shape': combine turned shape \(5, 2\) into \(2,\), not \(5,\)"),
        ("odd_combine", r"LU-E004 metric 'odd_combine': raised IndexError"),
    ],
)
def test_a_combine_must_take_many_sums_at_once(own, name: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        own(name).combine(np.ones((5, 2)))


def test_a_factory_that_raises_or_makes_no_metric(own) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"LU-E003 metric 'own:picky': raised ValueError: must be\\x1b\[31m 1 or 2"):
        own("picky", level=3)
    with pytest.raises(UserError, match=r"LU-E003 metric 'own:nothing': its factory returned None \(NoneType\)"):
        own("nothing")


def test_built_in_metrics_say_what_they_allow() -> None:
    for use, message in [
        (Use(use="luthier.evaluate.metrics.labels:f1", average="makro"), "average: 'makro'; allowed: macro, micro"),
        (Use(use="luthier.evaluate.metrics.labels:f1", label="spam"), "label: 'spam' is none of the labels a, b"),
        (Use(use="bleu", tokenize="flores200"), "tokenize: 'flores200'; allowed"),
    ]:
        with pytest.raises(UserError, match=f"LU-E003 .*{message}"):
            build(use, ("a", "b"), None)


def test_no_such_metric(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="LU-R010 metric 'ruge': no metric is called"):
        build(Use(use="ruge"), (), tmp_path)
