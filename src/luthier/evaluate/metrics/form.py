"""Metrics of an answer's form: a pattern, JSON, a JSON schema, its script, its length, whether it loops.

Form is what a program that reads the answer relies on; none of these metrics tells whether what the form holds is
true. Calls of tools are in `calls.py`. Knows no model; JSON is read as RFC 8259 writes it, so NaN and a Markdown fence
are no JSON.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from luthier.errors import EvaluationError, extra
from luthier.evaluate.metrics.text import script, words
from luthier.metric import MeanMetric, Metric, Sample, lower_is_better
from luthier.settings import located


def read_json(text: str) -> Any:
    """The value that `text` is. Raises ValueError where it is no JSON text, RecursionError where it is too deep."""
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is Python's, not JSON")


def matches(pattern: str) -> Metric:
    """Share of answers that the regular expression `pattern` matches from first to last character.

    Tells whether a form is kept (a date, a ticket number), not whether what stands in the form is right.
    """
    form = re.compile(pattern)
    return MeanMetric("matches", lambda sample: form.fullmatch(sample.answer) is not None if sample.prompt else None)


def valid_json(sample: Sample) -> bool | None:
    """Share of answers that are one JSON text (RFC 8259) and nothing else, so no NaN and no Markdown fence around it.

    Tells whether a program could read the answer, not whether the fields it needs are there, nor whether they are true.
    """
    if not sample.prompt:
        return None
    try:
        read_json(sample.answer)
    except (ValueError, RecursionError):
        return False
    return True


def json_schema(schema: dict[str, Any] | str, folder: Path | None = None) -> Metric:
    """Share of answers that are one JSON text that fits `schema` (JSON Schema, 2020-12 unless `$schema` says else).

    `schema` is written in the recipe, or is the path of a file, counted from the recipe (`folder`). Tells whether the
    fields, types and ranges are those a program expects, not whether the values are right: an invented number fits as
    well as the true one. `format` is not checked, and a `$ref` never leads to the network.

    Raises EvaluationError LU-E013 where jsonschema is not installed; ValueError for what is no schema.
    """
    validator = _validator(_schema_file(folder, schema) if isinstance(schema, str) else schema)

    def fits(sample: Sample) -> bool | None:
        if not sample.prompt:
            return None
        try:
            return bool(validator.is_valid(read_json(sample.answer)))
        except (ValueError, RecursionError):
            return False

    return MeanMetric("json_schema", fits)


def _schema_file(folder: Path | None, path: str) -> Any:
    return read_json(located(path, folder or Path()).read_text(encoding="utf-8"))


def _validator(schema: Any) -> Any:
    try:
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import validator_for
        from jsonschema_specifications import REGISTRY
    except ImportError:
        found = "needs the package jsonschema, which is not installed"
        advice = extra("schema")
        raise EvaluationError.of("LU-E013", "metric 'json_schema'", found, advice) from None

    if not isinstance(schema, dict):
        raise ValueError(f"a schema is a JSON object, this is a {type(schema).__name__}")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"no JSON schema, at {error.json_path}: {error.message}") from None
    return kind(schema, registry=REGISTRY)  # its own registry would fetch what a $ref names


def language_kept(sample: Sample) -> bool | None:
    """Share of answers in the script of their reference: Latin, Cyrillic, Han, Arabic, Devanagari ... (`text.script`).

    Finds a model that answers Russian or Hindi in English. Does not tell languages of one script apart: English for
    German passes. Does not apply where the reference has no letter; an answer without any has not kept it.
    """
    expected = script(sample.reference) if sample.prompt else None
    return None if expected is None else script(sample.answer) == expected


def answer_length(sample: Sample) -> int | None:
    """Words in the answer (see `text.words`), mean over samples. Not a quality: "higher is better" means nothing here.

    Tells whether a gain elsewhere came with longer or shorter answers, which judges, and ROUGE's recall, favour.
    """
    return len(words(sample.answer)) if sample.prompt else None


@lower_is_better
def repetition(sample: Sample) -> float | None:
    """Share of the answer's runs of four words that it has said before (seq-rep-4, Welleck et al. 2020), mean.

    Finds a model that loops. Does not see repetition in other words, and an answer of under four words has none.
    """
    if not sample.prompt:
        return None
    said = words(sample.answer)
    runs = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
