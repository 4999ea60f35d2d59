"""The rules that tables are made of: a key is carried, chosen, without effect, not supported, or decided by a function.

Each rule writes its own line of docs/migrate.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from luthier.errors import printable
from luthier.migrate.engine import Fate, Rule, Table, View
from luthier.migrate.kinds import Kind, anything, text

OFF: tuple[Any, ...] = (None, False, 0, "", [], {}, "no", "No", "NO", "off", "Off", "OFF")
"""Values by which a key asks for nothing; YAML 1.1, which peers read, has more words for false."""
NO_PART = "is off"


def with_default(rule: Rule, default: Any) -> Rule:
    """The same rule, for a peer that does this where nothing is said."""
    return replace(rule, default=default)


def carried(place: str, kind: Kind, said: str = "", default: Any = None) -> Rule:
    """The value is that of the setting."""

    def by(value: Any, view: View) -> Fate:
        return Fate("carried", said, {place: value})

    return Rule(kind, f"`{place}`" + (f"; {said}" if said else ""), by, default)


def choice(place: str, values: Mapping[str, Any], other: str, instead: Any) -> Rule:
    """Each value has its own; `other` says what is done with the rest, which become `instead`."""

    def by(value: str, view: View) -> Fate:
        if value in values:
            return Fate("carried", "", {place: values[value]})
        return Fate("not_supported", f"'{printable(value, 40)}': {other}", {place: instead})

    groups: dict[Any, list[str]] = {}
    for name, ours in values.items():
        groups.setdefault(ours, []).append(name)
    listed = "; ".join(f"{', '.join(theirs)} → {ours}" for ours, theirs in groups.items())
    return Rule(text, f"`{place}`: {listed}; others are not supported: {other}", by)


def no_effect(why: str, kind: Kind = anything) -> Rule:
    return Rule(kind, f"no effect: {why}", lambda value, view: Fate("no_effect", why))


def not_supported(did: str, instead: str, kind: Kind = anything, off: tuple[Any, ...] = OFF) -> Rule:
    """What the key did and what to do instead; nothing, where its value is one of `off`."""
    said = f"{did}; {instead}"

    def by(value: Any, view: View) -> Fate:
        return Fate("no_effect", NO_PART) if value in off else Fate("not_supported", said)

    return Rule(kind, f"not supported: {said}", by)


def fixed(kind: Kind, ours: tuple[Any, ...], did: str, instead: str, default: Any = None) -> Rule:
    """A value that Luthier has too has no effect; another is not supported."""
    listed = ", ".join(map(str, ours))

    def by(value: Any, view: View) -> Fate:
        same = value in ours
        return Fate("no_effect", "as here") if same else Fate("not_supported", f"{did}; {instead}")

    return Rule(kind, f"{listed}: as here; else not supported: {did}; {instead}", by, default)


def only(where: Callable[[View], bool], why_not: str, table: Table) -> dict[str, Rule]:
    """Rules that hold only where others say so; elsewhere the keys have no effect."""

    def restricted(rule: Rule) -> Rule:
        decide = rule.by
        return replace(rule, by=lambda value, view: decide(value, view) if where(view) else Fate("no_effect", why_not))

    return {key: restricted(rule) for key, rule in table.items()}


def keys(names: str, rule: Rule) -> dict[str, Rule]:
    """One rule for many keys."""
    return dict.fromkeys(names.split(), rule)
