"""Where things lie: a peer's paths count from where it is started, a recipe's from the recipe.

A file is looked for in the folder that the peer would be started in, then beside its configuration.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Place:
    roots: tuple[Path, ...]
    """Where the peer's relative paths may count from, the likeliest first."""
    out: Path
    """The folder of the recipe."""
    devices: int = 1
    """That the peer trained on."""
    missing: list[str] = field(default_factory=list)
    """Paths that were asked for and are not there, in the order of asking."""

    def find(self, path: str) -> Path | None:
        """The file or folder that the peer would read, if it is there."""
        for root in self.roots:
            candidate = root / os.path.expanduser(path)
            try:
                if candidate.exists():
                    return candidate
            except (OSError, ValueError):  # a name that is too long, or holds a NUL
                return None
        return None

    def for_recipe(self, path: str) -> str:
        """The path as the recipe says it: relative where it lies below the recipe, else absolute."""
        found = self.find(path)
        if found is None and path not in self.missing:
            self.missing.append(path)
        whole = os.path.abspath(found or self.roots[0] / os.path.expanduser(path))
        home = os.path.abspath(self.out)
        return os.path.relpath(whole, home) if whole.startswith(home.rstrip(os.sep) + os.sep) else whole
