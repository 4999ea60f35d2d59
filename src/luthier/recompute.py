"""Layers that keep only what they are given, and are computed again in the backward pass.

Memory for time: a layer's activations exist when its own gradient is computed, and at no other moment (Chen et al.
2016, arXiv 1604.06174; "gradient checkpointing"). The same operations run twice on the same numbers, so losses and
gradients are the same to the bit. This module knows nothing of what a layer computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Within = Callable[[], AbstractContextManager[None]]


@runtime_checkable
class ByLayer(Protocol):
    """A keyword of layers that is another one for each of them, given out in turn."""

    def of_next_layer(self) -> Any: ...


class Recomputed(nn.Module):
    """Stands in place of a layer, for one forward pass; the layer is computed again `within` a context."""

    def __init__(self, layer: nn.Module, within: Within) -> None:
        super().__init__()
        self.layer, self.within = layer, within

    def forward(self, *args: Any, **settings: Any) -> Any:
        # What is given out in turn is taken once: the layers come in another order when they are computed again.
        settings = {k: v.of_next_layer() if isinstance(v, ByLayer) else v for k, v in settings.items()}
        layer = partial(self.layer, **settings)
        return checkpoint(layer, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self.within()))

    def __getattr__(self, name: str) -> Any:
        """A body may ask its layers for more than their output."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def recomputed(layers: Iterable[nn.Module], n: int, within: Within = nullcontext) -> list[nn.Module]:
    """The layers, of which the last `n` keep only what they are given."""
    layers = list(layers)
    first = max(len(layers) - n, 0)
    return [*layers[:first], *(Recomputed(layer, within) for layer in layers[first:])]


def kept_bytes(run: Callable[[], Tensor], apart: Iterable[Tensor]) -> int:
    """What autograd keeps for the backward pass of `run`: every storage once, without those of `apart`.

    Counted when `run` has ended: the input of a layer that is computed again is handed over, and dropped at once where
    nothing learns.
    """
    others = {tensor.untyped_storage().data_ptr() for tensor in apart}
    kept: WeakSet[_Held] = WeakSet()

    def pack(tensor: Tensor) -> _Held:
        held = _Held(tensor.detach())  # what an operation keeps of its own output would keep the operation: for ever
        kept.add(held)
        return held

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        result = run()
        storages = {s.data_ptr(): s.nbytes() for s in (held.tensor.untyped_storage() for held in kept)}
    del result
    return sum(n for at, n in storages.items() if at not in others)


@dataclass(eq=False)
class _Held:
    tensor: Tensor
