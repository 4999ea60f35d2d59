"""Data sets of the Hugging Face Hub, by the library `datasets`, which keeps each split as Arrow files.

`hub:org/name`, `hub:org/name@revision` and `hub:org/name:config`. A folder stands for a name, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from luthier.errors import DataError, extra, first_line

PREFIX = "hub:"


def hub_files(name: str) -> Iterator[tuple[Path, str, str]]:
    """File, how it is shown, and split. Raises DataError LU-D019 (cannot be had), LU-D108 (no such library)."""
    try:
        import datasets
    except ImportError:
        raise DataError.of("LU-D108", name, "the Hub's data sets need a package", extra("hub")) from None
    repository, _, config = name.removeprefix(PREFIX).partition(":")
    repository, _, revision = repository.partition("@")
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(repository, config or None, revision=revision or None)
    except Exception as error:  # the library raises anything: of the network, of the data, of its own
        said = f"cannot be had: {type(error).__name__}: {first_line(error)}"
        raise DataError.of("LU-D019", name, said, "is the name right, is there a network?") from None
    for split, rows in found.items():
        for n, file in enumerate(rows.cache_files):
            part = f"/{n}" if len(rows.cache_files) > 1 else ""
            yield Path(file["filename"]), f"{name}/{split}{part}", str(split)
