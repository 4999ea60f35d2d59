"""What a command is given, a recipe, data or a run's folder, and the folder of the run that it means."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier import keys
from luthier import recipe as recipes
from luthier.errors import RunError
from luthier.files import locked, sha256_of, sync_folder, write_atomically
from luthier.progress import Reporter
from luthier.records import Verdict
from luthier.settings import Recipe
from luthier.store import stage_record

if TYPE_CHECKING:
    from luthier.models import Base

WORKSPACE = Path("runs")


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder and what it has come to."""

    folder: Path
    verdict: Verdict | None

    @property
    def report(self) -> Path:
        return self.folder / "release" / "report.json"


def workspace_of(target: str | Path) -> Path:
    """Where the runs of a target lie, if nobody says where."""
    path = Path(target)
    if not (path / "run.json").is_file():
        return WORKSPACE
    return path.parent if path.name else path.resolve().parent  # of "." the parent is "." again


def open_target(target: str | Path, overrides: tuple[str, ...], report: Reporter) -> tuple[Recipe, Path]:
    """The recipe that `target` means, and the folder from which its paths count."""
    path = Path(target)
    if (path / "run.json").is_file():
        origin = _origin(path)
        tree = recipes.read_tree(path / "recipe.yaml")
        return recipes.validate(recipes.override(tree, overrides), str(path / "recipe.yaml"), origin), origin
    if path.suffix in (".yaml", ".yml"):
        return recipes.load(path, overrides), path.parent
    from luthier.prepare import derive

    if not path.exists():
        raise RunError.of(
            "LU-U002",
            str(target),
            "no such recipe, run or data",
            "give a recipe.yaml, a data file or folder, or a run's folder",
        )
    recipe = recipes.validate(recipes.override(derive(path), overrides), f"recipe derived from {path}", Path.cwd())
    report.say(f"derived from {path}:\n{recipes.to_yaml(recipe)}")
    return recipe, Path.cwd()


def _origin(folder: Path) -> Path:
    """Where a run's recipe lay when it was last run. Raises RunError LU-U008, LU-U047 where the run's own recipe has
    changed."""
    path = folder / "run.json"
    try:
        said = json.loads(path.read_bytes())
        origin = Path(said["origin"])
    except (OSError, ValueError, KeyError, TypeError):
        advice = "run the recipe again, which writes it anew, or write " + '{"origin": "the folder of the recipe"}'
        raise RunError.of("LU-U008", str(path), "does not say where the recipe lay", advice) from None
    kept = folder / "recipe.yaml"
    if said.get("recipe", "") not in ("", sha256_of(kept) if kept.is_file() else None):
        found = "has changed, or run.json has, since the run began"
        raise RunError.of("LU-U047", str(kept), found, "run the recipe itself; settings are changed by --set")
    return origin


def base_of(recipe: Recipe, origin: Path) -> Base:
    """The base model with the tokens that the recipe gives it."""
    from luthier.models import find_base

    return replace(find_base(recipe.model.base, origin), new_tokens=recipe.model.new_tokens)


def read_run(folder: Path) -> Run:
    path = folder / "release" / "verdict.json"
    done = stage_record(folder, "release") is not None
    return Run(folder, Verdict.read(path) if done and path.is_file() else None)


def folder_of(recipe: Recipe, origin: Path, workspace: Path) -> Path:
    """Where the run of a recipe and its data lies."""
    return workspace / f"{recipe.name}-{keys.identity(recipe, origin)}"


def keep_recipe(recipe: Recipe, origin: Path, folder: Path) -> None:
    """The recipe as it was first run, or as it is now if that has been damaged, and where it lies now."""
    kept, path = folder / "recipe.yaml", folder / "run.json"
    try:
        whole = json.loads(path.read_bytes())["recipe"] == sha256_of(kept)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        write_atomically(kept, recipes.to_yaml(recipe).encode())
    where = str(origin.resolve())  # which changes when a project is moved
    record = json.dumps({"origin": where, "recipe": sha256_of(kept)}).encode() + b"\n"
    if not whole or path.read_bytes() != record:
        write_atomically(path, record)
        sync_folder(folder)


@contextlib.contextmanager
def alone(folder: Path, what: str = "") -> Iterator[None]:
    """One process a run, or a part of it. Raises RunError LU-U003."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / f".{what}lock", wait=False))
        except BlockingIOError:
            found = "another process is working on this run"
            raise RunError.of("LU-U003", str(folder), found, "wait for it, or stop it") from None
        yield
