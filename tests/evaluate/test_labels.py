"""Labels as they are written and as they are likeliest: against scikit-learn, by hand, and against hollow models."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
)

from luthier import stats
from luthier.errors import UserError
from luthier.evaluate.compare import Answers, compare_models
from luthier.evaluate.metrics import labels as module
from luthier.evaluate.metrics.build import build
from luthier.evaluate.metrics.labels import confusion, likeliest, probabilities, reliability
from luthier.metric import Metric, Sample
from luthier.plugins import METRICS
from luthier.prepare.derive import METRICS as RULED
from luthier.records import Comparison, EvalReport
from luthier.release.gate import judge_rule
from luthier.settings import Recipe, Use

from .samples import pairs, sample, value

LABELS = ("alpha", "beta", "gamma", "delta")
WRITTEN = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "label_skill", "invalid_label")
CHOSEN = ("choice_accuracy", "choice_balanced_accuracy", "choice_f1", "choice_skill", "label_nll", "brier", "ece")
LOWER = ("invalid_label", "label_nll", "brier", "ece")


def make(name: str, labels: tuple[str, ...] = LABELS, **params: object) -> Metric:
    return build(Use(use=f"luthier.evaluate.metrics.labels:{name}", **params), labels, None)


def chosen(rows: list[tuple[str, list[float]]], labels: tuple[str, ...] = LABELS) -> list[Sample]:
    """Samples of (true label, nats of each label)."""
    return [
        sample("?", true, id=f"s{i}", cluster=f"c{i}", choices=dict(zip(labels, nats, strict=True)))
        for i, (true, nats) in enumerate(rows)
    ]


def sure_of(label: str, true: str, i: int, answer: str = "", labels: tuple[str, ...] = LABELS) -> Sample:
    """A sample whose likeliest label is `label`."""
    nats = {name: 1.0 if name == label else 3.0 for name in labels}
    return sample(answer, true, id=f"s{i}", cluster=f"c{i}", choices=nats)


answered = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "none of it"))), min_size=1, max_size=30
)
nats_of = st.lists(st.floats(0, 40), min_size=len(LABELS), max_size=len(LABELS))
scored = st.lists(st.tuples(st.sampled_from(LABELS), nats_of), min_size=1, max_size=30)


# -- parity -------------------------------------------------------------------------------------------------------


@given(answered)
@settings(max_examples=60)
def test_label_metrics_are_those_of_scikit_learn(rows: list[tuple[str, str]]) -> None:
    true, answers = [r for r, _ in rows], [a for _, a in rows]
    occurring = sorted(set(true))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a label is never answered
        theirs = [accuracy_score(true, answers), balanced_accuracy_score(true, answers)]
        for name, score in {"precision": precision_score, "recall": recall_score, "f1": f1_score}.items():
            macro = score(true, answers, labels=occurring, average="macro", zero_division=0)
            micro = score(true, answers, labels=list(LABELS), average="micro", zero_division=0)
            weighted = score(true, answers, labels=list(LABELS), average="weighted", zero_division=0)
            one = score(true, answers, labels=[true[0]], average=None, zero_division=0)[0]
            assert value(make(name), pairs(rows)) == pytest.approx(macro, abs=1e-12)
            assert value(make(name, average="micro"), pairs(rows)) == pytest.approx(micro, abs=1e-12)
            assert value(make(name, average="weighted"), pairs(rows)) == pytest.approx(weighted, abs=1e-12)
            assert value(make(name, label=true[0]), pairs(rows)) == pytest.approx(one, abs=1e-12)
    for name, expected in zip(("accuracy", "balanced_accuracy"), theirs, strict=True):
        assert value(make(name), pairs(rows)) == pytest.approx(expected, abs=1e-12)
    assert value(make("invalid_label"), pairs(rows)) == pytest.approx(answers.count("none of it") / len(rows))


@given(scored)
@settings(max_examples=60)
def test_choice_metrics_are_those_of_scikit_learn(rows: list[tuple[str, list[float]]]) -> None:
    true, samples = [r for r, _ in rows], chosen(rows)
    choice = [LABELS[int(np.argmin(nats))] for _, nats in rows]
    p = np.exp(-np.array([nats for _, nats in rows]))
    p /= p.sum(axis=1, keepdims=True)
    order = np.argsort(LABELS)  # scikit-learn wants the labels sorted
    theirs = {
        "choice_accuracy": accuracy_score(true, choice),
        "choice_f1": f1_score(true, choice, labels=sorted(set(true)), average="macro", zero_division=0),
        "brier": brier_score_loss(true, p[:, order], labels=sorted(LABELS), scale_by_half=False),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs["choice_balanced_accuracy"] = balanced_accuracy_score(true, choice)
        if len(set(true)) > 1 and len(rows) > 1:
            theirs["choice_skill"] = max(0.0, balanced_accuracy_score(true, choice, adjusted=True))
    for name, expected in theirs.items():
        assert value(make(name), samples) == pytest.approx(expected, abs=1e-9), name


def test_label_nll_is_scikit_learns_log_loss_and_brier_of_two_labels_is_twice_theirs() -> None:
    rng = np.random.default_rng(0)
    rows = [(str(rng.choice(["ham", "spam"])), rng.normal(3, 1, 2).tolist()) for _ in range(50)]
    samples = chosen(rows, ("ham", "spam"))
    spam = [float(probabilities(s, ("ham", "spam"))[1]) for s in samples]  # type: ignore[index]
    true = [r == "spam" for r, _ in rows]
    labels = ("ham", "spam")
    assert value(make("label_nll", labels), samples) == pytest.approx(log_loss(true, spam), abs=1e-12)
    assert value(make("brier", labels), samples) == pytest.approx(2 * brier_score_loss(true, spam), abs=1e-12)


def test_expected_calibration_error_by_hand() -> None:
    def sure(p: float, right: bool) -> tuple[str, list[float]]:
        return "a" if right else "b", [-math.log(p), -math.log(1 - p)]

    # (0.5, 0.6]: 0.52 and 0.6, one right, gap |1 - 1.12|; (0.9, 1]: 0.92, 0.95, 0.99, two right, gap |2 - 2.86|.
    rows = [sure(0.52, True), sure(0.6, False), sure(0.92, True), sure(0.95, False), sure(0.99, True)]
    assert value(make("ece", ("a", "b")), chosen(rows, ("a", "b"))) == pytest.approx((0.12 + 0.86) / 5, abs=1e-9)
    assert value(make("ece", ("a", "b"), bins=1), chosen(rows, ("a", "b"))) == pytest.approx(0.98 / 5, abs=1e-9)


@given(answered)
@settings(max_examples=30)
def test_the_confusion_matrix_is_that_of_scikit_learn(rows: list[tuple[str, str]]) -> None:
    theirs = confusion_matrix(*zip(*rows, strict=True), labels=[*LABELS, "none of it"])
    assert np.array(confusion(pairs(rows), LABELS)).tolist() == theirs[:-1].tolist()


def test_the_confusion_matrix_of_the_likeliest_and_of_what_cannot_be_counted() -> None:
    samples = [sure_of("a", "b", 0, labels=("a", "b")), sample("a", "b"), sample("a", "neither")]
    assert confusion(samples, ("a", "b"), likeliest) == ((0, 0, 0), (1, 0, 0))
    assert confusion(samples, ("a", "b")) == ((0, 0, 0), (1, 0, 1))


choosing = st.lists(
    st.tuples(st.sampled_from(LABELS), st.lists(st.sampled_from([0.5, 1.0, 2.5]), min_size=4, max_size=4)),
    min_size=1,
    max_size=250,
)


@given(choosing, st.randoms())
@settings(max_examples=30)
def test_reliability_bins_hold_every_answer_once_whatever_the_order(rows: list[Any], rng: Any) -> None:
    samples = chosen(rows)
    bins = reliability(samples, LABELS, 0.95)
    assert sum(b.n for b in bins) == len(rows) and all(b.n > 0 for b in bins)
    assert all(b.low <= b.sureness + 1e-9 and b.sureness <= b.high + 1e-9 for b in bins)
    assert all(one.high < other.low for one, other in itertools.pairwise(bins)), "near surenesses share a bin"
    assert sum(b.n * b.accuracy for b in bins) == pytest.approx(
        sum(likeliest(s, LABELS) == s.reference for s in samples)
    )
    shuffled = rng.sample(samples, len(samples))
    assert [b.model_dump() for b in reliability(shuffled, LABELS, 0.95)] == [
        pytest.approx(b.model_dump()) for b in bins
    ]


def test_reliability_by_hand() -> None:
    """45 answers of three surenesses make two bins, cut where a sureness ends; intervals are Wilson's."""
    odds = {"sure": [0.0, 4.0], "fair": [0.0, 2.0], "torn": [0.0, 0.5]}
    rows = (
        [("a", odds["torn"])] * 20 + [("b", odds["fair"])] * 5 + [("a", odds["fair"])] * 5 + [("a", odds["sure"])] * 15
    )
    low, high = reliability(chosen(rows, ("a", "b")), ("a", "b"), 0.9)
    assert (low.n, low.accuracy, low.low, low.high) == (20, 1.0, *[pytest.approx(1 / (1 + math.exp(-0.5)))] * 2)
    assert (high.n, high.accuracy) == (25, 20 / 25)
    assert (high.low, high.high) == (pytest.approx(1 / (1 + math.exp(-2))), pytest.approx(1 / (1 + math.exp(-4))))
    assert (high.accuracy_low, high.accuracy_high) == stats.wilson(20, 25, 0.9)
    assert len(reliability(chosen([("a", [0.0, i / 300]) for i in range(300)], ("a", "b")), ("a", "b"), 0.9)) == 10
    alike = [("a", [0.0, 5.0 + i / 300]) for i in range(300)]  # 0.9933 to 0.9975
    assert [b.n for b in reliability(chosen(alike, ("a", "b")), ("a", "b"), 0.9)] == [300]
    assert reliability(pairs([("a", "a")]), ("a", "b"), 0.9) == (), "labels that were not scored"


