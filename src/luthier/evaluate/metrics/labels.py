"""Labels: which one a model answers, by what it writes or by what it finds likeliest, and the metrics of both.

*Written* is what a program would get: the generated answer, read by `text.read_label`. But a base model that was
never shown the task writes no label at all, so its 0 does not say whether it can tell the labels apart, and whatever
was tuned "beats" it. *Likeliest* (`choice_`) asks every model the same: each label is scored as a whole answer, the
end of the turn included, and the one of the least nats is taken (`Sample.choices`), so that there always is one. It
favours labels that are short or common as text (Holtzman et al. 2021, "Surface Form Competition"), in all models.

Metrics of `choices` do not apply to samples without them. Knows nothing of models: `exam.py` brings the likelihoods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from luthier.errors import EvaluationError, printable
from luthier.evaluate.metrics.text import read_label
from luthier.metric import Floats, Metric, Sample, SumMetric, lower_is_better
from luthier.records import ReliabilityBin
from luthier.stats import wilson

Average = Literal["macro", "micro", "weighted"]
Labels = tuple[str, ...]
MAX_BINS = 10
ANSWERS_PER_BIN = 20
"""At least, on average: a proportion of 20 is known to about 0.2."""
Reading = Callable[[Sample, Labels], str | None]
"""The label that a model gives a sample; "" where it gives none, None where nothing can be said."""


# -- what was answered --------------------------------------------------------------------------------------------


def written(sample: Sample, labels: Labels) -> str:
    """The label that the generated answer is; "" where it is none."""
    return read_label(sample.answer, labels) or ""


def likeliest(sample: Sample, labels: Labels) -> str | None:
    """The label of the least nats, the first of equals; None where the labels were not scored."""
    return None if (nats := _nats(sample, labels)) is None else labels[int(nats.argmin())]


def probabilities(sample: Sample, labels: Labels) -> Floats | None:
    """(K,) likelihoods of the labels, normalised over them; None where they were not scored."""
    if (nats := _nats(sample, labels)) is None:
        return None
    likelihoods = np.exp(nats.min() - nats)
    return np.asarray(likelihoods / likelihoods.sum())


def _nats(sample: Sample, labels: Labels) -> Floats | None:
    """(K,) nats of the labels. Raises EvaluationError LU-E010 where others were scored."""
    if sample.choices is None:
        return None
    if missing := [label for label in labels if label not in sample.choices]:
        found = f"the likelihood of '{printable(missing[0])}' is not known"
        scored = f"labels that were scored: {printable(', '.join(sample.choices), 200)}"
        raise EvaluationError.of("LU-E010", f"sample {sample.id}", found, scored)
    return np.array([sample.choices[label] for label in labels])


def true_label(sample: Sample, labels: Labels) -> str:
    """Raises EvaluationError LU-E006 where the reference is no label."""
    if (label := read_label(sample.reference, labels)) is None:
        found, allowed = f"the reference '{printable(sample.reference)}' is no label", printable(", ".join(labels))
        raise EvaluationError.of("LU-E006", f"sample {sample.id}", found, f"labels: {allowed}")
    return label


def confusion(samples: Sequence[Sample], labels: Labels, read: Reading = written) -> tuple[tuple[int, ...], ...]:
    """(K, K + 1) counts: rows are true labels, columns answered ones, the last one "no label".

    Samples whose reference is no label, or of which nothing can be said, are in no cell.
    """
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
    for sample in samples:
        true, answered = read_label(sample.reference, labels), read(sample, labels)
        if true is not None and answered is not None:
            counts[place[true], place.get(answered, -1)] += 1
    return tuple(tuple(row) for row in counts.tolist())


# -- right or wrong -----------------------------------------------------------------------------------------------


def accuracy(sample: Sample, labels: Labels) -> bool:
    """Share of right labels. Flattering where one label dominates: see `balanced_accuracy`, `f1`.

    An answer that is no label counts as wrong (see `text.read_label` for what is read as a label).
    """
    return written(sample, labels) == true_label(sample, labels)


def choice_accuracy(sample: Sample, labels: Labels) -> bool | None:
    """Share of samples whose likeliest label is right: `accuracy` of a model that must choose one.

    Compares models that do not write labels with those that do. Does not tell what the model would write.
    """
    answered = likeliest(sample, labels)
    return None if answered is None else answered == true_label(sample, labels)


@lower_is_better
def invalid_label(sample: Sample, labels: Labels) -> bool:
    """Share of answers that are no label at all: what a program that reads the label would have to reject."""
    return not written(sample, labels)


def balanced_accuracy(labels: Labels) -> Metric:
    """Mean over the labels of each label's recall (Brodersen et al. 2010): chance level is 1 / labels at any skew.

    Rare labels weigh as much as frequent ones, so their few samples widen the interval.
    """
    return _by_label("recall", labels)


def choice_balanced_accuracy(labels: Labels) -> Metric:
    """`balanced_accuracy` of the likeliest labels: 1 / labels for a model that prefers one label whatever is asked."""
    return _by_label("recall", labels, read=likeliest)


def precision(labels: Labels, average: Average = "macro", label: str | None = None) -> Metric:
    """Of the answers that name a label, the share that is right; 0 for a label that is never answered.

    Does not see what was missed: `recall` does. For `average` and `label` see `f1`.
    """
    return _by_label("precision", labels, average, label)


def recall(labels: Labels, average: Average = "macro", label: str | None = None) -> Metric:
    """Of the samples of a label, the share that was found. Does not see false alarms: `precision` does.

    For `average` and `label` see `f1`. Its macro average is the balanced accuracy.
    """
    return _by_label("recall", labels, average, label)


def f1(labels: Labels, average: Average = "macro", label: str | None = None) -> Metric:
    """Harmonic mean of precision and recall (van Rijsbergen 1979), as scikit-learn computes it.

    `macro`: the mean over the labels that occur among the references; `weighted`: that mean, each label weighing as
    often as it occurs; `micro`: one count over all labels; `label`: that label alone. An answer that is no label misses
    its reference and is no prediction of any label.
    """
    return _by_label("f1", labels, average, label)


def choice_f1(labels: Labels, average: Average = "macro", label: str | None = None) -> Metric:
    """`f1` of the likeliest labels. Every sample has one, so its `micro` average is `choice_accuracy`."""
    return _by_label("f1", labels, average, label, likeliest)


def label_skill(labels: Labels) -> Metric:
    """How far the balanced accuracy is above chance: 0 at chance or below, 1 where all is right.

    scikit-learn's `balanced_accuracy_score(adjusted=True)`, for two labels Youden's J (1950), cut off at 0: a model
    that always gives the commonest label, one that gives none and one that is wrong on purpose all have none, so none
    is a baseline that another of them could beat. Says nothing where all references are one label.
    """
    return _skill(labels, written)


def choice_skill(labels: Labels) -> Metric:
    """`label_skill` of the likeliest labels: whether a model tells the labels apart, even if it never writes one."""
    return _skill(labels, likeliest)


_FRACTIONS: dict[str, Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]] = {
    "precision": lambda right, answered, true: (right, answered),
    "recall": lambda right, answered, true: (right, true),
    "f1": lambda right, answered, true: (2 * right, answered + true),
}


def _by_label(
    kind: str, labels: Labels, average: Average = "macro", label: str | None = None, read: Reading = written
) -> Metric:
    if average not in ("macro", "micro", "weighted"):
        raise ValueError(f"average: {average!r}; allowed: macro, micro, weighted")
    if label is not None and label not in labels:
        raise ValueError(f"label: {label!r} is none of the labels {', '.join(labels)}")
    n, place = len(labels), {name: i for i, name in enumerate(labels)}

    def stats(sample: Sample) -> list[float] | None:
        if (answered := read(sample, labels)) is None:
            return None
        counts = np.zeros((3, n))  # right, answered, true
        true = place[true_label(sample, labels)]
        counts[2, true] = 1
        if answered:
            counts[1, place[answered]] = 1
            counts[0, place[answered]] = place[answered] == true
        return counts.ravel().tolist()

    def combine(sums: Floats) -> Floats:
        counts = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, n), -2, 0)  # (3, ..., n)
        if label is not None:
            counts = counts[..., place[label], None]
        elif average == "micro":
            counts = counts.sum(axis=-1, keepdims=True)
        part, whole = _FRACTIONS[kind](*counts)  # (..., n)
        occurs = counts[2] > 0
        weights = counts[2] if average == "weighted" else occurs
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.where(occurs & (whole > 0), part / whole, 0.0)
            return np.asarray((values * weights).sum(axis=-1) / weights.sum(axis=-1))

    return SumMetric(kind, stats, combine)


def _skill(labels: Labels, read: Reading) -> Metric:
    recalls = _by_label("recall", labels, read=read)

    def combine(sums: Floats) -> Floats:
        true = sums[..., 2 * len(labels) :]  # (..., K)
        balanced = recalls.combine(sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            chance = 1 / (true > 0).sum(axis=-1)
            above = np.maximum(0.0, (balanced - chance) / (1 - chance))  # NaN where one label is all there is
        return np.where(true.sum(axis=-1) == 1, balanced, above)  # a sample by itself is right or wrong

    return SumMetric("skill", recalls.stats, combine)


# -- how sure -----------------------------------------------------------------------------------------------------


@lower_is_better
def label_nll(sample: Sample, labels: Labels) -> float | None:
    """Negative log-probability of the right label among the labels, in nats (the logarithmic score, Good 1952), mean.

    A proper score: only the true probabilities make it least. log(labels) for a model that does not choose at all.
    One sample that is surely wrong weighs much, and learning how common the labels are already lowers it: no evidence
    that the model reads the text.
    """
    if (nats := _nats(sample, labels)) is None:
        return None
    right = float(nats[labels.index(true_label(sample, labels))])
    least = float(nats.min())
    return right - least + math.log(np.exp(least - nats).sum())


@lower_is_better
def brier(sample: Sample, labels: Labels) -> float | None:
    """Squared distance of the labels' probabilities from the truth, summed over labels (Brier 1950): 0 to 2, mean.

    A proper score like `label_nll`, but bounded: no single sample decides it. For two labels it is twice the form that
    counts one of them only. As `label_nll`, it also rewards knowing how common the labels are.
    """
    if (p := probabilities(sample, labels)) is None:
        return None
    truth = np.array([label == true_label(sample, labels) for label in labels])
    return float(((p - truth) ** 2).sum())


def ece(labels: Labels, bins: int = 10) -> Metric:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, section 2): |confidence - accuracy|, 0 to 1.

    The likeliest label's probability is the confidence; samples are put into `bins` of equal width and each bin's gap
    weighs as its samples. Tells whether "90 % sure" is right in 90 of 100 cases, not whether the model is any good:
    saying the commonest label at its own frequency has no error. Few samples a bin make it too large, in both models.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins: {bins!r}; allowed: a whole number from 1")

    def stats(sample: Sample) -> list[float] | None:
        if (p := probabilities(sample, labels)) is None:
            return None
        confidence = float(p.max())
        found = np.zeros((3, bins))  # count, confidence, right
        right = labels[int(p.argmax())] == true_label(sample, labels)
        found[:, math.ceil(confidence * bins) - 1] = 1, confidence, right  # bins are open below, closed above
        return found.ravel().tolist()

    def combine(sums: Floats) -> Floats:
        count, confidence, right = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, bins), -2, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.abs(right - confidence).sum(axis=-1) / count.sum(axis=-1))

    return SumMetric("ece", stats, combine, higher_is_better=False)


def reliability(samples: Sequence[Sample], labels: Labels, confidence: float) -> tuple[ReliabilityBin, ...]:
    """How sure a model was of its likeliest label, and how often that was right; empty where labels were not scored.

    Bins of equal mass (Nguyen & O'Connor 2015), at most MAX_BINS, of ANSWERS_PER_BIN or more on average: a tuned
    model is nearly sure of nearly everything, so of bins of equal width one holds it all and the others say nothing.
    They are cut at whole per cents: the order of samples decides nothing, and surenesses that no plot tells apart share
    a bin, which may then be larger. Intervals are Wilson's, of samples taken as independent. Samples whose reference is
    no label are in no bin, as in `confusion`. Raises EvaluationError LU-E010.
    """
    found = []
    for sample in samples if labels else ():
        true, p = read_label(sample.reference, labels), probabilities(sample, labels)
        if true is not None and p is not None:
            found.append((float(p.max()), labels[int(p.argmax())] == true))
    if not found:
        return ()
    sureness, right = (np.array(column, dtype=float) for column in zip(*sorted(found), strict=True))  # (n,), (n,)
    n_bins = max(1, min(MAX_BINS, len(found) // ANSWERS_PER_BIN))
    starts = np.unique(np.floor(sureness[np.arange(n_bins) * len(found) // n_bins] * 100) / 100)
    place = np.searchsorted(starts, sureness, side="right")  # (n,)
    return tuple(_bin(sureness[place == b], right[place == b], confidence) for b in np.unique(place))


def _bin(sureness: Floats, right: Floats, confidence: float) -> ReliabilityBin:
    n, n_right = len(right), float(right.sum())
    low, high = wilson(n_right, n, confidence)
    return ReliabilityBin(
        low=float(sureness[0]),
        high=float(sureness[-1]),
        n=n,
        sureness=float(sureness.mean()),
        accuracy=n_right / n,
        accuracy_low=low,
        accuracy_high=high,
    )
