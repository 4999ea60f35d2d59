"""Metrics of probabilities: how well a model foresees the references, and the base model the answers."""

from __future__ import annotations

import math

import numpy as np

from luthier.metric import Floats, Metric, Sample, SumMetric, ratio


def perplexity() -> Metric:
    """exp(nats / tokens) over all learned tokens (Jelinek et al. 1977): total over total, no mean of means.

    Tells how well the model predicts the references. Says nothing of what it would write itself, and compares only
    models with the same tokenizer: for others, `bits_per_byte`.
    """

    def stats(sample: Sample) -> tuple[float, float] | None:
        return (sample.nats, sample.n_tokens) if sample.n_tokens else None

    def combine(sums: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(ratio(sums)))

    return SumMetric("perplexity", stats, combine, higher_is_better=False)


def bits_per_byte() -> Metric:
    """Negative log2-likelihood per UTF-8 byte of the learned text (Gao et al. 2020, The Pile, section 3.1).

    The size to which the model would compress the text. Compares models with different tokenizers, not texts in
    different scripts: a Cyrillic letter is two bytes.
    """

    def stats(sample: Sample) -> tuple[float, float] | None:
        return (sample.nats, sample.n_bytes) if sample.n_bytes else None

    return SumMetric("bits_per_byte", stats, lambda sums: ratio(sums) / math.log(2), higher_is_better=False)


def fluency() -> Metric:
    """Perplexity of the answers under the base model, as texts by themselves; lower is better.

    Tells whether answers read as text that the base model would write: garbled words, broken grammar and a wrong
    language raise it. It cannot tell whether they are right; loops and commonplaces please it most, and so does the
    base's own way to write: read it beside `repetition`. docs/metrics.md has figures, and a test holds them. Empty
    answers, and those with characters that no text should hold, are left out.
    """
    return SumMetric("fluency", _stats, lambda sums: np.exp(ratio(sums)), higher_is_better=False)


def _stats(sample: Sample) -> tuple[float, float] | None:
    return None if sample.read is None else (sample.read[0], float(sample.read[1]))
