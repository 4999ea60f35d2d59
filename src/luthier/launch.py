"""Several processes for one training: PyTorch's elastic agent (what `torchrun` runs) starts, watches and ends them.

Each is given its rank by the environment and joins the others by itself (`world.joined`). This module knows nothing of
what they do.
"""

from __future__ import annotations

import ctypes
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
from tempfile import TemporaryDirectory
from typing import Any

from luthier import errors
from luthier.errors import LuthierError, Problem, RunError, Stopped, first_line
from luthier.interrupts import Interrupted

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
WAIT_S, LEFT = "LUTHIER_WAIT_S", "LUTHIER_LEFT"
LOST = "LU-S005"
MEET = "--nnodes 2 --rdzv-endpoint HOST:PORT; the same, and within 10 minutes, on every machine"


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
        raise RunError.of("LU-U060", f"--nnodes {self.nnodes}", "no number of machines that can meet", MEET)


def check(how: Launch) -> None:
    """Raises RunError LU-U060, LU-U061 for what could only fail."""
    import torch

    how.nodes()
    if torch.cuda.is_available() and how.nproc > (n := torch.cuda.device_count()):
        raise RunError.of("LU-U061", f"--nproc {how.nproc}", f"this machine has {n} GPUs", "one process for each")


def launch(how: Launch, arguments: Sequence[str]) -> None:
    """Let processes run `python` with these arguments, until all have ended well.

    Raises what one of them has left by `leave`, RunError LU-U062 where machines do not meet, and Stopped LU-S005 where
    a process was lost more often than `max_restarts`.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
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
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(60 * how.wait_minutes)))
    with _threads_shared_by(how.nproc), _handlers_kept(), TemporaryDirectory() as folder:
        left = Path(folder, "left.json")
        os.environ[LEFT] = str(left)
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except SignalException as error:
            raise Interrupted(error.sigval.value) from None
        except ChildFailedError as error:
            if not left.is_file():
                rank, failure = error.get_first_failure()
                raise _lost(failure.error_file, failure.exitcode, rank) from None
        except (RendezvousError, ValueError) as error:
            found = f"{first_line(error) or type(error).__name__}"
            raise RunError.of("LU-U062", f"--rdzv-endpoint {how.rdzv_endpoint}", found, MEET) from None
        if left.is_file():
            raise _error(json.loads(left.read_text()))


def end_with_parent() -> None:
    """Let this process be asked to end when the one that has launched it is killed, where the system is Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def leave(error: LuthierError | Interrupted) -> int:
    """Leave an error to the process that has launched this one; the exit code for it.

    0 where all processes end alike, so that nobody begins them again; not where another one is lost.
    """
    said: dict[str, Any] = {"exit_code": error.exit_code}
    if isinstance(error, LuthierError):
        said = {"kind": type(error).__name__, "problems": [asdict(problem) for problem in error.problems]}
        if error.problems[0].code == LOST:
            Path(os.environ[ERROR_FILE]).write_text(
                json.dumps({"message": json.dumps(said), "timestamp": int(time.time())})
            )
            return error.exit_code
    with suppress(FileExistsError), open(os.environ[LEFT], "x") as file:  # the first one's
        json.dump(said, file)
    return 0


def _error(said: dict[str, Any]) -> BaseException:
    if "kind" not in said:
        return Interrupted(said["exit_code"] - 128)
    kind: type[LuthierError] = getattr(errors, said["kind"])
    return kind(*(Problem(**problem) for problem in said["problems"]))


def _lost(file: str, exit_code: int, rank: int) -> BaseException:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return _error(json.loads(json.loads(Path(file).read_text())["message"]))
    how = f"was ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
    advice = "the same command goes on from the last checkpoint; --max-restarts lets it begin again by itself"
    return Stopped.of(LOST, f"process {rank}", how, advice)


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
