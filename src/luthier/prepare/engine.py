"""Engines: where the blocks of the data are worked on; what comes out is the same wherever that is.

    with engine_for(recipe.prepare, out) as engine:
        for made in engine.map(work, blocks): ...

Work is a function of one block that depends on nothing but the block and what it was made with. What is large goes
from one step to the next as files in the engine's folder, which all nodes of a cluster see as they see the sources;
what work returns is small. `local` is this machine: `processes.py`; `ray` is `on_ray.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from luthier.machine import processors
from luthier.prepare.processes import processes
from luthier.settings.prepare import Prepare

B = TypeVar("B")
R = TypeVar("R")


class Engine(Protocol):
    @property
    def folder(self) -> Path | None:
        """Where files may lie until the engine is closed; None: in the system's."""

    def map(self, work: Callable[[B], R], blocks: Iterable[B]) -> Iterator[R]:
        """What the work makes of each block, in their order; few blocks are taken in ahead. Raises what work raises."""


@dataclass(frozen=True, slots=True)
class Here:
    """Works in this process, block by block."""

    folder: Path | None = None

    def map(self, work: Callable[[B], R], blocks: Iterable[B]) -> Iterator[R]:
        return map(work, blocks)


HERE = Here()


@contextmanager
def engine_for(settings: Prepare, out: Path) -> Iterator[Engine]:
    """The recipe's engine, with a folder in `out` that goes with it.

    Raises RunError LU-U050 (the package is missing), LU-U051 (no cluster at the address), before anything is read.
    """
    with tempfile.TemporaryDirectory(prefix=".blocks-", dir=out, ignore_cleanup_errors=True) as made:
        folder = Path(made).resolve()
        if settings.engine == "ray":
            from luthier.prepare.on_ray import cluster

            with cluster(settings.address, folder) as engine:
                yield engine
        elif (n := settings.processes or processors()) > 1:
            with processes(folder, n) as engine:
                yield engine
        else:
            yield Here(folder)
