"""Migrate: the configuration of another trainer in, a recipe and a list of what became of every key out.

Read `migrate` from top to bottom. A table of rules for each peer (`axolotl.py`, `llamafactory.py`, `trl.py`) is applied
by one engine (`engine.py`). The peer's file is data: it is read strictly, nothing in it is run or rendered.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from luthier.errors import Problem, RecipeError, RunError, printable
from luthier.files import write_atomically
from luthier.migrate.axolotl import AXOLOTL
from luthier.migrate.engine import Entry, Findings, View
from luthier.migrate.llamafactory import LLAMAFACTORY
from luthier.migrate.llamafactory_data import INFO, data_sets
from luthier.migrate.peer import Peer
from luthier.migrate.place import Place
from luthier.migrate.read import is_info, read
from luthier.migrate.trainer import as_name
from luthier.migrate.trl import TRL
from luthier.recipe import validate
from luthier.settings import Recipe
from luthier.strict_yaml import dump_yaml

__all__ = ["PEERS", "Migration", "convert", "migrate"]

PEERS = {peer.key: peer for peer in (AXOLOTL, LLAMAFACTORY, TRL)}
ALWAYS: dict[str, Any] = {
    "train.early_stopping": None,
    "release.rules": [
        {"metric": "perplexity", "must": "beat_baseline"},
        {"metric": "general_perplexity", "must": "not_regress", "by_relative": 0.1},
    ],
}
"""What a peer's file does not say, and a recipe has to: peers do not stop early unless asked, and judge by no rules."""
RULES_NOTE = "release.rules are Luthier's: perplexity must beat the base model's; choose the metrics of your task"
SIDES_NOTE = "data.split holds rows out to validate and to judge by, from which the peer would have learned"
STOPPING_NOTE = "training runs to its end, as the peer's does: train.early_stopping is null"
DEVICES_NOTE = "on how many devices the peer trained is not in its file: one is assumed; --devices N says it"


@dataclass(frozen=True, slots=True)
class Migration:
    """A recipe, and what became of every key of the files that it was made of."""

    peer: str
    recipe: Recipe
    text: str
    """The recipe's file."""
    entries: tuple[Entry, ...]
    """One for each key."""
    assumed: tuple[Entry, ...]
    """Defaults of the peer's that are not Luthier's, of keys that the files do not have."""
    notes: tuple[str, ...]

    def of(self, state: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.fate.state == state)

    def told(self) -> dict[str, Any]:
        """As plain data, for programs."""
        keys, assumed = ([entry.told() for entry in entries] for entries in (self.entries, self.assumed))
        return {"peer": self.peer, "keys": keys, "assumed": assumed, "notes": list(self.notes)}


def migrate(
    files: Sequence[Path],
    out: Path | None = None,
    *,
    peer: str | None = None,
    devices: int | None = None,
    force: bool = False,
) -> tuple[Migration, Path]:
    """Write the recipe that a peer's configuration becomes; `recipe.yaml` beside it, unless `out` says where.

    Raises RunError LU-U043 (a file is in the way), LU-U044 (whose configuration it is cannot be told), RecipeError
    LU-R001 to LU-R005 (a file cannot be read), LU-R020 (a value of another kind than the peer takes), LU-R021 (a key
    that the peer needs is missing), and what is wrong with the recipe that came out.
    """
    config, info = _sort(files)
    out = out or config.parent / "recipe.yaml"
    _check_free(out, files, force)
    found = convert(config, info, out, peer=peer, devices=devices)
    write_atomically(out, found.text.encode())
    return found, out


def convert(
    config: Path, info: Path | None, out: Path, *, peer: str | None = None, devices: int | None = None
) -> Migration:
    """As `migrate`, without writing."""
    tree = read(config)
    found = PEERS[peer] if peer else _whose(tree, config)
    place = Place((Path(), config.parent), out.parent, devices or 1)
    view = View(tree, found.table, place)
    findings = [Findings(config.name)]
    if found is LLAMAFACTORY and (info := info or _info_of(view)) is not None:
        view = replace(view, beside=data_sets(read(info), view, Place((info.parent,), out.parent)))
        findings.append(Findings(info.name))
    elif info is not None:
        raise RunError.of("LU-U044", str(info), f"goes with LLaMA-Factory's configuration, not {found.name}'s")
    for one, seen in zip(findings, (view, view.beside), strict=False):
        assert seen is not None
        one.judge(seen)
    if problems := [problem for one in findings for problem in one.problems]:
        raise RecipeError(*problems)
    return _made(found, view, findings, out, config, devices)


