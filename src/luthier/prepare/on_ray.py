"""Preparing on a Ray cluster: each block is a task, and what it returns comes back in the blocks' order.

A task whose worker or node dies is done again by Ray. That changes nothing: work depends on its block alone, and writes
into new files, of which only those are read that are named in what it returned.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from luthier.errors import RunError, extra, first_line

B = TypeVar("B")
R = TypeVar("R")
ANSWERS_WITHIN_S = 10
AHEAD = 4
"""Blocks that are begun before the oldest one is done, for each processor of the cluster."""


@dataclass(frozen=True, slots=True)
class Cluster:
    folder: Path

    def map(self, work: Callable[[B], R], blocks: Iterable[B]) -> Iterator[R]:
        """Raises what work raises, and RunError LU-U052 for a block that ends its worker again and again."""
        import ray

        given = [ray.put(work)]  # in a list: Ray would unpack it anew for each task
        begin = ray.remote(_done)
        waiting: deque[Any] = deque()
        left = iter(blocks)
        try:
            while True:
                room = AHEAD * max(int(ray.cluster_resources().get("CPU", 1)), 1)
                while len(waiting) < room and (block := next(left, self)) is not self:
                    waiting.append(begin.remote(given, block))
                if not waiting:
                    return
                yield _got(waiting.popleft())
        finally:
            for one in waiting:
                ray.cancel(one)


def _done(given: list[Any], block: Any) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # there is a task for each processor
    return _work(given[0])(block)


@lru_cache(maxsize=1)
def _work(given: Any) -> Callable[[Any], Any]:
    """Unpacked once in each worker: a tokenizer takes a second."""
    import ray

    return ray.get(given)  # type: ignore[no-any-return]


def _got(one: Any) -> Any:
    import ray

    try:
        return ray.get(one)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error  # what work raised there
        if not isinstance(cause, ray.exceptions.RayError | ImportError | OSError):
            raise cause from None
        advice = "every node needs these packages, the files under the same paths, and memory; Ray's logs say more"
        raise RunError.of("LU-U052", "prepare.engine: ray", first_line(cause), advice) from error


@contextmanager
def cluster(address: str | None, folder: Path) -> Iterator[Cluster]:
    """Connected while this lasts; a connection that is there already is used, and stays.

    Raises RunError LU-U050, LU-U051.
    """
    if importlib.util.find_spec("ray") is None:
        found = "needs the package ray, which is not installed"
        raise RunError.of("LU-U050", "prepare.engine: ray", found, extra("ray"))
    import ray

    if ray.is_initialized():
        yield Cluster(folder)
        return
    try:
        _knock(address or "")
        ray.init(address or "local", log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        advice = "start one (ray start --head), give its address, or leave it out to use this machine alone"
        raise RunError.of("LU-U051", f"prepare.address: {address}", first_line(error), advice) from error
    try:
        yield Cluster(folder)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for five minutes, and end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), ANSWERS_WITHIN_S).close()
