"""A training that dies in the middle of a step, as by kill -9, and is begun again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.models import Base
from luthier.settings import Recipe
from luthier.train import loop, train
from luthier.train.loop import Progress


class Killed(BaseException):
    pass


def train_killed_once(
    recipe: Recipe, data: Path, base: Base, out: Path, monkeypatch: pytest.MonkeyPatch, folder: Path = Path()
) -> None:
    """Train, die before the fourth update, and train on."""
    real_step = loop._step

    def step_or_die(*args: Any) -> Progress | None:
        if next(a for a in args if isinstance(a, Progress)).step == 3:
            raise Killed
        return real_step(*args)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop, "_step", step_or_die)
        train(recipe, data, base, out, folder=folder)
    train(recipe, data, base, out, folder=folder)
