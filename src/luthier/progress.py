"""What a person sees while a run works: lines and progress bars on stderr; stdout belongs to results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

Advance = Callable[..., None]
"""advance(n, **figures): n more units are done; figures are shown beside the bar."""


class Reporter(Protocol):
    def say(self, text: str) -> None: ...

    def bar(self, name: str, total: int, done: int = 0) -> contextlib.AbstractContextManager[Advance]: ...


class Quiet:
    """Says nothing."""

    def say(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        yield lambda n=1, **figures: None


class Lines:
    """Plain lines, at most one a bar every ten seconds: for logs and pipes."""

    every_s = 10.0

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def say(self, text: str) -> None:
        self._write(text)

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        start = last = time.monotonic()
        first = done

        def advance(n: int = 1, **figures: object) -> None:
            nonlocal done, last
            done += n
            now = time.monotonic()
            if now - last >= self.every_s:
                last = now
                left_s = (total - done) * (now - start) / max(done - first, 1e-9)
                self._write(f"  {name} {done:.0f}/{total:.0f}, {left_s:.0f} s left {_figures(figures)}".rstrip())

        yield advance


class Bars:
    """Rich progress bars on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    def say(self, text: str) -> None:
        from rich.markup import escape

        self._console.print(escape(text), highlight=False)

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(name, total=total, completed=done, figures="")

            def advance(n: int = 1, **figures: object) -> None:
                progress.update(task, advance=n, figures=_figures(figures))

            yield advance


def _figures(figures: dict[str, object]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
