"""Metrics of meaning by sentence embeddings: `similarity` to the reference, `relevance` to the prompt.

Both see the topic of a text, in whatever words, and are nearly blind to what is claimed about it. To "You can return
it within 30 days." the similarity of "You cannot return it within 30 days." is 0.94, that of "... within 3 days." 0.94
too, and that of "Send it back in the first month and we refund you.", the only one that is right, 0.66. So neither
metric is evidence that answers are *right*: pair them with `exact_match`, `token_f1` or people's judgement.
docs/metrics.md has more figures, and a test holds them. English only, see `embed.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luthier.embed import embed
from luthier.metric import MeanMetric, Metric, Sample


def similarity() -> Metric:
    """Cosine of answer and reference as sentence embeddings (Reimers & Gurevych 2019), mean over samples.

    Tells whether the answer speaks of the same things, in other words too, where word overlap sees nothing. It cannot
    tell a right number from a wrong one, nor a statement from its negation: both score about 0.9. About 0 for texts
    that have nothing in common, rarely below; the values of two models compare, no value is "good" by itself.
    """
    return _cosine("similarity", lambda sample: sample.reference)


def relevance() -> Metric:
    """Cosine of answer and prompt as sentence embeddings, mean over samples.

    Finds answers that drift off to something else; no reference is needed. An answer that repeats the question scores
    highest and a short right one ("Yes.") low, so it is to be read beside a metric of what is right. All turns so far
    are the prompt, which makes the values of long dialogues low.
    """
    return _cosine("relevance", lambda sample: sample.prompt)


def _cosine(name: str, other: Callable[[Sample], str]) -> Metric:
    def prepare(samples: Sequence[Sample]) -> None:
        embed([text for sample in samples if sample.prompt for text in (sample.answer, other(sample))])

    def score(sample: Sample) -> float | None:
        if not sample.prompt:
            return None
        answer, expected = embed([sample.answer, other(sample)])
        return float(answer @ expected)

    return MeanMetric(name, score, prepare=prepare)
