"""Prepare: raw files in; three sides of conversations and an audit of every row out.

Read `prepare` from top to bottom: each line is one step, and each step is a module of this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from luthier.conversation import SIDES, Conversation, line_of
from luthier.encoded import write_side
from luthier.errors import DataError, printable
from luthier.files import sha256_of
from luthier.prepare.audit import Audit, open_audit
from luthier.prepare.augment import Method, augment, opened
from luthier.prepare.checks import check_extras, look
from luthier.prepare.checks.contract import Looked
from luthier.prepare.clean import Cleaning
from luthier.prepare.dedupe import dedupe
from luthier.prepare.derive import derive
from luthier.prepare.engine import Engine, engine_for
from luthier.prepare.noticed import long_documents, notice
from luthier.prepare.page import data_page
from luthier.prepare.reading import Encoder, Reading, encoded_item
from luthier.prepare.rows import Item
from luthier.prepare.sources import find_files
from luthier.prepare.split import limit, split
from luthier.prepare.summary import report_of, sample_of
from luthier.prepare.table import NO_SIDE, Numbers, Rows
from luthier.progress import Quiet, Reporter
from luthier.records import AuditReport, Augmentation
from luthier.settings import Data, Dedupe, Recipe

__all__ = ["derive", "prepare"]


def prepare(recipe: Recipe, folder: Path, out: Path, encoder: Encoder, report: Reporter | None = None) -> AuditReport:
    """Write train, validation and test, `.jsonl` and `.tokens`, `rejects.jsonl`, `audit.json`, `data.html` into `out`.

    `folder` is where the recipe lies; `report` is told how far an augmentation is. Raises DataError: at once for a file
    that cannot be used and for an augmentation that lacks what it needs, with every row's place where more rows are
    rejected than the recipe allows. RecipeError for a cleaner that cannot be had, RunError for an engine.
    """
    cleaning = Cleaning(recipe, folder)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with engine_for(recipe.prepare, out) as engine:
            return _prepare(recipe, folder, out, encoder, cleaning, report or Quiet(), engine)
    except DataError as error:
        raise cleaning.hiding.error(error) from None


def _prepare(
    recipe: Recipe,
    folder: Path,
    out: Path,
    encoder: Encoder,
    cleaning: Cleaning,
    report: Reporter,
    engine: Engine,
) -> AuditReport:
    data = recipe.data
    check_extras(data.checks, folder)
    files = find_files(data.sources, folder)
    hashes = dict(zip((f.shown for f in files), engine.map(sha256_of, (f.path for f in files)), strict=True))
    reading = Reading(files, data)
    format = reading.format
    cleaning.survey(reading.raw)
    labelled = format.name == "classification"
    with opened(data.augment, folder, recipe.seed, labelled) as methods:  # before the rows: what is missing is said now
        with open_audit(out / "rejects.jsonl", cleaning.hiding) as audit:
            n_read = reading.into(rows := Rows(), cleaning, encoder, audit, engine)
            audit.check_rejected(n_read, data)
        if reading.tags:
            shown = ", ".join(printable(cleaning.hiding.text(tag)) for tag in reading.tags)
            audit.notes.append(f"columns kept as tags, not shown to the model: {shown}")
        numbers = _liked(rows, rows.numbers, audit)
        numbers = _dedupe(rows, numbers, labelled, data, audit, engine)
        all_drawn = bool((rows.side[numbers] <= SIDES.index("train")).all())
        numbers = _split(rows, numbers, recipe, audit, engine)
        similarity = 0.0 if all_drawn else data.split.near_duplicate_similarity  # what it draws it keeps apart
        notice(rows, numbers, similarity, recipe.model.new_tokens, audit, engine)
        long_documents(rows, numbers, encoder.max_tokens, audit)
        looked = Looked(rows, numbers, labelled, recipe.seed, folder, cleaning)
        checked = look(looked, data.checks, audit, cleaning.hiding.text)
        made, records = _augment(rows, numbers, methods, recipe, labelled, encoder, audit, report)
    for side in SIDES:
        new = [(line_of(item.conversation), item.tokens) for item in made] if side == "train" else []
        encoded = ((rows.line(i), rows.tokens(i)) for i in rows.on(side, numbers).tolist())
        write_side(out, side, chain(encoded, new), encoder)
    assert len(numbers) + len(made) == audit.steps[-1].n_out
    audited = report_of(format, rows, numbers, made, records, checked, audit, hashes, cleaning)
    audited.write(out / "audit.json")
    drawn = sample_of(rows, rows.on("train", numbers), recipe.seed, cleaning)
    (out / "data.html").write_text(data_page(recipe.name, audited, drawn), encoding="utf-8")
    return audited


def _liked(rows: Rows, numbers: Numbers, audit: Audit) -> Numbers:
    """Without the answers that people found bad: nobody should learn to write them."""
    bad = rows.is_rated_bad[numbers]
    if bad.any():
        if bad.all():
            found = f"all {len(numbers)} rows are rated bad: nothing to learn"
            raise DataError.of("LU-D048", "", found, "add rows that people found good")
        audit.step("rated", len(numbers), int((~bad).sum()), {"rated bad": int(bad.sum())})
    if n := int(rows.is_pair[numbers].sum()):
        audit.notes.append(f"{n} preference pairs: the chosen answer is learned, the rejected one is kept beside it")
    return numbers[~bad]


def _dedupe(rows: Rows, numbers: Numbers, labelled: bool, data: Data, audit: Audit, engine: Engine) -> Numbers:
    for step in data.clean:
        if not isinstance(step, Dedupe):
            continue
        n = len(numbers)
        numbers, dropped = dedupe(rows, numbers, step.similarity, labelled, engine)
        audit.step("dedupe", n, len(numbers), dropped)
    return numbers


def _split(rows: Rows, numbers: Numbers, recipe: Recipe, audit: Audit, engine: Engine) -> Numbers:
    audit.notes += split(rows, numbers, recipe.data.split, recipe.seed, engine)
    n = len(numbers)
    numbers = numbers[rows.side[numbers] != NO_SIDE]
    audit.step("split", n, len(numbers), {"newer than the side of their group": n - len(numbers)})
    if recipe.data.limit:
        n = len(numbers)
        numbers, dropped = limit(rows, numbers, recipe.data.limit, recipe.seed)
        audit.step("limit", n, len(numbers), dropped)
        allowed = f"at most {recipe.data.limit} conversations a side, drawn by seed {recipe.seed}"
        audit.notes.append(f"data.limit: {allowed}; {n - len(numbers)} left out")
    return numbers


def _augment(
    rows: Rows,
    numbers: Numbers,
    methods: Sequence[Method],
    recipe: Recipe,
    labelled: bool,
    encoder: Encoder,
    audit: Audit,
    report: Reporter,
) -> tuple[list[Item], tuple[Augmentation, ...]]:
    """What is made of the training side."""
    if not methods:
        return [], ()

    def fit(conversations: Sequence[Conversation]) -> list[Item | str]:
        return [
            one.problems[0].code if isinstance(one, DataError) else encoded_item(c, "train", one)
            for c, one in zip(conversations, encoder.many(conversations), strict=True)
        ]

    train = rows.on("train", numbers)
    made, records = augment(
        [c for c in rows.each(train) if not c.tokens],
        list(rows.each(numbers[rows.side[numbers] != SIDES.index("train")])),
        methods,
        seed=recipe.seed,
        similarity=recipe.data.split.near_duplicate_similarity,
        labelled=labelled,
        fit=fit,
        report=report,
    )
    counts = {f"by {record.method}": record.made for record in records}
    audit.step("augment", len(numbers), len(numbers) + len(made), made=counts)
    return made, records
