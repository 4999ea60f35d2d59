"""Recipes: a settings tree read from YAML or plain data, and every problem of it said at once, each with its place.

Recipes are YAML 1.2 (`1e-5` is a number, `no` is text), read safely: no tags, few aliases, no environment
interpolation. Plug-ins, rules and judges' rubrics are looked up here, before anything runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from luthier.errors import Problem, RecipeError, did_you_mean, printable
from luthier.plugins import AUGMENTATIONS, CHECKS, CLEANERS, METRICS, Registry
from luthier.settings import HUMAN_PREFERENCE, Cleaner, Judge, Peft, Recipe, Use, located, metric_name
from luthier.strict_yaml import dump_yaml, parse_yaml, read_mapping
from luthier.techniques import TECHNIQUES, check_params


def load(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `train.epochs=1` strings, whose values are read as YAML.

    Raises RecipeError with every problem found.
    """
    path = Path(path)
    return validate(override(read_tree(path), overrides), str(path), path.parent)


def read_tree(path: Path) -> dict[str, Any]:
    """The settings that a recipe's file holds, unchecked. Raises RecipeError LU-R001 to LU-R005."""
    return read_mapping(path, "a recipe", "luthier init writes one to start from")


def override(tree: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """The tree with `train.epochs=1` strings applied, in place. Raises RecipeError LU-R007."""
    for text in overrides:
        _set(tree, text)
    return tree


def validate(tree: dict[str, Any], where: str, folder: Path) -> Recipe:
    """A checked recipe from plain data; plug-ins `module:function` are looked for in `folder` first."""
    _check_characters(tree, where)
    problems = [
        Problem(
            "LU-R006",
            f"{where}: {place}",
            f"environment interpolation '{printable(text)}' is not done",
            "write the value itself",
        )
        for place, text in _texts(tree, "")
        if re.search(r"\$\{[^}]*\}|\$\([^)]*\)|\{\{\s*env", text)
    ]
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        # A list whose items are all wrong is also "too short": pydantic counts what is left of it.
        wrong = [e for e in error.errors() if not (e["type"] == "too_short" and e["input"])]
        raise RecipeError(*problems, *(_explain(e, where) for e in wrong)) from None
    problems += _check_plugins(recipe, where, folder)
    adapt = recipe.model.adapt
    if isinstance(adapt, Peft) and adapt.params:
        problems += check_params(adapt.type, adapt.params, f"{where}: model.adapt.params")
    if problems:
        raise RecipeError(*problems)
    return recipe


def _check_characters(tree: dict[str, Any], where: str) -> None:
    """Raises RecipeError LU-R002 for half a character (a lone surrogate), which no file and no hash can hold."""
    problems = [
        Problem("LU-R002", f"{where}: {printable(place)}", f"'{printable(text)}' holds half a character", "write UTF-8")
        for place, text in _texts(tree, "")
        if re.search(r"[\ud800-\udfff]", text)
    ]
    if problems:
        raise RecipeError(*problems)


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, defaults left out."""
    return dump_yaml(recipe.model_dump(mode="json", exclude_defaults=True))


def _check_plugins(recipe: Recipe, where: str, folder: Path) -> list[Problem]:
    problems: list[Problem] = []

    def check(registry: Registry, use: Use, place: str, given: set[str]) -> None:
        try:
            registry.check(use.use, use.params, f"{where}: {place}", folder, given)
        except RecipeError as error:
            problems.extend(error.problems)

    for i, step in enumerate(recipe.data.clean):
        if isinstance(step, Cleaner):
            check(CLEANERS, step, f"data.clean.{i}", {"seed"})
    for i, use in enumerate(recipe.data.augment):
        check(AUGMENTATIONS, use, f"data.augment.{i}", {"folder", "seed", "labelled"})
    for i, looks in enumerate(recipe.data.checks):
        check(CHECKS, looks, f"data.checks.{i}", set())
    for i, metric in enumerate(recipe.evaluate.metrics):
        check(METRICS, metric, f"evaluate.metrics.{i}", {"labels", "folder"})
        if metric_name(metric) in map(metric_name, recipe.evaluate.metrics[:i]):
            found = f"a second metric called '{metric_name(metric)}'"
            advice = "a report has one of each name; give the function another one"
            problems.append(Problem("LU-R015", f"{where}: evaluate.metrics.{i}", found, advice))
    names = [suite.name for suite in recipe.evaluate.suites]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        found = f"two suites are called {', '.join(twice)}"
        problems.append(Problem("LU-R015", f"{where}: evaluate.suites", found, "give each a name of its own"))
    problems += _check_judges(recipe, where, folder)
    if recipe.evaluate.metrics and not problems:
        measured = {metric_name(m) for m in recipe.evaluate.metrics} | {"general_perplexity", HUMAN_PREFERENCE}
        measured |= {name for judge in recipe.evaluate.judges for name in judge.measures()}
        measured |= {name for suite in recipe.evaluate.suites for name in suite.metrics}
        problems += [
            Problem(
                "LU-R013",
                f"{where}: release.rules.{i}",
                f"no metric measures '{rule.metric}'",
                did_you_mean(rule.metric, measured),
            )
            for i, rule in enumerate(recipe.release.rules)
            if rule.metric not in measured
        ]
    return problems


def _check_judges(recipe: Recipe, where: str, folder: Path) -> list[Problem]:
    problems: list[Problem] = []
    taken = {metric_name(m) for m in recipe.evaluate.metrics} | {"general_perplexity"}
    for i, judge in enumerate(recipe.evaluate.judges):
        place = f"{where}: evaluate.judges.{i}"
        if twice := sorted(taken.intersection(judge.measures())):
            advice = "a report has one of each name; call the judge something else"
            problems.append(Problem("LU-R015", place, f"a second metric called '{twice[0]}'", advice))
        taken |= {*judge.measures()}
        try:
            question(judge, folder, place)
        except RecipeError as error:
            problems.extend(error.problems)
    return problems


def question(judge: Judge, folder: Path, where: str) -> str:
    """What a judge goes by: its criteria, its rubric, or what the rubric's file says; paths count from `folder`.

    Raises RecipeError LU-R016 for a file that is not there, is not UTF-8 or holds nothing.
    """
    text = judge.criteria if judge.form == "pairwise" else judge.rubric or ""
    if judge.rubric_file is not None:
        path = located(judge.rubric_file, folder)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "cannot be read"
            raise RecipeError.of(
                "LU-R016", where, f"the rubric {path} {why}", "paths count from the recipe's folder"
            ) from None
    if not text.strip():
        raise RecipeError.of("LU-R016", where, "there is no word to judge by", "say what makes an answer good")
    return text.strip()


def _set(tree: dict[str, Any], assignment: str) -> None:
    """Apply `train.epochs=1` to the tree."""
    place, equals, text = assignment.partition("=")
    if not equals or not place:
        raise RecipeError.of("LU-R007", assignment, "is not of the form section.setting=value")
    *parents, last = place.split(".")
    node: Any = tree
    for part in parents:
        node = (
            node[int(part)]
            if isinstance(node, list) and part.isdecimal() and int(part) < len(node)
            else (node.setdefault(part, {}) if isinstance(node, dict) else None)
        )
        if not isinstance(node, dict | list):
            raise RecipeError.of("LU-R007", assignment, f"'{part}' is not a section")
    value = parse_yaml(text, assignment)
    if isinstance(node, list):
        if not last.isdecimal() or int(last) >= len(node):
            raise RecipeError.of("LU-R007", assignment, f"'{last}' is no index of a list of {len(node)}")
        node[int(last)] = value
    else:
        node[last] = value


def _explain(error: Any, where: str) -> Problem:
    loc = [part for i, part in enumerate(error["loc"]) if not _is_tag(error["loc"][:i])]
    place = ".".join(map(str, loc))
    where = f"{where}: {place}" if place else where
    if error["type"] == "extra_forbidden":
        return Problem("LU-R008", where, "no such setting", did_you_mean(str(loc[-1]), _settings_at(loc[:-1], error)))
    if error["type"] == "union_tag_invalid":
        methods = {*re.findall(r"'(\w+)'", error["ctx"]["expected_tags"]), *map(str.lower, TECHNIQUES)}
        tag = error["ctx"]["tag"]
        return Problem("LU-R009", where, f"no method is called '{printable(tag)}'", did_you_mean(tag.lower(), methods))
    if error["type"] == "model_attributes_type":
        return Problem("LU-R009", where, f"is no mapping of settings, found {printable(repr(error['input']))}")
    if error["type"] == "missing":
        return Problem("LU-R009", where, "is required")
    if place == "name":
        return Problem(
            "LU-R014",
            where,
            f"'{printable(str(error['input']))}' cannot name a run",
            "letters, digits, '.', '_' and '-', 64 at most, starting with a letter or digit",
        )
    found = "" if isinstance(error["input"], dict | list | BaseModel) else f", found {printable(repr(error['input']))}"
    advice = "write the number without quotes" if isinstance(error["input"], str) and _is_number(error["input"]) else ""
    return Problem("LU-R009", where, error["msg"].removeprefix("Value error, ") + found, advice)


def _is_tag(before: tuple[str | int, ...]) -> bool:
    """Whether what follows is the tag of a union, no setting."""
    return before[-1:] == ("adapt",) or before[-2:-1] == ("clean",)


def _settings_at(loc: list[Any], error: Any) -> list[str]:
    """The settings allowed in the section at `loc`."""
    section: Any = Recipe
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation if part in getattr(section, "model_fields", {}) else None
        section = _section_of(annotation, error)
    return list(getattr(section, "model_fields", {}))


def _section_of(annotation: Any, error: Any) -> Any:
    """The Section inside an annotation such as `tuple[Source, ...]`, `X | None` or the adapt union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    sections = [s for a in get_args(annotation) if (s := _section_of(a, error)) is not None]
    for section in sections:  # of a union, the one whose tag stands in the error's place
        if section.__name__.lower() in [str(part).replace("_", "") for part in error["loc"]]:
            return section
    return sections[0] if sections else None


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key, place)
            yield from _texts(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _texts(inner, f"{place}.{i}")


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False
