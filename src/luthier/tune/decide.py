"""The advisor of `lifecycle.run`: what a recipe leaves open is decided by trials.

Torch is imported only where it is asked, so that a mistake in a recipe is told at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.progress import Reporter
from luthier.records import AdviceReport, KeptAugmentation
from luthier.settings import Recipe

if TYPE_CHECKING:
    from luthier.models import Base


class Advisor:
    def technique(
        self, recipe: Recipe, run: Path, base: Base, out: Path, workspace: Path, report: Reporter
    ) -> AdviceReport:
        from luthier.tune.advise import choose

        return choose(recipe, run, base, out, workspace, report)

    def augmentation(self, recipe: Recipe, run: Path, workspace: Path, report: Reporter) -> KeptAugmentation:
        from luthier.tune.keep import keep

        return keep(recipe, run, workspace, report)
