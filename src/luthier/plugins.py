"""One small registry: a plug-in by name, or by `module:function`.

Names come from entry points, our own and other packages' alike, so that the foundation names no room.
`{use: rouge, stem: true}` is bound to the callable's signature when a recipe loads: a wrong parameter is
an error before anything runs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from luthier.errors import RecipeError, did_you_mean, printable


@dataclass(frozen=True, slots=True)
class Registry:
    """Plug-ins of one kind; `group` is the entry-point group, e.g. `luthier.metrics`."""

    kind: str
    group: str
    own: tuple[str, ...] = ("sample",)
    """Arguments that the caller alone passes: no recipe sets them."""

    def names(self) -> list[str]:
        return sorted(_entry_points(self.group))

    def find(self, use: str, where: str, folder: Path | None = None) -> Callable[..., Any]:
        """The callable behind a name or `module:function`; `folder` is searched for modules first.

        Raises RecipeError LU-R010 (no such name), LU-R011 (cannot be imported).
        """
        if ":" in use:
            return _import(use, where, folder)
        known = _entry_points(self.group)
        if use not in known:
            raise RecipeError.of("LU-R010", where, f"no {self.kind} is called '{use}'", did_you_mean(use, known))
        return _load(known[use], where)

    def check(self, use: str, params: dict[str, Any], where: str, folder: Path | None, given: set[str]) -> None:
        """Bind `params` to the callable's signature; `given` are arguments that the caller passes by itself.

        Values are checked against the annotations. Raises RecipeError LU-R010 to LU-R012.
        """
        function = self.find(use, where, folder)
        try:
            signature = inspect.signature(function)
        except ValueError:  # some functions that are written in C
            raise RecipeError.of(
                "LU-R011", where, f"'{use}' does not tell its parameters", "wrap it in one that does"
            ) from None
        free = {n: p for n, p in signature.parameters.items() if n not in self.own}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in free.values())
        for name in params:
            if name not in free and not takes_any:
                raise RecipeError.of(
                    "LU-R012", where, f"{self.kind} '{use}' has no parameter '{name}'", did_you_mean(name, free)
                )
        missing = [
            n
            for n, p in free.items()
            if p.default is p.empty
            and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            and n not in params
            and n not in given
        ]
        if missing:
            raise RecipeError.of("LU-R012", where, f"{self.kind} '{use}' needs {', '.join(missing)}")
        if wrong := _wrong_values(function, params):
            raise RecipeError.of("LU-R012", where, f"{self.kind} '{use}': {wrong}")

    def fingerprint(self, use: str, folder: Path | None = None) -> str:
        """Hash of the plug-in's source for cache keys: of its module, or of its distribution's version."""
        entry = None if ":" in use else _entry_points(self.group).get(use)
        if entry and entry.dist:
            return f"{use}@{entry.dist.name}-{version(entry.dist.name)}"
        self.find(use, "", folder)  # which says what is wrong with it
        module = _module(entry.module if entry else use.partition(":")[0], folder)
        path = getattr(module, "__file__", None)
        source = Path(path).read_bytes() if path else repr(module).encode()
        return f"{use}@{hashlib.sha256(source).hexdigest()[:16]}"


METRICS = Registry("metric", "luthier.metrics")
CLEANERS = Registry("cleaner", "luthier.cleaners", own=("text",))
CHECKS = Registry("check", "luthier.checks", own=("conversation", "looked"))
AUGMENTATIONS = Registry("augmentation", "luthier.augmentations", own=("conversation", "rng"))


def _wrong_values(function: Callable[..., Any], params: dict[str, Any]) -> str:
    """Which parameter has a value that its annotation does not allow, and why; nothing where there is no annotation."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # an annotation may be any expression, of names that only a type checker knows
        return ""
    for name, value in params.items():
        with suppress(PydanticSchemaGenerationError):  # a type that pydantic does not know
            try:
                TypeAdapter(hints.get(name, Any)).validate_python(value)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, (name, *first["loc"])))
                return f"{place} is {printable(repr(first['input']))}: {first['msg']}"
    return ""


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def _load(entry: EntryPoint, where: str) -> Callable[..., Any]:
    try:
        return entry.load()  # type: ignore[no-any-return]
    except (Exception, SystemExit) as error:  # as below
        found = f"'{entry.value}', which {entry.dist.name if entry.dist else 'a package'} calls '{entry.name}'"
        advice = "install that package again: what it says of itself does not fit its code"
        why = f"cannot be imported: {type(error).__name__}: {error}"
        raise RecipeError.of("LU-R011", where, f"{found}, {why}", advice) from error


def _import(use: str, where: str, folder: Path | None) -> Callable[..., Any]:
    module_name, _, attribute = use.partition(":")
    try:
        module = _module(module_name, folder)
        found = getattr(module, attribute)
    except (Exception, SystemExit) as error:  # a user's module may raise anything at import
        raise RecipeError.of(
            "LU-R011",
            where,
            f"'{use}' cannot be imported: {type(error).__name__}: {error}",
            f"write module:function; modules are looked for in {folder or Path.cwd()} and on the Python path",
        ) from error
    if not callable(found):
        raise RecipeError.of("LU-R011", where, f"'{use}' is {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _module(name: str, folder: Path | None) -> Any:
    """Import `name`, preferring `<folder>/name.py`, which is loaded under a name of its own."""
    path = (folder or Path.cwd()) / (name.replace(".", "/") + ".py")
    if not path.is_file():
        return importlib.import_module(name)
    # Two recipes may each have a metrics.py, and one may change while we run: path and source are in the name.
    key = hashlib.sha256(str(path.resolve()).encode() + b"\n" + path.read_bytes()).hexdigest()[:12]
    alias = f"luthier_plugin_{key}_{path.stem}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module
