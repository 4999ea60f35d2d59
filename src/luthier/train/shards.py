"""Layers cut into as many parts as there are processes: PyTorch's FSDP2, and what the loop needs of it.

A layer's whole weights are in a process's memory only while it runs, so its weights, gradients and moments take a part
of what they would take in one. Embeddings, the last norm and the head stay whole everywhere, and so do their
gradients, which are added up as replicas' are. Layers are computed by all processes together, so all of them run as
many micro-batches: one that has none left repeats its last, and what comes of it counts nothing.

Checkpoints are `torch.distributed.checkpoint`'s, each process writing its own part, behind the same manifest. They are
read by any number of processes, one that trains alone among them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from luthier.decoder import Decoder
from luthier.train.world import Replicas

B = TypeVar("B")


class Shards(Replicas):
    sharded = True

    def rounds(self, batches: Iterable[B], spare: Callable[[], B]) -> Iterator[tuple[B, bool]]:
        last: B | None = None
        left = iter(batches)
        while True:
            batch = next(left, None)
            if not self.sums(batch is not None)[0]:
                return
            last = batch or last or spare()
            yield last, batch is not None

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Those of layers are added up while the backward pass runs."""
        super().add_up([p for p in parameters if not isinstance(p, DTensor)])

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None]
        parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
        whole = [g for g in gradients if not isinstance(g, DTensor)]
        [of_parts] = self.sums(sum(float(g.double().square().sum()) for g in parts))
        norm = math.sqrt(of_parts + sum(float(g.double().square().sum()) for g in whole))
        if norm > most:
            for g in (*parts, *whole):
                g.mul_(most / (norm + 1e-6))
        return torch.tensor(norm)


def shard(decoder: Decoder, device: torch.device, products: torch.dtype | None) -> None:
    """Cut the layers of a model that lies whole on the CPU; all of it is on `device` after that.

    `products`: what matrices are multiplied in; None: what they are held in. Its layers are the model's own from now
    on, and its parameters other objects.
    """
    decoder.own_layers("each process holds a part of them")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    precision = MixedPrecisionPolicy(param_dtype=products, reduce_dtype=torch.float32) if products else None
    settings: dict[str, Any] = {"mesh": mesh, **({"mp_policy": precision} if precision else {})}
    _, layers = decoder.layers()
    for layer in layers:
        fully_shard(layer, **settings)
    others = set(decoder.model.parameters()) - set(layers.parameters())
    fully_shard(decoder.body, ignored_params=others, **settings)  # what makes one whole of them
    for module in decoder.body.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums: the loop has divided by counts of all processes
            if device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it adds
    for p in others:
        p.data = p.data.to(device)
    for buffer in decoder.model.buffers():
        buffer.data = buffer.data.to(device)


# -- what a checkpoint holds ---------------------------------------------------------------------------------------


class Unwritten(OSError):
    """What all processes are told where the disk of one refuses."""


def write(tensors: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
    """Every process's part of each, by its kind and name. Returns when all have written. Raises Unwritten."""
    try:
        save(_keyed(tensors), checkpoint_id=folder)
    except CheckpointException as error:
        raise Unwritten("; ".join(f"process {rank}: {one[0]}" for rank, one in error.failures.items())) from None


def read(
    folder: Path, kind: str, parameter_of: Callable[[str], nn.Parameter], alone: bool = False
) -> dict[str, Tensor]:
    """The tensors of a kind by name, each cut as its parameter is, from what any number of processes has written.

    All processes read together, unless one does `alone`.
    """
    file = folder / f"{kind}.safetensors"
    if file.is_file():
        return {name: _cut(whole, parameter_of(name)) for name, whole in load_file(file).items()}
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    found = {}
    for key, told in stored.items():
        if key.startswith(f"{kind}/") and isinstance(told, TensorStorageMetadata):
            name = key.removeprefix(f"{kind}/")
            empty = torch.zeros(told.size, dtype=told.properties.dtype)
            found[name] = _cut(empty, parameter_of(name))
    alone = alone or not dist.is_initialized()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant
        load(_keyed({kind: found}), checkpoint_id=folder, no_dist=alone)
    return found


def _keyed(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    return {f"{kind}/{name}": tensor for kind, of in tensors.items() for name, tensor in of.items()}


def _cut(whole: Tensor, like: nn.Parameter) -> Tensor:
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole.to(like.device) if whole.ndim else whole
    mesh: DeviceMesh = like.device_mesh
    return distribute_tensor(whole.to(mesh.device_type), mesh, like.placements, src_data_rank=None)