def _sort(files: Sequence[Path]) -> tuple[Path, Path | None]:
    """The configuration, and the dataset_info.json that may belong to it, in either order."""
    infos = [file for file in files if is_info(file)]
    configs = [file for file in files if file not in infos]
    if len(configs) != 1 or len(infos) > 1:
        advice = f"luthier migrate axolotl.yml | trl.yaml | llamafactory.yaml {INFO}"
        said = ", ".join(map(str, files))
        raise RunError.of(
            "LU-U044", said, f"one configuration is expected, with LLaMA-Factory's {INFO} at most", advice
        )
    return configs[0], infos[0] if infos else None


def _check_free(out: Path, files: Sequence[Path], force: bool) -> None:
    if any(out.resolve() == file.resolve() for file in files):
        raise RunError.of("LU-U043", str(out), "is the file that is read", "name another one by --out")
    if out.exists() and not force:
        raise RunError.of(
            "LU-U043", str(out), "is there already", "name another one by --out, or replace it by --force"
        )


def _whose(tree: Mapping[str, Any], config: Path) -> Peer:
    """The peer that knows most of the keys."""
    known = {peer.key: sum(key in peer.table for key in tree) for peer in PEERS.values()}
    best = max(known.values())
    leaders = [key for key, n in known.items() if n == best]
    if best == 0 or len(leaders) > 1:
        found = "no key in it is a peer's" if best == 0 else " and ".join(PEERS[key].name for key in leaders) + "?"
        found = f"whose configuration this is cannot be told: {found}"
        raise RunError.of("LU-U044", str(config), found, f"say it: --peer {' | --peer '.join(PEERS)}")
    return PEERS[leaders[0]]


def _info_of(view: View) -> Path | None:
    """Where LLaMA-Factory would look for it."""
    return view.place.find(f"{view('dataset_dir')}/{INFO}")


def _made(
    peer: Peer, view: View, findings: Sequence[Findings], out: Path, config: Path, devices: int | None
) -> Migration:
    entries = [entry for one in findings for entry in one.entries]
    assumed = [entry for one in findings for entry in one.assumed]
    settings = {"name": as_name(config.stem) or "migrated", **ALWAYS}
    origin: dict[str, str] = {}
    for entry in (*entries, *assumed):
        settings |= entry.fate.settings
        origin |= dict.fromkeys(entry.fate.settings, f"{entry.file}: {entry.name}")
    settings["data.sources"] = peer.sources(view)
    if not settings["data.sources"]:
        raise RecipeError.of(
            "LU-R021", str(config), "no data are named", f"{peer.name} reads them from {peer.data_keys}"
        )
    tree = _tree(settings)
    recipe = _validated(tree, origin, out)
    text = _head(peer, config, entries) + dump_yaml(_ordered(tree, Recipe))
    return Migration(peer.name, recipe, text, tuple(entries), tuple(assumed), tuple(_notes(recipe, view, devices)))


def _tree(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`train.epochs` -> {train: {epochs: ...}}."""
    tree: dict[str, Any] = {}
    for place, value in settings.items():
        *sections, last = place.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def _ordered(tree: dict[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """The settings in the order of docs/recipe.md, a method before its parameters."""
    fields = [*section.model_fields]
    found = {}
    for name in sorted(tree, key=lambda name: fields.index(name) if name in fields else -1):
        value, inner = tree[name], section.model_fields[name].annotation
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
            value = _ordered(value, inner)
        elif isinstance(value, dict):
            value = dict(sorted(value.items(), key=lambda item: item[0] != "method"))
        found[name] = value
    return found


def _validated(tree: dict[str, Any], origin: Mapping[str, str], out: Path) -> Recipe:
    """What is wrong with a setting is said of the key that it comes from."""
    try:
        return validate(tree, str(out), out.parent)
    except RecipeError as error:
        raise RecipeError(*(_blame(problem, origin, str(out)) for problem in error.problems)) from None


def _blame(problem: Problem, origin: Mapping[str, str], where: str) -> Problem:
    place = problem.where.removeprefix(f"{where}: ")
    key = next((k for p, k in origin.items() if place == p or place.startswith(f"{p}.")), None)
    if key is None:
        return problem
    return replace(problem, where=key, found=f"as {place}: {problem.found}")


def _head(peer: Peer, config: Path, entries: Sequence[Entry]) -> str:
    lost = [entry.name for entry in entries if entry.fate.state in ("not_supported", "unknown")]
    text = f"From {printable(config.name)} ({peer.name}), by luthier migrate. Look before you train: luthier check."
    text += f" Not carried over: {', '.join(lost)}." if lost else ""
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, 118, break_on_hyphens=False)) + "\n"


def _notes(recipe: Recipe, view: View, devices: int | None) -> list[str]:
    notes = [RULES_NOTE, SIDES_NOTE]
    notes += [STOPPING_NOTE] if recipe.train.early_stopping is None else []
    notes += [DEVICES_NOTE] if devices is None else []
    places = [view.place] + ([view.beside.place] if view.beside else [])
    notes += [f"not there yet: {printable(path)}" for place in places for path in place.missing]
    return notes