# -- hollow models ------------------------------------------------------------------------------------------------

SPAM = ("ham", "spam")
TRUE = ["spam" if i % 5 == 0 else "ham" for i in range(100)]  # one in five


def side(name: str, chooses: Any, writes: Any = lambda i, choice: choice) -> Answers:
    """A model that finds `chooses(i)` likeliest and writes `writes(i, choice)`."""
    choices = [chooses(i) for i in range(len(TRUE))]
    rows = enumerate(zip(TRUE, choices, strict=True))
    return Answers(name, [sure_of(choice, true, i, writes(i, choice), SPAM) for i, (true, choice) in rows])


def outcome(tuned: Answers, base: Answers) -> str:
    """Whether all rules on labels that a derived recipe has would pass."""
    rules = [{"metric": name, "must": "beat_baseline"} for name in RULED["classification"]]
    recipe = Recipe.model_validate({"name": "r", "data": {"sources": [{"path": "x"}]}, "release": {"rules": rules}})
    metrics = [make(name, SPAM) for name in (*WRITTEN, *CHOSEN)]
    report = compare_models(tuned, base, metrics=metrics, recipe=recipe, task="classification", labels=SPAM)
    outcomes = {judge_rule(rule, report.metrics[rule.metric]).outcome for rule in recipe.release.rules}
    return "PASS" if outcomes == {"PASS"} else "no"


