"""`data`: where the rows come from, what becomes of them, and which side each is on."""

from __future__ import annotations

import os
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from luthier.conversation import Role, Side
from luthier.settings.augment import AugmentUse
from luthier.settings.section import Count, Fraction, Positive, Section, Use, located

FormatName = Literal["auto", "messages", "preference", "rated", "prompt_completion", "classification", "text", "tokens"]


class Source(Section):
    path: str
    """A file or a folder of files, relative to the recipe, or `hub:org/name` (`@revision`, `:config`). In a folder,
    names such as train.jsonl, valid.csv, dev_2.jsonl and test-00000.parquet say the side of their rows."""
    split: Side | None = None
    """The side all rows of this source belong to; None: the recipe's split decides."""
    format: FormatName | None = None
    """None: `data.format`. Sources may differ: chats to learn from, and general texts to replay against forgetting."""
    fields: dict[str, str] | None = None
    """None: `data.fields`."""
    weight: Positive = 1.0
    """How often each of its training rows is met in an epoch: 2 is twice; 0.25 is a quarter of them, and in the next
    epoch another one. So much of the mix is of this source: its rows times its weight."""


class Cleaner(Use):
    """Cleans each message by itself: one of those of [cleaning](cleaning.md), or `module:function`."""

    roles: Annotated[tuple[Role, ...], Field(strict=False)] = ()
    """Whose messages; none named: those that the cleaner is made for, which most often are all."""


class Dedupe(Use):
    """Drops rows that are copies; after all cleaners."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
    use: Literal["dedupe"]
    """Drop copies."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Jaccard similarity of word shingles of whole conversations; 1.0 removes exact copies only."""


class CheckUse(Use):
    """Looks at the good rows and drops none: one of those of [checks](checks.md), or `module:function`."""


class Split(Section):
    by: str = "row"
    """`row`: each by itself (equal ones and near-duplicate prompts stay together in any case); `given`: rows carry a
    `split` column; or the name of a column whose values stay together. A side that a file or a source gives wins."""
    valid_fraction: Fraction = 0.05
    """Of the conversations, drawn for validation by seed, where no row is given that side."""
    test_fraction: Fraction = 0.10
    """As `valid_fraction`, for the test side."""
    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Prompts at least this similar stay on one side, or are reported as leakage where sides are given."""
    cluster: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Prompts whose sentence embeddings have at least this cosine stay on one side too, as paraphrases do."""
    stratify: str | None = None
    """`label`, or a column: each of its values has the same share of validation and test as of all rows."""
    time: str | None = None
    """A column of dates, times or numbers: the newest rows test, those before them validate, the oldest train."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Divide into so many test sides, of which `fold` says the one of this run; `test_fraction` is not read then."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """From 0 to `folds` - 1."""

    @model_validator(mode="after")
    def _fits_together(self) -> Split:
        if (self.folds is None) != (self.fold is None):
            raise ValueError("folds says into how many test sides, and fold which one is this run's: set both")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}: {self.folds} folds are counted from 0 to {self.folds - 1}")
        given = "by: given" if self.by == "given" else ""
        if self.time and (other := given or ("stratify" if self.stratify else "folds" if self.folds else "")):
            raise ValueError(f"time says each row's side, and so does {other}: set one of them")
        if self.folds and given:
            raise ValueError("folds says each row's side, and so does by: given: set one of them")
        if self.valid_fraction + (1 / self.folds if self.folds else self.test_fraction) >= 1:
            test = "folds" if self.folds else "test_fraction"
            raise ValueError(f"valid_fraction and {test} leave nothing to train on")
        return self


def _is_dedupe(value: Any) -> str:
    use = value.get("use") if isinstance(value, dict) else getattr(value, "use", value)
    return "dedupe" if use == "dedupe" else "cleaner"


Cleaning = Annotated[Annotated[Cleaner, Tag("cleaner")] | Annotated[Dedupe, Tag("dedupe")], Discriminator(_is_dedupe)]


class Data(Section):
    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)]
    """Files and folders of rows, one at least."""
    format: FormatName = "auto"
    """The shape of the rows; auto: told from their columns."""
    fields: dict[str, str] = {}
    """messages, prompt, completion, text, label, system, split -> a column, or a template: '{table}\\n{question}'.
    `{column?}` may be absent from a row."""
    system: str | None = None
    """System text for conversations that have none."""
    clean: Annotated[tuple[Cleaning, ...], Field(strict=False)] = ()
    """What is done before the sides are drawn, in this order: cleaners of texts ([which](cleaning.md)), then `dedupe`:
    `[strip_html, redact, dedupe]`."""
    personal_data: Literal["warn", "reject", "allow"] = "warn"
    """What becomes of a row in which personal data is found after cleaning: a finding, a reject, nothing."""
    augment: Annotated[tuple[AugmentUse, ...], Field(strict=False)] = ()
    """What is made of the training rows once the sides are drawn, in this order; validation and test stay as they are.
    `[{use: synonyms, fraction: 0.1}]`."""
    checks: Annotated[tuple[CheckUse, ...], Field(strict=False)] = ()
    """What is looked for in the good rows, for people to look at; nothing is dropped: `[language, labels]`."""
    bad_rows: Literal["quarantine", "strict"] = "quarantine"
    """What becomes of rows that cannot be used. `quarantine`: they are set aside in `rejects.jsonl` and counted, up to
    `max_rejected_fraction`; `strict`: a single one stops the run, once all are counted."""
    max_rejected_fraction: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Of a quarantine; above it the run stops: look at the data, not at the loss."""
    limit: Count | None = None
    """At most this many conversations a side, drawn by seed; said in the report."""
    max_tokens: Count | None = None
    """A longer conversation is rejected, never cut; a longer plain text is learned in windows of so many. None: the
    base model's context window, less the virtual tokens of `model.adapt`."""
    documents: Literal["separate", "joined"] = "separate"
    """How plain texts are learned: each by itself, so that none sees another though they are packed into one forward
    pass; or one after the other, with their end tokens between them, in full windows of `max_tokens` across which
    attention goes. Validation and test are separate in any case."""
    split: Split = Split()
    """How each row gets its side."""
    slices: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Tags (columns that the model does not read): results are shown for each of their values, and rules may have to
    hold in each."""

    @field_validator("max_rejected_fraction", mode="before")
    @classmethod
    def _none_is_strict(cls, fraction: Any) -> Any:
        if fraction == 0:
            raise ValueError("no bad row at all is written `bad_rows: strict`")
        return fraction

    @field_validator("clean")
    @classmethod
    def _texts_before_rows(cls, steps: tuple[Cleaning, ...]) -> tuple[Cleaning, ...]:
        after = dropwhile(lambda step: isinstance(step, Cleaner), steps)
        if late := next((step for step in after if isinstance(step, Cleaner)), None):
            raise ValueError(
                f"'{late.use}' cleans texts and stands after dedupe: rows are compared when they are clean"
            )
        return steps


def source_path(source: Source, folder: Path) -> Path:
    """Where a source lies: relative paths count from the recipe's folder."""
    return Path(os.path.normpath(located(source.path, folder)))
