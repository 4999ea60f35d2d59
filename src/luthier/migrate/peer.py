"""What a peer is: its name, its table, and how its data become sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.migrate.engine import Table, View

Sources = list[dict[str, Any]]
"""`data.sources` of a recipe, as plain data."""


@dataclass(frozen=True, slots=True)
class Peer:
    key: str
    """As `--peer` names it."""
    name: str
    """As its users write it."""
    table: Table
    sources: Callable[[View], Sources]
    data_keys: str
    """Which keys name the data: said where none does."""
