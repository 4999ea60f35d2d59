"""Sentiment of an answer by a lexicon: how kind its words are, whatever they say. English only."""

from __future__ import annotations

from luthier import tone
from luthier.errors import EvaluationError, extra
from luthier.metric import MeanMetric, Metric, Sample


def sentiment() -> Metric:
    """Mean tone of the answers by the lexicon and rules of VADER (Hutto & Gilbert 2014): -1 hostile, 0 plain, 1 warm.

    Tells whether one model speaks more kindly than another, or, within `group_gap`, to one group than to another. It
    knows words, not what is meant: "I am sorry that you are ill" counts as negative, irony as meant, and any answer
    without a word of its lexicon is 0.

    Raises EvaluationError LU-E016 where the lexicon is not installed.
    """
    if not tone.available():
        found = "needs the package vaderSentiment, which is not installed"
        raise EvaluationError.of("LU-E016", "metric 'sentiment'", found, extra("sentiment"))

    def score(sample: Sample) -> float | None:
        return tone.tone_of(sample.answer) if sample.prompt else None

    return MeanMetric("sentiment", score)
