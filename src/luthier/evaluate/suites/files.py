"""Suites from files: those that ship in `probe/` and those of a recipe, in the forms in which such sets are published.

Every row becomes an item or is named as a problem: nothing is left out. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from luthier.conversation import Conversation, Message, make_conversation
from luthier.errors import DataError, EvaluationError, Problem, printable
from luthier.evaluate.suites.instructions import follows
from luthier.evaluate.suites.suite import LESS, MORE, Item, Suite, Text, form_metrics
from luthier.settings import SuiteUse, located


def from_file(use: SuiteUse, folder: Path, seed: int) -> Suite:
    """The suite of a shipped name or of a recipe's file, whose path counts from `folder`.

    Raises DataError LU-D071 (no such file), LU-D072 (rows that are not of the form), all of a file's at once.
    """
    path = files("luthier").joinpath("probe", f"{use.name}.jsonl") if use.path is None else located(use.path, folder)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: texts may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        found, advice = f"{path} cannot be read: {error}", "give the path of a JSONL file, counted from the recipe"
        raise DataError.of("LU-D071", f"evaluate.suites: {use.name}", found, advice) from None
    read, problems = _READ[use.form], []
    items: list[Item] = []
    for at, line in enumerate(lines, 1):
        where = f"{use.path or use.name}:{at}"
        try:
            if line.strip():
                items += read(json.loads(line), where)
        except EvaluationError as error:
            problems += [Problem("LU-D072", where, f"{p.where}: {p.found}", p.advice) for p in error.problems]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            problems.append(Problem("LU-D072", where, f"is no row of the form {use.form}: {_reason(error)}"))
    if use.form == "coreference":
        items = _paired(items)
    if not problems and not items:
        problems.append(Problem("LU-D072", str(path), "holds no question"))
    if problems:
        raise DataError(*problems)
    if use.limit is not None and use.limit < len(items):
        items = [items[i] for i in sorted(np.random.default_rng(seed).permutation(len(items))[: use.limit])]
    return Suite(
        use.name, items, form_metrics(use.name, use.form), written=use.form in ("instructions", "safety"), form=use.form
    )


def _reason(error: Exception) -> str:
    return f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else printable(str(error))


# -- rows ---------------------------------------------------------------------------------------------------------


def _first(row: Mapping[str, Any], *names: str) -> Any:
    """The first of several usual names for a field. Raises KeyError with the first where there is none."""
    return next(row[n] for n in names if n in row) if any(n in row for n in names) else row[names[0]]


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list of texts")
    return [_text(one) for one in value]


def _one_of(row: Mapping[str, Any], field: str, allowed: Mapping[str, bool]) -> bool:
    if (value := row[field]) not in allowed:
        raise ValueError(f"{field} is {' or '.join(allowed)}, found {value!r}")
    return allowed[value]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value


def _multiple_choice(row: Mapping[str, Any], where: str) -> Iterator[Item]:
    """ARC and TruthfulQA (as its questions are published), and the plain form: question, choices, answer."""
    question = _text(_first(row, "question", "prompt")).removeprefix("Question: ")
    if "best_answer" in row:
        choices, answer = [row["best_answer"], *_texts(row["incorrect_answers"])], 0
    elif "answerKey" in row:
        choices, answer = _texts(row["choices"]["text"]), row["choices"]["label"].index(row["answerKey"])
    else:
        choices, answer = _texts(row["choices"]), _first(row, "answer", "label")
    yield _choosing(f"Question: {question}\nAnswer:", choices, answer, where, {"topic": row.get("topic")})


def _choosing(before: str, choices: Sequence[Any], answer: Any, where: str, tags: dict[str, Any]) -> Item:
    """Choices that are the same text are one choice: published sets have some."""
    texts = [_text(c) for c in choices]
    if len(set(texts)) < 2:
        raise ValueError("needs two choices that differ, or more")
    conversation = _asked(before, _at(texts, answer, "answer"), where, tags)
    return Item(conversation, {text: Text(before, f" {text}") for text in texts})


def _at(texts: Sequence[str], place: Any, what: str) -> str:
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(texts):
        raise ValueError(f"the {what} {place!r} is no place in its {len(texts)} choices")
    return texts[place]


def _asked(prompt: str, answer: str, where: str, tags: dict[str, Any]) -> Conversation:
    turns = [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
    return make_conversation(turns, where, {k: v for k, v in tags.items() if v is not None})


def _pair(row: Mapping[str, Any], where: str) -> Iterator[Item]:
    """CrowS-Pairs: more_stereotyping and less_stereotyping, or sent_more and sent_less."""
    more = _text(_first(row, "more_stereotyping", "sent_more"))
    less = _text(_first(row, "less_stereotyping", "sent_less"))
    yield _preferring(more, less, where, {"bias_type": row.get("bias_type")})


def _preferring(more: str, less: str, where: str, tags: dict[str, Any]) -> Item:
    return Item(_asked(less, more, where, tags), {MORE: Text("", more), LESS: Text("", less)})


def _coreference(row: Mapping[str, Any], where: str) -> Iterator[Item]:
    """A pair: pro and anti; or WinoBias as published, where two rows of one id are the pair."""
    if "pro" in row:
        yield _preferring(_text(row["pro"]), _text(row["anti"]), where, {"occupation": row.get("occupation")})
        return
    pro = _one_of(row, "condition", {"pro-stereotypical": True, "anti-stereotypical": False})
    half = Text("", _text(row["text"]))
    yield Item(_asked(str(row["id"]), half.scored, where, {}), {MORE if pro else LESS: half})


def _paired(items: Sequence[Item]) -> list[Item]:
    """Halves of pairs put together, by id and, of one id, in the order in which they stand."""
    waiting: dict[tuple[str, str], list[Item]] = {}
    whole = []
    for item in items:
        if len(item.choices) == 2:
            whole.append(item)
            continue
        [side] = item.choices
        key = item.conversation.messages[0].content
        if halves := waiting.get((key, LESS if side == MORE else MORE)):
            both = {**halves.pop(0).choices, **item.choices}
            more, less = both[MORE], both[LESS]
            assert isinstance(more, Text) and isinstance(less, Text)
            whole.append(_preferring(more.scored, less.scored, item.conversation.source, {}))
        else:
            waiting.setdefault((key, side), []).append(item)
    if alone := [i for halves in waiting.values() for i in halves]:
        raise DataError(
            *(Problem("LU-D072", i.conversation.source, "has no other half of its pair") for i in alone[:20])
        )
    return whole


def _ambiguity(row: Mapping[str, Any], where: str) -> Iterator[Item]:
    """BBQ in plain form: context, question, choices, the places of the right, the stereotyped and the unknown one."""
    choices = _texts(row["choices"])
    # Unless they are shown, "cannot be known" is never a likely way to go on.
    shown = f"Possible answers: {'; '.join(choices)}"
    before = f"{_text(row['context'])}\nQuestion: {_text(row['question'])}\n{shown}\nAnswer:"
    ambiguous = _one_of(row, "condition", {"ambiguous": True, "disambiguated": False})
    tags = {"category": row.get("category"), "ambiguous": ambiguous}
    roles = {role: _at(choices, row[role], role) for role in ("stereotyped", "unknown")}
    yield _choosing(before, choices, row["answer"], where, {**tags, **roles})


def _instruction(row: Mapping[str, Any], where: str) -> Iterator[Item]:
    if not isinstance(row["check"], dict):
        raise ValueError(f"check is a mapping of checks, found {row['check']!r}")
    follows("", row["check"])  # an unknown check is an error before any model runs
    yield Item(_asked(_text(row["prompt"]), "-", where, {"check": row["check"]}))


def _safety(row: Mapping[str, Any], where: str) -> Iterator[Item]:
    harmful = _one_of(row, "kind", {"harmful": True, "benign": False})
    yield Item(_asked(_text(row["prompt"]), "-", where, {"harmful": harmful}))


_READ: dict[str, Callable[[Mapping[str, Any], str], Iterator[Item]]] = {
    "multiple_choice": _multiple_choice,
    "pairs": _pair,
    "coreference": _coreference,
    "ambiguity": _ambiguity,
    "instructions": _instruction,
    "safety": _safety,
}
