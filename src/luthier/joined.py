"""Several LoRA adapters that act together: added to a base model's weights, and joined into one adapter.

    r rank of an adapter; D, O inputs and outputs of a matrix

W + B1 A1 + B2 A2 = W + [B1 B2] [A1; A2]: what several adapters do together, one of the sum of their ranks does too.
So a training begins with W + the given ones, whose weights stay as they are, and what it leaves joins them in one
adapter that fits the unchanged base model and is loaded, merged and served like any other. Lost: several adapters that
are live in each layer (as many products a layer more, and an adapter that says nothing without the others).

This module knows nothing of recipes and training.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models import Base

PREFIX = "base_model.model."
"""Before the names of modules, in peft's files."""
FREE = set(
    "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r lora_alpha lora_dropout "
    "target_modules exclude_modules layers_to_transform layers_pattern rank_pattern alpha_pattern use_rslora "
    "init_lora_weights eva_config megatron_core qalora_group_size runtime_config".split()
)
"""Settings of peft's that leave an adapter W + B A, or are taken into B; all others must be at their defaults."""
BEGINNINGS = (True, False, "gaussian", "orthogonal", "eva")
"""Those of peft's that leave the base's weights as they are."""


@dataclass(frozen=True, slots=True)
class Low:
    """What an adapter adds to one matrix, its scale taken into B."""

    a: Tensor  # (r, D)
    b: Tensor  # (O, r)


Adapter = Mapping[str, Low]
"""By the names of the base model's modules."""


def adapter_in(path: Path) -> Path:
    """The folder of an adapter: the one given, or that of the run that lies there."""
    inner = path / "train" / "model"
    return inner if inner.is_dir() else path


def read_adapter(folder: Path, base: Base, weight: float = 1.0) -> Adapter:
    """A given adapter, `weight` times.

    Raises ModelError: LU-M030, there is no LoRA adapter, or one that is more than W + B A; LU-M031, it is of another
    base model.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        weights = _load(folder)
    except (OSError, ValueError) as error:
        found = f"holds no adapter that can be read: {error}"
        raise ModelError.of("LU-M030", str(folder), found, "give a run's folder, or that of a LoRA adapter") from None
    if strange := _strange(config, weights):
        found = f"is other than plain LoRA of linear layers: {', '.join(strange)}"
        raise ModelError.of("LU-M030", str(folder), found, "only plain LoRA can act together with what is trained")
    of = config.get("base_model_name_or_path")
    if of not in (base.public_name, base.name, str(base.folder)):
        advice = f"if that is {base.public_name}, say so in its adapter_config.json (base_model_name_or_path)"
        raise ModelError.of("LU-M031", str(folder), f"was trained on {of}, not on {base.public_name}", advice)
    return {name: Low(low.a, weight * low.b) for name, low in _lows(config, weights).items()}


def _strange(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """What makes an adapter more than W + B A of the unchanged base."""
    from peft import LoraConfig

    if config.get("peft_type") != "LORA":
        return [f"its type is {config.get('peft_type')}"]
    ordinary = LoraConfig().to_dict()
    found = [f"{key}: {v}" for key, v in config.items() if key not in FREE and v and v != ordinary.get(key)]
    if (begun := config.get("init_lora_weights", True)) not in BEGINNINGS:
        found.append(f"init_lora_weights: {begun}")
    halves = [{n.removesuffix(f".lora_{x}.weight") for n in weights if n.endswith(f".lora_{x}.weight")} for x in "AB"]
    if halves[0] != halves[1] or len(weights) != 2 * len(halves[0]):
        found.append("its weights are not pairs of A and B alone")
    return found


def _load(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return weights


def _lows(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Low]:
    from peft.utils.other import get_pattern_key

    alphas: Mapping[str, float] = config.get("alpha_pattern") or {}
    found = {}
    for key in (k for k in weights if k.endswith(".lora_A.weight")):
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = weights[key].float(), weights[key.replace(".lora_A.", ".lora_B.")].float()
        alpha = alphas.get(get_pattern_key(alphas.keys(), name), config["lora_alpha"])
        found[name] = Low(a, alpha / (len(a) ** 0.5 if config.get("use_rslora") else len(a)) * b)
    return found


@torch.no_grad()
def add(model: nn.Module, adapters: Sequence[Adapter]) -> nn.Module:
    """The model in float32, as rounding would lose what was added, with W + B A in the place of each W.

    Raises ModelError LU-M032 where a matrix is missing or of another shape.
    """
    model = model.float()
    modules = dict(model.named_modules())
    for adapter in adapters:
        for name, low in adapter.items():
            weight = getattr(modules.get(name), "weight", None)
            expected = (len(low.b), low.a.shape[1])
            if not isinstance(weight, Tensor) or weight.shape != expected:
                has = "none" if weight is None else f"one of {tuple(weight.shape)}"
                found = f"an adapter of a matrix of {expected}; the base model has {has}"
                raise ModelError.of("LU-M032", f"model.adapters: {name}", found, "train it on this base model")
            weight += (low.b @ low.a).to(weight.device)
    return model


def join(folder: Path, given: Sequence[Adapter]) -> None:
    """Let the LoRA adapter in `folder` do what it does and what the `given` ones do; what else it holds stays."""
    from safetensors.torch import save_file

    config, weights = json.loads((folder / "adapter_config.json").read_bytes()), _load(folder)
    adapters = [_lows(config, weights), *given]
    rest = {name: w for name, w in weights.items() if not name.endswith((".lora_A.weight", ".lora_B.weight"))}
    ranks: dict[str, int] = {}
    for name in sorted({name for adapter in adapters for name in adapter}):
        lows = [adapter[name] for adapter in adapters if name in adapter]
        rest[f"{PREFIX}{name}.lora_A.weight"] = torch.cat([low.a for low in lows])
        rest[f"{PREFIX}{name}.lora_B.weight"] = torch.cat([low.b for low in lows], dim=1)
        ranks[name] = sum(len(low.a) for low in lows)
    save_file(rest, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(config | _shape(ranks), indent=2, sort_keys=True))


def _shape(ranks: Mapping[str, int]) -> dict[str, Any]:
    """The settings of an adapter of these ranks by module, all of scale 1."""
    [(rank, _)] = Counter(ranks.values()).most_common(1)
    others = {name: r for name, r in ranks.items() if r != rank}
    return {
        "target_modules": list(ranks),
        "exclude_modules": None,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
    }
