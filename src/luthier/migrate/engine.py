"""The engine: a table of rules, put to a peer's configuration, says what becomes of each of its keys.

Promises: every key of the file ends in exactly one entry (its own, or that of the mapping it is in, where a rule speaks
for the whole mapping), and so in exactly one of four states. It knows no peer and no setting: both are in the tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from luthier.errors import Problem, printable
from luthier.migrate.kinds import Kind, mapping
from luthier.migrate.place import Place

State = Literal["carried", "no_effect", "not_supported", "unknown"]
Key = tuple[str, ...]
"""A key with the mappings it is in, outermost first; the items of a list count from 0."""

SECRET = re.compile(r"(api_?key|secret|password|webhook(_url)?|hub_token|hf_token|access_token|auth)$|^token$")
IN_URL = re.compile(r"(?<=//)[^/@\s]+(?=@)")


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a key: a state, why, and the settings that it makes (place in the recipe -> value)."""

    state: State
    said: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a peer's file, or a default of the peer's, with its fate."""

    file: str
    key: Key
    shown: str
    """The value as it may be shown: cut, and without secrets."""
    fate: Fate

    @property
    def name(self) -> str:
        return printable(".".join(self.key))

    def told(self) -> dict[str, Any]:
        """As plain data, for programs."""
        fate = self.fate
        said = {"file": self.file, "key": self.name, "value": self.shown, "state": fate.state, "why": fate.said}
        return {**said, "settings": dict(fate.settings)}


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a key."""

    kind: Kind
    doc: str
    """What becomes of the key, for docs/migrate.md."""
    by: Callable[[Any, View], Fate]
    """Decides by the value, as `kind` takes it, and by all that stands beside it."""
    default: Any = None
    """What the peer does where nothing is said, and Luthier by itself would not."""
    required: bool = False
    null: bool = False
    """Whether null is a value; elsewhere it says nothing."""
    inner: Table | None = None
    """The rules for the keys of the mapping, or of the list of mappings, that the value is."""


Table = dict[str, Rule]


@dataclass(frozen=True, slots=True)
class View:
    """A mapping of the peer's file as the peer reads it, for rules that depend on several keys."""

    tree: Mapping[str, Any]
    table: Table
    place: Place
    above: View | None = None
    beside: View | None = None
    """Another file that belongs to this one."""

    @property
    def top(self) -> View:
        """The configuration that everything else is of."""
        return self.above.top if self.above is not None else self

    def __call__(self, key: str) -> Any:
        """The value; the peer's default where the file says nothing, or nothing that the peer could read."""
        rule, value = self.table[key], self.tree.get(key)
        if key not in self.tree or (value is None and not rule.null):
            return rule.default
        try:
            return rule.kind(value)
        except ValueError:
            return rule.default

    def given(self, key: str) -> Any:
        """The value that the file itself says; None where it says nothing."""
        return self(key) if self.tree.get(key) is not None else None

    def inside(self, key: str) -> list[View]:
        """The mapping, or the mappings, under a key whose rule has inner rules."""
        table, value = self.table[key].inner, self.tree.get(key)
        items = value if isinstance(value, list) else [value]
        return [View(item, table or {}, self.place, self) for item in items if isinstance(item, dict)]


@dataclass(slots=True)
class Findings:
    """What was found out about a file."""

    file: str
    entries: list[Entry] = field(default_factory=list)
    assumed: list[Entry] = field(default_factory=list)
    """Defaults of the peer's that decide something, for keys that the file does not have."""
    problems: list[Problem] = field(default_factory=list)

    def judge(self, view: View, above: Key = ()) -> None:
        """Find the fate of every key of `view`, and of those inside; then of the peer's defaults."""
        for key, value in view.tree.items():
            self._judge_key((*above, str(key)), value, view.table.get(key), view)
        for key, rule in view.table.items():
            if view.tree.get(key) is not None or (key in view.tree and rule.null):
                continue
            if rule.required:
                self._problem("LU-R021", (*above, key), "is required: the peer cannot train without it")
            elif rule.default is not None:
                fate = rule.by(rule.default, view)
                if fate.settings or fate.state == "not_supported":
                    self.assumed.append(Entry(self.file, (*above, key), shown(key, rule.default), fate))

    def _judge_key(self, key: Key, value: Any, rule: Rule | None, view: View) -> None:
        if rule is None:
            close = get_close_matches(key[-1], [*view.table], n=1)
            said = f"did you mean '{close[0]}'?" if close else "no key of the peer's that is known here"
            self._add(key, value, Fate("unknown", said))
        elif value is None and not rule.null:
            self._add(key, value, Fate("no_effect", "is empty"))
        elif rule.inner is not None and _holds_mappings(value):
            for i, item in enumerate(value if isinstance(value, list) else [value]):
                self._judge_inside((*key, str(i)) if isinstance(value, list) else key, item, rule, view)
        else:
            try:
                self._add(key, value, rule.by(rule.kind(value), view))
            except ValueError as error:
                self._problem("LU-R020", key, f"{error}, found {shown(key[-1], value)}")

    def _judge_inside(self, key: Key, item: Any, rule: Rule, view: View) -> None:
        try:
            if not mapping(item):
                self._add(key, item, Fate("no_effect", "is empty"))
        except ValueError as error:
            self._problem("LU-R020", key, f"{error}, found {shown(key[-1], item)}")
        else:
            self.judge(View(item, rule.inner or {}, view.place, view), key)

    def _add(self, key: Key, value: Any, fate: Fate) -> None:
        self.entries.append(Entry(self.file, key, shown(key[-1], value), fate))

    def _problem(self, code: str, key: Key, found: str) -> None:
        self.problems.append(Problem(code, f"{self.file}: {printable('.'.join(key))}", found))


def _holds_mappings(value: Any) -> bool:
    return bool(value) and (isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict)))


def shown(key: str, value: Any) -> str:
    """A value as it may be shown: nothing of a mapping, no key or password, no character that a terminal obeys."""
    if value is None:
        return "null"
    if SECRET.search(key.lower()):
        return "***"
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, list):
        return printable(f"[{', '.join(shown('', one) for one in value[:8])}]", 60)
    if isinstance(value, bool):
        return str(value).lower()
    return printable(IN_URL.sub("***", str(value)), 60)
