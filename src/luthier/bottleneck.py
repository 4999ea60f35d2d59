"""Bottleneck adapters: small two-layer networks in the layers of a frozen decoder (peft has none).

    D hidden size, S size of the bottleneck

- `houlsby`: one after attention and one after the MLP, each before its residual sum (Houlsby et al. 2019, arXiv
  1902.00751).
- `pfeiffer`: after the MLP alone (Pfeiffer et al. 2021, arXiv 2005.00247).
- `parallel`: beside the MLP, from its input, scaled (He et al. 2022, arXiv 2110.04366).

Promises: an adapted model begins as the base, to the bit; no weight of the base is changed, renamed or saved. The
places are found by a layer's parts, not by a list of architectures, and refused in words where there are none. This
module knows nothing of recipes and training.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models import name_of_layers

WEIGHTS, CONFIG = "bottleneck.safetensors", "bottleneck.json"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
_MLP = re.compile("mlp|ffn|feed_forward|moe")
"""What layers call their MLP; what else in them has matrices is attention, or what stands for it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the saved weights are weights of; `bottleneck.json` holds it."""

    base_model: str
    """As others find it."""
    placement: str
    size: int
    activation: str
    scale: float
    first_layer: int
    """Layers below it have no adapters."""


class Adapter(nn.Module):
    """scale * up(activation(down(x))), for any x (..., D), in the adapter's own precision."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, shape.size), nn.Linear(shape.size, width)
        self.activation, self.scale = ACTIVATIONS[shape.activation], shape.scale
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.scale * self.up(self.activation(self.down(x.to(self.down.weight.dtype))))
        return change.to(x.dtype)

    # Hooks are methods, because a copy of the model then calls the copied adapters.

    def after(self, part: nn.Module, args: Any, given: Any, out: Any) -> Any:
        """What the part gives, and of that the adapter's."""
        return _plus(out, self(_states(out)))

    def beside(self, part: nn.Module, args: Any, given: Any, out: Any) -> Any:
        """What the part gives, and the adapter of what the part was given."""
        return _plus(out, self(args[0] if args else next(iter(given.values()))))


def _states(out: Any) -> Any:
    """Attention and mixtures of experts also give weights and router logits, after the states."""
    return out[0] if isinstance(out, tuple) else out


def _plus(out: Any, change: Tensor) -> Any:
    return (out[0] + change, *out[1:]) if isinstance(out, tuple) else out + change


def insert(model: Any, shape: Shape) -> nn.Module:
    """The model with adapters, which alone are trainable, float32 and drawn by torch's generator; it is changed itself.

    Raises ModelError LU-M013 where a layer has no such place.
    """
    places = [*_places(model, shape)]  # all of them, before anything is changed
    model.requires_grad_(False)
    for layer, name, part in places:
        adapter = Adapter(model.config.get_text_config().hidden_size, shape).to(_tensors(part)[0].device)
        layer.add_module(f"bottleneck_{name}", adapter)
        hook = adapter.beside if shape.placement == "parallel" else adapter.after
        part.register_forward_hook(hook, with_kwargs=True)
    model.bottleneck = shape
    return model  # type: ignore[no-any-return]


def _places(model: Any, shape: Shape) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Layer, name of the part in it, and part, of each adapter."""
    body = model.get_decoder()
    name = name_of_layers(body)
    if name is None:
        raise _no_place(shape, "its layers are not one list")
    for i, layer in enumerate(getattr(body, name)):
        if i < shape.first_layer:
            continue
        parts = {k: m for k, m in layer.named_children() if any(t.ndim >= 2 for t in _tensors(m))}
        mlps = [k for k in parts if _MLP.search(k)]
        others = [k for k in parts if k not in mlps]
        wanted = {"MLP": mlps} | ({"attention": others} if shape.placement == "houlsby" else {})
        for what, found in wanted.items():
            if len(found) != 1:
                raise _no_place(shape, f"layer {i} has no one {what}; its parts are {', '.join(parts)}")
            part = parts[found[0]]
            if shape.placement != "parallel" and "residual" in inspect.signature(part.forward).parameters:
                raise _no_place(shape, f"its {what} adds the residual itself; `placement: parallel` may fit")
            yield layer, found[0], part


def _tensors(module: nn.Module) -> list[Tensor]:
    """Its weights; those in few bits are buffers."""
    return [*module.parameters(), *module.buffers()]


def _no_place(shape: Shape, found: str) -> ModelError:
    return ModelError.of("LU-M013", f"model.adapt: bottleneck, {shape.placement}", found, "docs/techniques.md")


def is_bottleneck(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def save(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().cpu().contiguous() for name, p in _parameters(model).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(asdict(model.bottleneck), indent=2) + "\n")


def load(model: nn.Module, folder: Path) -> nn.Module:
    """The base model with the adapters of `folder`. Raises ModelError LU-M011, LU-M013."""
    from safetensors.torch import load_file

    adapted = insert(model, Shape(**json.loads((folder / CONFIG).read_text())))
    ours, weights = _parameters(adapted), load_file(folder / WEIGHTS)
    if {name: p.shape for name, p in ours.items()} != {name: w.shape for name, w in weights.items()}:
        raise ModelError.of("LU-M011", str(folder), "its adapters are not for a model of this architecture")
    for name, parameter in ours.items():
        parameter.data.copy_(weights[name])
    return adapted


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".bottleneck_" in name}
