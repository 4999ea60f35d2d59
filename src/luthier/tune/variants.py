"""What may vary between trials: variants, seeds and rungs, checked before anything is run.

All problems of all variants are said at once. Knows nothing of how they are trained or compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier import recipe as recipes
from luthier.errors import Problem, RecipeError, RunError
from luthier.settings import AugmentUse, Recipe, fingerprint

BASELINE = "baseline"
FIXED = ("name", "seed", "data", "model.base", "evaluate", "release")
"""Settings that decide what is asked, and of whom: variants that differ in them cannot be compared pair by pair."""
FREE = ("data.augment",)
"""Rows are made of the training side alone: `data.augment` decides what is learned from, and nothing that is asked."""

Variants = Mapping[str, Sequence[str]]
"""Name -> settings, `model.adapt.rank=8`."""


def check_variants(recipe: Recipe, variants: Variants, origin: Path) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The variants that change something, and notes on the others. Raises all problems of all of them at once."""
    problems: list[Problem] = []
    seen: dict[str, str] = {fingerprint(recipe): BASELINE}
    kept: dict[str, tuple[str, ...]] = {}
    notes = []
    for name, settings in variants.items():
        where = f"variant '{name}'"
        if name == BASELINE:
            problems.append(Problem("LU-U032", where, "is the name of the recipe itself", "give it another"))
        fixed = [s for s in settings if _is_fixed(s.partition("=")[0])]
        if fixed:
            may_not = f"what may vary is all but {', '.join(FIXED)}, and {', '.join(FREE)}"
            advice = f"{may_not}; --set changes those for all variants"
            problems += [Problem("LU-U031", where, f"'{s}' would change what is compared", advice) for s in fixed]
            continue
        try:
            tree = recipe.model_dump(mode="json", exclude_defaults=True)
            changed = fingerprint(recipes.validate(recipes.override(tree, tuple(settings)), where, origin))
        except RecipeError as error:
            problems += error.problems
            continue
        same = seen.setdefault(changed, name)
        if same == BASELINE:
            notes.append(f"{name} changes nothing: it is the baseline")
        elif same != name:
            problems.append(Problem("LU-U032", where, f"is the same recipe as '{same}'", "leave one out"))
        else:
            kept[name] = tuple(settings)
    if problems:
        raise RunError(*problems)
    if not kept:
        found = "no variant differs from the recipe: nothing to compare it with"
        raise RunError.of("LU-U030", "variants", found, "--vary model.adapt.rank=4,16, or --variant name:setting=value")
    return kept, notes


def augmented_by(uses: Sequence[AugmentUse]) -> str:
    """The setting by which a variant learns from the rows of these augmentations, and of no other."""
    rows = [{**use.model_dump(mode="json", exclude_defaults=True), "use": use.use, "keep": "always"} for use in uses]
    return f"data.augment={json.dumps(rows)}"


def _is_fixed(key: str) -> bool:
    return not any(f"{key}.".startswith(f"{free}.") for free in FREE) and any(_within(key, fixed) for fixed in FIXED)


def _within(key: str, fixed: str) -> bool:
    """Whether one of the two settings holds the other."""
    return f"{key}.".startswith(f"{fixed}.") or f"{fixed}.".startswith(f"{key}.")


def check_seeds(seeds: int | Sequence[int], first: int) -> tuple[int, ...]:
    found = tuple(range(first, first + seeds) if isinstance(seeds, int) else seeds)
    if not found or len(set(found)) < len(found):
        wrong = "a seed stands twice" if found else "no seed is given"
        raise RunError.of("LU-U033", "seeds", wrong, "3 to 5 different ones tell the luck of training")
    return found


def check_rungs(rungs: Sequence[float] | None) -> tuple[float, ...]:
    found = tuple(rungs or (1.0,))
    if found[-1] != 1.0 or found[0] <= 0 or list(found) != sorted(set(found)):
        raise RunError.of("LU-U033", "rungs", f"{list(found)}", "rising fractions of the training rows, the last 1")
    return found
