"""A training that dies between two steps, as by kill -9, and is begun again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from luthier.models import Base
from luthier.settings import Recipe
from luthier.train import loop, train
from luthier.train.loop import Progress


class Killed(BaseException):
    pass


@contextmanager
def dying(after: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is trained in here dies after so many updates."""
    real_step = loop._Steps.__call__

    def step_or_die(steps: loop._Steps, progress: Progress, interrupted: Any) -> Progress | None:
        if progress.step == after:
            raise Killed
        return real_step(steps, progress, interrupted)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop._Steps, "__call__", step_or_die)
        yield


def train_killed_once(
    recipe: Recipe,
    data: Path,
    base: Base,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path = Path(),
    after: int = 3,
) -> None:
    """Train, die, and train on."""
    with dying(after, monkeypatch):
        train(recipe, data, base, out, folder=folder)
    train(recipe, data, base, out, folder=folder)
