"""Failpoints: places where a test lets a run fail, to see what the next run makes of it.

    LUTHIER_FAULT=rename:3:kill,step:20:term

lets the third rename end the process as `kill -9` does, and the twentieth step find a SIGTERM. Without the variable a
failpoint is a look into an empty table.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from typing import Literal

Site = Literal["write", "sync", "rename", "delete", "read", "step"]

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "stop": signal.SIGSTOP}
ERRORS = {"full": errno.ENOSPC, "io": errno.EIO, "denied": errno.EACCES}


def _read(text: str) -> dict[tuple[str, int], str]:
    """(site, which time it is reached, from 1) -> action."""
    found = {}
    for part in filter(None, text.split(",")):
        site, n, action = part.split(":")
        found[site, int(n)] = action
    return found


_faults = _read(os.environ.get("LUTHIER_FAULT", ""))
_reached: Counter[str] = Counter()


def reach(site: Site) -> None:
    """Fail here, if that is what was asked. Raises OSError for the actions of `ERRORS`."""
    if not _faults:
        return
    _reached[site] += 1
    action = _faults.get((site, _reached[site]))
    if action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[action])
    elif action:
        raise OSError(ERRORS[action], os.strerror(ERRORS[action]))
