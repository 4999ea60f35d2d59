"""Counterfactual augmentation: the same conversation with the other gender in it (Lu et al. 2018; Zhao et al. 2018).

Every term of the list is swapped (`luthier.swap`), first names and what is quoted included, in all that user, system
and assistant say, a pair's rejected answer too, so that answers agree with the question. Where answers are labels, only
what users say is changed; a row whose label is itself a group term is left out, because the label would have to change
too. So is one that calls tools: what a call asks for and what the tool gave would not agree with what is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from luthier.conversation import Conversation, with_messages
from luthier.prepare.augment.contract import NOTHING, Unmade, replaced
from luthier.settings import located
from luthier.swap import Terms, read_terms


def counterfactual(*, folder: Path, labelled: bool, terms: str | None = None) -> Counterfactual:
    """Args:
        folder: The recipe's.
        labelled: Whether answers are labels.
        terms: A file of pairs that adds to the shipped ones or overrides them; `terms/gender_en.txt` says its form.

    Raises DataError LU-D145 for a list that cannot be read.
    """
    return Counterfactual(read_terms(located(terms, folder) if terms else None), labelled)


class Counterfactual:
    may_change = frozenset({"answers", "names", "quotes"})

    def __init__(self, terms: Terms, labelled: bool) -> None:
        self._terms, self._labelled = terms, labelled

    def __call__(self, conversation: Conversation, rng: Random) -> Iterator[Conversation | Unmade]:
        """The one counterpart that there is."""
        if self._labelled and self._terms.swap(conversation.answer) != conversation.answer and conversation.prompt:
            yield Unmade("the label is a group term")
            return
        if any(m.tool_calls or m.role == "tool" for m in (*conversation.messages, *conversation.rejected)):
            yield Unmade("calls a tool")
            return
        roles = ("user", "text") if self._labelled else ("user", "text", "system", "assistant")
        texts = {i: self._terms.swap(m.content) for i, m in enumerate(conversation.messages) if m.role in roles}
        found = replaced(conversation, texts)
        if isinstance(found, Unmade):
            yield Unmade("names no group") if found is NOTHING else found
            return
        rejected = [m.model_copy(update={"content": self._terms.swap(m.content)}) for m in found.rejected]
        yield with_messages(found, found.messages, rejected=tuple(rejected)) if "assistant" in roles else found