def right_in(share: float) -> Any:
    """Right in `share` of every ten samples of each label."""
    return lambda i: TRUE[i] if (i // 5) % 10 < 10 * share else {"ham": "spam", "spam": "ham"}[TRUE[i]]


def silent(i: int, choice: str) -> str:
    return "I think that this message"


@pytest.mark.parametrize(
    "base",
    [
        side("silent, always ham", lambda i: "ham", silent),
        side("silent, always spam", lambda i: "spam", silent),
        side("silent, worse than chance", right_in(0.2), silent),
        side("always spam", lambda i: "spam"),
    ],
    ids=lambda base: base.name,
)
def test_no_baseline_lets_a_model_pass_that_always_says_the_commonest_label(base: Answers) -> None:
    assert outcome(side("tuned", lambda i: "ham"), base) == "no"
    assert outcome(side("tuned", right_in(0.9)), base) == "PASS", "but one that tells the labels apart does"
    assert outcome(side("tuned", right_in(0.9), silent), base) == "no", "unless it does not write them"


def test_a_silent_base_that_tells_the_labels_apart_is_not_beaten_by_format() -> None:
    base = side("base", right_in(0.8), silent)
    assert outcome(side("tuned", right_in(0.8)), base) == "no"
    assert outcome(side("tuned", right_in(0.6)), base) == "no"


def test_accuracy_and_label_nll_would_let_the_commonest_label_pass() -> None:
    """Why the derived rules are not on them."""
    base, tuned = side("base", lambda i: "spam", silent), side("tuned", lambda i: "ham")
    for name in ("accuracy", "balanced_accuracy", "choice_accuracy", "label_nll", "brier"):
        assert stats.compare(make(name, SPAM), tuned.samples, base.samples, confidence=0.95).low > 0, name


def test_skill_tells_single_samples_right_or_wrong() -> None:
    found = stats.compare(
        make("choice_skill", SPAM),
        side("tuned", right_in(0.9)).samples,
        side("base", right_in(0.5)).samples,
        confidence=0.95,
    )
    assert (found.wins, found.losses, found.ties) == (40, 0, 60)
    assert (found.value, found.baseline) == (pytest.approx(0.8), 0.0)


def test_the_report_keeps_the_confusion_of_both() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "data": {"sources": [{"path": "x"}]},
            "release": {"rules": [{"metric": "accuracy", "must": "beat_baseline"}]},
        }
    )
    tuned, base = side("tuned", right_in(0.9)), side("base", right_in(0.5), silent)
    metrics = [make("accuracy", SPAM)]
    report = compare_models(tuned, base, metrics=metrics, recipe=recipe, task="classification", labels=SPAM)
    assert report.labels == SPAM
    assert report.confusion == {"baseline": ((0, 0, 80), (0, 0, 20)), "tuned": ((72, 8, 0), (2, 18, 0))}
    assert set(report.reliability) == {"baseline", "tuned"}
    assert EvalReport.model_validate_json(report.model_dump_json()) == report
    plain = compare_models(tuned, base, metrics=metrics, recipe=recipe, task="answer")
    assert (plain.labels, plain.confusion, plain.reliability) == ((), {}, {})


