"""Checkpoints that cannot lie: a manifest of hashes, written aside and renamed, verified when read.

    checkpoints/step-00000120/   weights.safetensors  optimizer.safetensors  progress.json  environment.json
                                 manifest.json
    (of sharded layers, in place of the first two: .metadata and a *.distcp of each process)

A snapshot is taken at once; a thread of its own writes it while training goes on. The newest whole one is used; a
damaged one is said, set aside and the one before it is tried. If there were checkpoints and none is whole, the run
stops: never silently from scratch.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.errors import Stopped
from luthier.faults import reach
from luthier.files import building_of, delete_folder, fresh_folder, sha256_of
from luthier.machine import available_bytes, processor
from luthier.train.shards import Unwritten, read, write
from luthier.train.world import ALONE, World

KEEP_LAST = 2
MOST_FAILED = 3
"""Checkpoints in a row that cannot be written, before the run stops."""
SNAPSHOT_SHARE = 0.25
"""Of the memory that is free. A larger snapshot is not taken: training waits until the weights themselves are
written."""
Tensors = Mapping[str, Tensor]


class Checkpoints:
    """Those of one training, in `folder`. To be entered: what is left to write is written at its end."""

    def __init__(
        self,
        folder: Path,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        say: Callable[[str], None],
        world: World = ALONE,
    ) -> None:
        self._folder, self._parameters, self._optimizer, self._say = folder, parameters, optimizer, say
        self._world = world
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
        self._n_failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Raises Stopped LU-S004 where the last one cannot be written."""
        failed = self._settle()
        self._writer.shutdown()
        if not isinstance(error, Exception):
            self._world.first(0)  # no process leaves before all is written: the others would be ended
        if failed and (error is None or not isinstance(error, Exception)):  # a signal's end is an end too
            raise self._unwritten(failed)

    # -- writing ------------------------------------------------------------------------------------------------------

    def save(self, step: int, progress: dict[str, Any], best_step: int) -> None:
        """Write step's checkpoint, then remove those that nothing needs: not the last two, not the best.

        Returns when all that it writes is copied. One that could not be written is said, and the next is tried; raises
        Stopped LU-S004 after three in a row, LU-S006 where processes that learn the same have come apart.
        """
        _check_alike(self._parameters.values(), step, self._world)
        tensors = {"weights": _detached(self._parameters), "optimizer": _flatten(self._optimizer, self._parameters)}
        if self._world.sharded:
            try:
                self._write_together(step, tensors, progress, best_step)
            except Unwritten as error:
                unwritten = self._failed(step, error)
                if self._n_failed >= MOST_FAILED:
                    raise self._unwritten(unwritten) from None
            return
        if self._world.rank:  # the first process writes for all
            return
        if (failed := self._settle()) and self._n_failed >= MOST_FAILED:
            raise self._unwritten(failed)
        n_bytes = sum(t.nbytes for of in tensors.values() for t in of.values())
        free = available_bytes(torch.device("cpu"))
        alone = free is None or n_bytes <= SNAPSHOT_SHARE * free
        if alone:
            tensors = {name: {n: t.to("cpu", copy=True) for n, t in of.items()} for name, of in tensors.items()}
        writing = self._writer.submit(self._write, step, tensors, progress, best_step)
        self._writing = step, writing
        if not alone:
            writing.exception()  # `_settle` says what it was

    def _write(self, step: int, tensors: Mapping[str, Tensors], progress: dict[str, Any], best_step: int) -> None:
        with fresh_folder(self._folder / _name(step)) as building:
            for name, of in tensors.items():
                reach("write")
                save_file(dict(of), building / f"{name}.safetensors")
            self._vouch(building, progress)
        self._prune(best_step)

    def _write_together(
        self, step: int, tensors: Mapping[str, Tensors], progress: dict[str, Any], best_step: int
    ) -> None:
        """Each process its own part, while training waits. Raises Unwritten, in all of them, where one cannot."""
        with contextlib.ExitStack() as stack:
            folder = self._folder / _name(step)
            building = stack.enter_context(fresh_folder(folder)) if self._world.rank == 0 else building_of(folder)
            self._world.first(0)  # the folder is there
            write(tensors, building)
            if self._world.rank == 0:
                self._vouch(building, progress)
        self._n_failed = 0
        if self._world.rank == 0:
            self._prune(best_step)

    def _vouch(self, building: Path, progress: dict[str, Any]) -> None:
        """Write what stands beside the tensors, and the manifest of all."""
        (building / "progress.json").write_text(json.dumps(progress))
        (building / "environment.json").write_text(json.dumps(environment(self._world.size)))
        manifest = {p.name: sha256_of(p) for p in sorted(building.iterdir())}
        (building / "manifest.json").write_text(json.dumps(manifest))

    def _prune(self, best_step: int) -> None:
        for old in {*steps_in(self._folder)[:-KEEP_LAST]} - {best_step}:
            delete_folder(self._folder / _name(old))

    def _settle(self) -> str | None:
        """Wait for what is being written; what went wrong, in words, is said."""
        if self._writing is None:
            return None
        (step, writing), self._writing = self._writing, None
        try:
            writing.result()
        except OSError as error:
            return self._failed(step, error)
        self._n_failed = 0
        return None

    def _failed(self, step: int, error: OSError) -> str:
        self._n_failed += 1
        failed = f"the checkpoint of step {step} could not be written: {error.strerror or error}"
        self._say(failed)
        return failed

    def _unwritten(self, failed: str) -> Stopped:
        whole = [step for step in steps_in(self._folder) if damage(self._folder / _name(step)) is None]
        there = f"that of step {whole[-1]} is whole" if whole else "there is none before it"
        advice = "free space or mend the disk; the same command then goes on"
        return Stopped.of("LU-S004", str(self._folder), f"{failed}; {there}", advice)

    # -- reading ------------------------------------------------------------------------------------------------------

    def resume(self) -> dict[str, Any] | None:
        """Load the newest whole one into parameters and optimizer; None if there never was one.

        One whose best weights are lost is passed over too: from an earlier one training finds them again. Raises
        Stopped LU-S002 if there are checkpoints and none can be used.
        """
        step = int(self._world.first(self._newest() if self._world.rank == 0 else -1))
        if step < 0:
            return None
        self.restore(step)
        if self._world.rank == 0:
            self._compare_environment(step)
        return self._progress(step)

    def _newest(self) -> int:
        """The step of the newest that can be used, -1 if there never was one; what is damaged is set aside."""
        self._remove_leftovers()
        while steps := steps_in(self._folder):
            step = steps[-1]
            if self._set_aside(step):
                continue
            best = self._progress(step)["best_step"]
            if best != step and self._set_aside(best):
                self._move(step, f"the best weights, of step {best}, are lost")
                continue
            return step
        if any(self._folder.glob("damaged-*")):
            advice = f"delete {self._folder} to train from the start"
            raise Stopped.of("LU-S002", str(self._folder), "every checkpoint is damaged", advice)
        return -1

    def _progress(self, step: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._folder / _name(step) / "progress.json").read_text())
        return found

    def restore(self, step: int) -> None:
        """Put the weights and the moments of `step` back. Raises Stopped LU-S002 if they are damaged."""
        self.load_weights(step)
        self._optimizer.state.clear()
        moments = read(self._folder / _name(step), "optimizer", lambda name: self._parameters[name.partition("/")[2]])
        _unflatten(self._optimizer, self._parameters, moments)

    def load_weights(self, step: int) -> None:
        """Put the weights of `step` into the parameters. Raises Stopped LU-S002 if they are damaged."""
        self._settle()
        self._world.first(0)  # what is to be read is written
        self._check(step)
        _put(self._parameters, read(self._folder / _name(step), "weights", self._parameters.__getitem__))

    def load_whole_weights(self, step: int, parameters: Mapping[str, nn.Parameter]) -> None:
        """The same into an unsharded model's, by one process alone."""
        self._check(step)
        _put(parameters, read(self._folder / _name(step), "weights", parameters.__getitem__, alone=True))

    def _check(self, step: int) -> None:
        if reason := damage(self._folder / _name(step)):
            where, found = str(self._folder / _name(step)), f"the weights of step {step} are damaged: {reason}"
            raise Stopped.of("LU-S002", where, found, "the same command goes on from an earlier checkpoint")

    def _set_aside(self, step: int) -> bool:
        """Whether the checkpoint cannot be used; then it is moved away."""
        reason = damage(self._folder / _name(step))
        if reason:
            self._move(step, f"is damaged ({reason})")
        return reason is not None

    def _move(self, step: int, why: str) -> None:
        self._say(f"checkpoint {_name(step)}: {why}; it is set aside and the one before it is used")
        folder, aside = self._folder / _name(step), self._folder / f"damaged-{_name(step)}"
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            folder.rename(aside)

    def _remove_leftovers(self) -> None:
        """Of saves and deletions that were cut short."""
        for path in self._folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _compare_environment(self, step: int) -> None:
        before = json.loads((self._folder / _name(step) / "environment.json").read_text())
        now = environment(self._world.size)
        changed = [
            f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]
        ]
        if changed:
            self._say(f"{', '.join(changed)}: what follows is equal but for rounding, and not exact any more")


