"""`release`: the rules that a tuned model must pass, and what leaves the house."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.settings.section import Section

HUMAN_PREFERENCE = "human_preference"
"""The metric that people measure, in `luthier review`."""


class Rule(Section):
    metric: str
    """One that the evaluation measures: of `evaluate.metrics`, a judge, a suite, the general probe, people's votes."""
    must: Literal["beat_baseline", "not_regress"]
    """beat_baseline: the whole interval of the change lies above the margin; not_regress: above minus the margin.
    More is better here, whatever the metric's direction."""
    by_points: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """The margin, in the metric's own units."""
    by_relative: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """The margin, as a fraction of the baseline's value; give one of the two."""
    in_slices: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """The rule must hold in every value of these slices, each on its own."""
    where: dict[str, str] = {}
    """Only the samples whose tags have these values, e.g. {kind: unseen_fact}."""
    min_effect: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """beat_baseline: FAIL once the interval shows the gain to be below this, in points."""

    @model_validator(mode="after")
    def _one_margin(self) -> Rule:
        if self.by_points and self.by_relative:
            raise ValueError("give by_points or by_relative, not both")
        return self

    @model_validator(mode="after")
    def _reads_all_that_is_set(self) -> Rule:
        if self.min_effect and self.must == "not_regress":
            raise ValueError("a not_regress rule does not read min_effect: by_points or by_relative is its margin")
        return self

    @model_validator(mode="after")
    def _votes_are_judged_as_a_whole(self) -> Rule:
        if self.metric == HUMAN_PREFERENCE and (self.by_relative or self.in_slices or self.where):
            raise ValueError(f"{HUMAN_PREFERENCE} is judged by_points, over all samples that people judged")
        return self


class Release(Section):
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, strict=False)]
    """A rule on `human_preference` is judged by the votes of `luthier review`, and open until there are some."""
    needs: Annotated[tuple[Literal["human_review"], ...], Field(strict=False)] = ()
    """`human_review`: never pass unreviewed. Without a rule on `human_preference` of its own, it is the rule
    {metric: human_preference, must: not_regress, by_points: 0.1}: shown to get more than 45 % of people's votes."""
    license: Annotated[str, Field(min_length=1)] = "unknown"
    """Under which the tuned model is released, as model hubs name it: apache-2.0, cc-by-4.0, other."""
    export: Annotated[tuple[Literal["merged"], ...], Field(strict=False)] = ()
    """The adapter is always exported; `merged` adds a model that plain transformers loads."""
