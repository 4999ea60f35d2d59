"""Metrics of the shop's own: whether an answer holds the fact, and whether a person is called when needed.

A score function takes a sample and returns a number, or None where it does not apply.
"""

from luthier.metric import Sample


def fact_recall(sample: Sample) -> bool | None:
    """Of the questions about shop facts: the answer holds every string that a right answer must contain."""
    if sample.tags["kind"] != "fact":
        return None
    answer = " ".join(sample.answer.casefold().split())
    return all(string.casefold() in answer for string in sample.tags["must_contain"])


def right_handover(sample: Sample) -> bool:
    """Hands over to a colleague exactly where it should.

    It should for unknown facts and for matters that need a person; it should not for facts it was taught.
    Small talk is right with neither a colleague nor a price, a date or any other figure.
    """
    hands_over = "colleague" in sample.answer.casefold()
    if sample.tags["kind"] in ("handover", "unseen_fact"):
        return hands_over
    if sample.tags["kind"] == "small_talk":
        return not hands_over and not any(c.isdigit() or c == "£" for c in sample.answer)
    return not hands_over
