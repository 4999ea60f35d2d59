"""What training or evaluation could only end with, said before a model to train is loaded.

`lifecycle.run` asks it before and after preparing, `luthier check` without training at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import DataError
from luthier.records import AuditReport
from luthier.settings import Recipe, located

if TYPE_CHECKING:
    from luthier.models import Base


def check_packages(recipe: Recipe) -> None:
    """Raises ModelError LU-M002 for a package that training needs and that is not installed."""
    if recipe.needs_bitsandbytes:
        from luthier.quantized import check_bitsandbytes

        check_bitsandbytes()


def can_train(recipe: Recipe, prepared: Path, base: Base, origin: Path) -> None:
    """Raises DataError LU-D070 for an empty side; ModelError LU-M030, LU-M031 for a given adapter that does not fit."""
    from luthier.joined import adapter_in, read_adapter

    sides = AuditReport.read(prepared / "audit.json").sides
    for side in ("train", "validation"):
        if not sides[side]:
            advice = "give more data, or a larger fraction in data.split"
            raise DataError.of("LU-D070", "data.sources", f"the {side} side is empty", advice)
    for given in recipe.model.adapters:
        read_adapter(adapter_in(located(given.path, origin)), base)


def can_judge(recipe: Recipe, prepared: Path, base: Base, origin: Path, *, voted: bool) -> None:
    """Raises as `evaluate.foresee`, and DataError LU-D019 for requests that cannot be read."""
    from luthier.evaluate import foresee
    from luthier.prepare.requests import read_requests

    if recipe.evaluate.requests:
        read_requests(recipe.evaluate.requests, origin)
    foresee(recipe, prepared, base, origin, voted=voted)
