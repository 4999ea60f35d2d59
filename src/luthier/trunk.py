"""Layers below the lowest one that learns run once per example: what they give is kept, and steps enter above them.

    N tokens of a packed tree, T tokens of an example, D hidden size

Promises:
- Losses and gradients are those of all layers, but for rounding.
- An example's states come from one group of examples, its home, whichever step asks for them first: a resumed run
  computes the same bits again.
- They lie in a file without a name, which ends with its process; nothing of them is in a checkpoint.

What is frozen is what autograd says. At load the body is entered once and compared with itself; where that fails, all
layers run, and the path says why. This module knows nothing of adapters, steps or losses.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from torch import Tensor, nn

from luthier.batch import Batch, make_batch
from luthier.decoder import CANNOT_RUN, Decoder, probe_rows
from luthier.encode import Encoded
from luthier.errors import first_line

DISK_SHARE = 0.25
"""Of the free disk, the most that the states may take."""
TOLERANCE = 1e-5
"""The same sums in the same order: where a body can be entered, it mostly differs by nothing at all."""


@contextmanager
def kept_trunk(decoder: Decoder, homes: Sequence[Sequence[Encoded]], folder: Path) -> Iterator[str]:
    """While this lasts, `decoder` runs its frozen layers once per example. Yields its path, in words.

    `homes` are groups that may run at once; the first that holds an example is its home. What has none is not kept,
    but computed when asked for; without any homes nothing is kept. The file lies in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        decoder.shortcut, said = _way(decoder, homes, file)
        try:
            yield decoder.path + said
        finally:
            decoder.shortcut = None


def _way(
    decoder: Decoder, homes: Sequence[Sequence[Encoded]], file: IO[bytes]
) -> tuple[Callable[[Batch], Tensor] | None, str]:
    """The shortcut, if there is one, and what is to be said of it."""
    if not decoder.shares:
        return None, ""
    try:
        cut = _find_cut(decoder)
        if cut is None:
            return None, ""
        if not homes:
            raise ValueError("there are too many examples to keep their states")
        kept = _Kept(cut, homes, file)
    except CANNOT_RUN as error:
        return None, f"; all layers in every step: {first_line(error)}"
    layers = "layer 0" if cut.n == 1 else f"layers 0 to {cut.n - 1}"
    return lambda batch: cut.above(batch, kept.states(batch)), f"; {layers} once per example"


class _Seam(nn.Module):
    """Stands in place of layers, and answers with the states that it has, or else with the first that it is given."""

    def __init__(self, states: Tensor | None = None) -> None:  # (1, N, D)
        super().__init__()
        self.states = states

    def forward(self, states: Tensor, *args: Any, **settings: Any) -> Tensor:
        if self.states is None:
            self.states = states
        return self.states


@dataclass(frozen=True, slots=True)
class _Cut:
    """A body that is entered above its first n layers.

    The seam lies between two layers: what a family does to its embeddings (scales, positions) is below it.
    """

    decoder: Decoder
    name: str  # of the attribute that holds the layers
    layers: nn.ModuleList
    n: int

    @torch.no_grad()
    def below(self, batch: Batch) -> Tensor:
        """What layer n is given: (N, D)."""
        seam = _Seam()
        self._run([*self.layers[: self.n], seam], batch)
        if seam.states is None:
            raise ValueError("its layers are not called in turn")
        return seam.states[0]

    def above(self, batch: Batch, states: Tensor) -> Tensor:
        """From what layer n is given, (N, D), to the hidden states (N, D)."""
        return self._run([_Seam(states[None]), *self.layers[self.n :]], batch)

    def _run(self, layers: list[nn.Module], batch: Batch) -> Tensor:
        setattr(self.decoder.body, self.name, nn.ModuleList(layers))
        try:
            return self.decoder.tree_states(batch)
        finally:
            setattr(self.decoder.body, self.name, self.layers)


def _find_cut(decoder: Decoder) -> _Cut | None:
    """Where the lowest layer that learns begins; None if nothing is frozen below it.

    Raises one of CANNOT_RUN if the body cannot be entered there.
    """
    name, layers = decoder.layers()
    batch = make_batch(probe_rows(decoder)).to(decoder.device)
    n = _n_frozen(decoder, layers, batch)
    if n == 0:
        return None
    cut = _Cut(decoder, name, layers, n)
    with torch.no_grad():
        expected = decoder.tree_states(batch)
        gap = float((cut.above(batch, cut.below(batch)) - expected).abs().max() / expected.abs().max())
    if not gap <= TOLERANCE:
        raise ValueError(f"entered at layer {n}, the states differ by {gap:.1e}")
    return cut


def _n_frozen(decoder: Decoder, layers: nn.ModuleList, batch: Batch) -> int:
    """Layers, from the first, whose output depends on nothing that learns; the last one always counts as learning."""
    learns: list[bool] = []
    running = decoder.fused.of(list(layers)) if decoder.fused else layers
    hooks = [layer.register_forward_hook(lambda _, given, out: learns.append(out.requires_grad)) for layer in running]
    try:
        with torch.enable_grad():
            decoder.tree_states(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [*learns[:-1], True].index(True)


class _Kept:
    """States of examples in one file; a group is computed when the first of its examples is asked for."""

    def __init__(self, cut: _Cut, homes: Sequence[Sequence[Encoded]], file: IO[bytes]) -> None:
        self._cut, self._file, self._n_rows = cut, file, 0
        self._home: dict[str, Sequence[Encoded]] = {}
        self._places: dict[str, Tensor] = {}  # where an example's tokens lie in the file: (T,)
        for group in homes:
            for example in group:
                self._home.setdefault(example.id, group)
        like = cut.below(make_batch(homes[0][:1]).to(cut.decoder.device))
        n_bytes = like[0].nbytes * sum(len(e.ids) for group in homes for e in group)  # at most: shared tokens lie once
        disk = os.fstatvfs(file.fileno())
        if n_bytes > DISK_SHARE * disk.f_bavail * disk.f_frsize:
            raise ValueError(f"{n_bytes / 1e9:.1f} GB of states are more than {DISK_SHARE:.0%} of the free disk")
        file.truncate(n_bytes)
        # Read by mapping, so that the system's page cache is all the memory that it takes; written as a file is, so
        # that a full disk is an error: a write to mapped pages would kill the process.
        self._states = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=like.dtype).view(-1, like.shape[1])

    def states(self, batch: Batch) -> Tensor:
        """What the lowest layer that learns is given: (N, D). A shared token has the states of its first example."""
        if not self._home.keys() >= set(batch.names):
            return self._cut.below(batch)
        rows = torch.empty(batch.ids.numel(), dtype=torch.int64)
        for i, name in reversed(list(enumerate(batch.names))):
            if name not in self._places:
                self._compute(self._home[name])
            rows[batch.places(i)] = self._places[name]
        return self._states.index_select(0, rows).to(batch.ids.device)

    def _compute(self, group: Sequence[Encoded]) -> None:
        batch = make_batch(group).to(self._cut.decoder.device)
        states = self._cut.below(batch).cpu().contiguous()
        # An example that an earlier group holds has its states from there.
        mine = {i: name for i, name in enumerate(batch.names) if self._home[name] is group}
        places = {name: self._n_rows + batch.places(i) for i, name in mine.items()}
        # Whatever runs out up to here or within, the next attempt writes to the same place.
        self._file.seek(self._n_rows * states[0].nbytes)
        self._file.write(states.view(torch.uint8).numpy().data)
        self._file.flush()
        self._n_rows += len(states)
        self._places |= places