# -- odd inputs ---------------------------------------------------------------------------------------------------


def test_a_test_set_of_one_label_says_nothing_of_skill() -> None:
    ours = [sure_of("alpha", "alpha", i, "alpha") for i in range(30)]
    theirs = [sure_of("beta", "alpha", i, "beta") for i in range(30)]
    for name in ("label_skill", "choice_skill"):
        with pytest.raises(UserError, match="LU-E002"):
            stats.compare(make(name), ours, theirs, confidence=0.95)
    for name in {*WRITTEN, *CHOSEN} - {"label_skill", "choice_skill"}:
        assert isinstance(stats.compare(make(name), ours, theirs, confidence=0.95), Comparison)


def test_a_label_that_is_never_the_reference_and_77_labels() -> None:
    labels = tuple(f"intent_{i}" for i in range(77))
    rng = np.random.default_rng(0)
    ours = [sure_of(labels[i % 20], labels[i % 20], i, labels[i % 20], labels) for i in range(60)]
    theirs = [sure_of(str(rng.choice(labels)), s.reference, i, "", labels) for i, s in enumerate(ours)]
    for name in (*WRITTEN, *CHOSEN):
        found = stats.compare(make(name, labels), ours, theirs, confidence=0.95)
        assert name == "ece" or found.delta > 0, name
    assert stats.compare(make("choice_skill", labels), ours, theirs, confidence=0.95).value == 1.0
    assert len(confusion(ours, labels)) == 77


