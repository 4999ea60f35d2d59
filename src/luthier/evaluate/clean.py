"""The clean part of the test set: rows whose prompts are not, or nearly, in the training data.

A model that has seen a prompt may recite its answer, so a score on all rows beside one on the clean rows shows how much
of a gain is memory. Only the wording of prompts is compared: a paraphrase of a training prompt is clean here, and what
the base model saw when it was pretrained cannot be known. Knows no model; the join is `similar.py`'s, and exact.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from luthier import stats
from luthier.conversation import Conversation
from luthier.errors import EvaluationError
from luthier.metric import Metric, Sample
from luthier.records import Comparison
from luthier.similar import SimilarTexts, hashed, similar_to_any

_NO_VALUE = ("LU-E001", "LU-E002")


def contaminated(
    test: Sequence[Conversation], train: Iterable[Conversation], similarity: float = 0.8
) -> dict[str, float]:
    """Ids of test conversations whose prompt is at least so similar to a training prompt, and how similar.

    Similarity is Jaccard's, of runs of three words: 1.0 for the same words in the same order. Of plain text, the text
    itself is compared. Of the training prompts those alone are held that could be similar to any.
    """
    asked, index, held = [hashed(c.asked_text) for c in test], SimilarTexts(similarity), set[int]()
    for found in asked:
        index.append_hashed(found)
    may_match = similar_to_any(asked, similarity)
    for found in (hashed(c.asked_text) for c in train):
        if may_match(found) and (key := hash(found.tobytes())) not in held:
            held.add(key)
            index.append_hashed(found)
    for j in range(len(test), len(index)):
        index.add(j)
    nearest = {c.id: max((index.jaccard(i, j) for j in index.matches(i)), default=0.0) for i, c in enumerate(test)}
    return {id: alike for id, alike in nearest.items() if alike}


def compare_clean(
    metrics: Sequence[Metric],
    tuned: Sequence[Sample],
    baseline: Sequence[Sample],
    contaminated: Container[str],
    confidence: float,
) -> tuple[dict[str, Comparison], list[str]]:
    """Metric -> comparison on the samples that are not `contaminated`, and notes on how many these are.

    The samples are of the same items in the same order; a sample's id starts with its conversation's. Empty where
    all samples are clean: then there is nothing to tell apart.
    """
    rows = [i for i, sample in enumerate(tuned) if sample.id.partition(" ")[0] not in contaminated]
    n, n_seen = len(tuned), len(tuned) - len(rows)
    if not n_seen:
        return {}, []
    notes = [f"{n_seen} of {n} test prompts ({n_seen / n:.1%}) are (nearly) in the training data"]
    found: dict[str, Comparison] = {}
    for metric in metrics:
        try:
            sides = [tuned[i] for i in rows], [baseline[i] for i in rows]
            found[metric.name] = stats.compare(metric, *sides, confidence=confidence)
        except EvaluationError as error:
            if error.problems[0].code not in _NO_VALUE:
                raise
            notes.append(f"{metric.name} has no value on the {len(rows)} clean test rows")
    return found, notes