def environment(n_processes: int) -> dict[str, Any]:
    """What the bits of a result depend on beside recipe, data and the packages' versions."""
    return {
        "processes": n_processes,
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
    }


def _check_alike(parameters: Iterable[nn.Parameter], step: int, world: World) -> None:
    """Raises Stopped LU-S006, in all of them, where a process holds other bits than the first one."""
    if world.size == 1:
        return
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    bits = sum(int(p.detach().contiguous().view(kinds[p.element_size()]).sum(dtype=torch.int64)) for p in whole)
    own = float(bits % 2**52)  # which a float64 holds exactly
    [n_other] = world.sums(world.first(own) != own)
    if n_other:
        found = f"{n_other:.0f} of {world.size} processes hold other weights than the first: bits of one have changed"
        advice = "look at the machines' memory; the same command goes on from the last checkpoint"
        raise Stopped.of("LU-S006", f"step {step}", found, advice)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        names = {p.name for p in checkpoint.iterdir()} - {"manifest.json"}
        if names != set(manifest):
            return f"{', '.join(sorted(names ^ set(manifest)))} is missing, or is not in the manifest"
        for name, expected in manifest.items():
            if sha256_of(checkpoint / name) != expected:
                return f"{name} has changed"
    except (OSError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def steps_in(folder: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*"))


def _name(step: int) -> str:
    return f"step-{step:08d}"


@torch.no_grad()
def _put(parameters: Mapping[str, nn.Parameter], weights: Tensors) -> None:
    assert weights.keys() == parameters.keys()
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def _detached(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().contiguous() for name, p in parameters.items()}


def _flatten(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Optimizer state by parameter name: 'exp_avg/layers.0...' -> tensor."""
    return {
        f"{key}/{name}": value.detach().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _unflatten(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], flat: Tensors) -> None:
    for flat_name, value in flat.items():
        key, _, name = flat_name.partition("/")
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)  # `step` too, as fused AdamW wants it