def test_labels_of_which_one_begins_another() -> None:
    both = ("a", "ab")
    assert value(make("choice_accuracy", both), [sure_of("ab", "ab", 0, labels=both)]) == 1.0
    assert value(make("choice_accuracy", both), [sure_of("a", "ab", 0, labels=both)]) == 0.0


def test_the_order_in_which_a_recipe_lists_the_labels_does_not_matter() -> None:
    samples = chosen([("alpha", [1.0, 2.0, 3.0, 4.0]), ("beta", [1.0, 2.0, 3.0, 4.0])])
    for name in CHOSEN:
        assert value(make(name, labels=tuple(reversed(LABELS))), samples) == pytest.approx(value(make(name), samples))


def test_labels_that_were_not_scored() -> None:
    for name in CHOSEN:
        assert make(name).stats(sample("alpha", "alpha")) is None
        with pytest.raises(UserError, match=r"LU-E010 sample s0: the likelihood of 'beta' is not known"):
            make(name).stats(sample("alpha", "alpha", choices={"alpha": 1.0}))


def test_a_task_without_labels_is_refused() -> None:
    for name in (*WRITTEN, *CHOSEN):
        with pytest.raises(UserError, match="LU-E003 .*needs labels, and the task has none"):
            make(name, ())


def test_a_reference_that_is_no_label_is_an_error() -> None:
    for name in {*WRITTEN, *CHOSEN} - {"invalid_label"}:
        with pytest.raises(UserError, match=r"LU-E006 sample s7: the reference 'epsilon' is no label"):
            make(name).stats(sample("alpha", "epsilon", id="s7", choices=dict.fromkeys(LABELS, 1.0)))


def test_bins_are_checked_when_the_metric_is_made() -> None:
    for bins in (0, True, 2.5):
        with pytest.raises(UserError, match="LU-E003 .*bins"):
            make("ece", bins=bins)


# -- what holds for all -------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(LABELS), min_size=1))
def test_identity_is_perfect(true: list[str]) -> None:
    for name in set(WRITTEN) - {"label_skill"}:
        assert value(make(name), pairs([(t, t) for t in true])) == (0.0 if name == "invalid_label" else 1.0)
    if len(true) == 1 or len(set(true)) > 1:
        assert value(make("label_skill"), pairs([(t, t) for t in true])) == 1.0


@given(scored, st.floats(-50, 50))
def test_only_differences_of_nats_count(rows: list[tuple[str, list[float]]], shift: float) -> None:
    shifted = [(true, [x + shift for x in nats]) for true, nats in rows]
    for name in ("label_nll", "brier"):
        assert value(make(name), chosen(shifted)) == pytest.approx(value(make(name), chosen(rows)), abs=1e-9)


@given(scored)
def test_scales(rows: list[tuple[str, list[float]]]) -> None:
    for name in CHOSEN:
        found = value(make(name), chosen(rows))
        assert found >= -1e-12 or (math.isnan(found) and name == "choice_skill"), name
        assert not found > (2 if name == "brier" else math.inf if name == "label_nll" else 1) + 1e-9, name


def test_likelihoods_that_differ_by_more_than_a_float_holds() -> None:
    samples = chosen([("beta", [0.0, 5000.0, 9000.0, 9000.0])])
    assert value(make("label_nll"), samples) == 5000.0
    assert value(make("brier"), samples) == 2.0 and value(make("ece"), samples) == 1.0


def test_directions() -> None:
    for name in (*WRITTEN, *CHOSEN):
        assert make(name).higher_is_better == (name not in LOWER), name


@pytest.mark.skipif(not METRICS.names(), reason="luthier is not installed, so it declares no entry points")
def test_every_metric_of_labels_is_declared_and_says_what_it_cannot_tell() -> None:
    declared = {name for name in METRICS.names() if METRICS.find(name, "").__module__ == module.__name__}
    assert declared == {*WRITTEN, *CHOSEN}
    assert all(len(getattr(module, name).__doc__) > 80 for name in declared)
