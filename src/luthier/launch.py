"""Several processes for one training: PyTorch's elastic agent (what `torchrun` runs) starts, watches and ends them.

Each is given its rank by the environment and joins the others by itself (`world.joined`). This module knows nothing of
what they do.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from luthier import errors
from luthier.errors import LuthierError, Problem, RunError, Stopped
from luthier.interrupts import Interrupted

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
WAIT_S = "LUTHIER_WAIT_S"


@dataclass(frozen=True, slots=True)
class Launch:
    """How many processes, and how they find each other; the options are torchrun's."""

    nproc: int = 1
    """On each machine."""
    nnodes: str = "1"
    """Machines; MIN:MAX where some may come and go."""
    rdzv_endpoint: str = ""
    """HOST:PORT of the machine at which all meet; one machine alone needs none."""
    rdzv_id: str = "luthier"
    rdzv_backend: str = "c10d"
    rdzv_conf: Mapping[str, str] = field(default_factory=dict)
    max_restarts: int = 0
    wait_minutes: float = 30.0
    """For the slowest process, before all give up: one that writes a large model, or computes a long validation."""

    @property
    def alone(self) -> bool:
        """Whether there is nothing to launch."""
        return self.nproc == 1 and self.nnodes == "1"

    def nodes(self) -> tuple[int, int]:
        """The fewest and the most. Raises RunError LU-U060."""
        least, _, most = self.nnodes.partition(":")
        with suppress(ValueError):
            found = int(least), int(most or least)
            if 1 <= found[0] <= found[1] and (found[1] == 1 or self.rdzv_endpoint):
                return found
        advice = "--nnodes 2 --rdzv-endpoint HOST:PORT; the same HOST:PORT on every machine"
        raise RunError.of("LU-U060", f"--nnodes {self.nnodes}", "no number of machines that can meet", advice)


def launch(how: Launch, arguments: Sequence[str]) -> None:
    """Let processes run `python` with these arguments, until all have ended well.

    Raises what the first one that failed has left by `leave`, Interrupted for a signal, and Stopped LU-S005 where one
    was lost more often than `max_restarts`.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    least, most = how.nodes()
    here = most == 1
    config = LaunchConfig(
        min_nodes=least,
        max_nodes=most,
        nproc_per_node=how.nproc,
        run_id=how.rdzv_id,
        rdzv_backend=how.rdzv_backend,
        rdzv_endpoint="127.0.0.1:0" if here else how.rdzv_endpoint,
        rdzv_configs=dict(how.rdzv_conf),
        max_restarts=how.max_restarts,
        local_addr="127.0.0.1" if here else None,
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says is raised
    os.environ[WAIT_S] = str(60 * how.wait_minutes)
    # A store of their own for each beginning: in the agent's they would find the addresses of processes that are gone.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with _threads_shared_by(how.nproc), _handlers_kept():
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except SignalException as error:
            raise Interrupted(error.sigval.value) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise _left(failure.error_file, failure.exitcode, rank) from None


def leave(error: LuthierError) -> None:
    """Leave an error to the process that has launched this one."""
    problems = [asdict(problem) for problem in error.problems]
    said = json.dumps({"kind": type(error).__name__, "problems": problems})
    Path(os.environ[ERROR_FILE]).write_text(json.dumps({"message": said, "timestamp": int(time.time())}))


def _left(file: str, exit_code: int, rank: int) -> BaseException:
    if exit_code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return Interrupted(exit_code - 128)
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(json.loads(Path(file).read_text())["message"])
        kind: type[LuthierError] = getattr(errors, said["kind"])
        return kind(*(Problem(**problem) for problem in said["problems"]))
    how = f"was ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
    advice = "the same command goes on from the last checkpoint; --max-restarts lets it begin again by itself"
    return Stopped.of("LU-S005", f"process {rank}", how, advice)


@contextmanager
def _threads_shared_by(n: int) -> Iterator[None]:
    """Each process computes with its part of the processors, unless somebody has said how many."""
    import torch

    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(torch.get_num_threads() // n, 1)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """The agent takes signals for itself."""
    before = {signum: signal.getsignal(signum) for signum in HANDLED}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
