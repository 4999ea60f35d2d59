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
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models import Base
from luthier.settings.model import Pattern

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
LINEAR, EMBEDDING = (".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")
"""How the names of A and B end."""


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
        if not isinstance(config, dict):
            raise ValueError("its configuration is no mapping")
        scales, weights = _Scales.model_validate(config), _load(folder)
    except (OSError, ValueError) as error:
        wrong = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" if wrong else error
        found = f"holds no adapter that can be read: {why}"
        raise ModelError.of("LU-M030", str(folder), found, "give a run's folder, or that of a LoRA adapter") from None
    if strange := _strange(config, weights):
        found = f"is other than plain LoRA of linear layers: {', '.join(strange)}"
        raise ModelError.of("LU-M030", str(folder), found, "only plain LoRA can act together with what is trained")
    of = config.get("base_model_name_or_path")
    if of not in (base.public_name, base.name, str(base.folder)):
        advice = f"if that is {base.public_name}, say so in its adapter_config.json (base_model_name_or_path)"
        raise ModelError.of("LU-M031", str(folder), f"was trained on {of}, not on {base.public_name}", advice)
    return {name: Low(low.a, weight * low.b) for name, low in _lows(scales, weights, LINEAR).items()}


class _Scales(BaseModel):
    """What an adapter's configuration says of its scale."""

    model_config = ConfigDict(strict=True)
    lora_alpha: float = 8
    alpha_pattern: dict[Pattern, float] | None = None
    use_rslora: bool = False


def _strange(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """What makes an adapter more than W + B A of the unchanged base."""
    from peft import LoraConfig

    if config.get("peft_type") != "LORA":
        return [f"its type is {config.get('peft_type')}"]
    ordinary = LoraConfig().to_dict()
    found = [f"{key}: {v}" for key, v in config.items() if key not in FREE and v and v != ordinary.get(key)]
    if (begun := config.get("init_lora_weights", True)) not in BEGINNINGS:
        found.append(f"init_lora_weights: {begun}")
    halves = [{name.removesuffix(end) for name in weights if name.endswith(end)} for end in LINEAR]
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
    if strange := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise ValueError(f"{strange[0]} holds numbers that are not finite")
    return weights


def _lows(scales: _Scales, weights: Mapping[str, Tensor], ends: tuple[str, str]) -> dict[str, Low]:
    from peft.utils.other import get_pattern_key

    alphas = scales.alpha_pattern or {}
    found = {}
    for key in (k for k in weights if k.endswith(ends[0])):
        name = key.removesuffix(ends[0])
        a, b = weights[key].float(), weights[name + ends[1]].float()
        name = name.removeprefix(PREFIX)
        alpha = alphas.get(get_pattern_key(alphas.keys(), name), scales.lora_alpha)
        found[name] = Low(a, alpha / (len(a) ** 0.5 if scales.use_rslora else len(a)) * b)
    return found


@torch.no_grad()
def add(model: nn.Module, adapters: Sequence[Adapter]) -> nn.Module:
    """The model in float32, as rounding would lose what was added, with W + B A in the place of each W.

    Raises ModelError LU-M032 where a matrix is missing, of another shape, or input and output embeddings at once.
    """
    model = model.float()
    modules, tied = dict(model.named_modules()), _tied(model)
    for adapter in adapters:
        for name, low in adapter.items():
            weight = getattr(modules.get(name), "weight", None)
            expected = (len(low.b), low.a.shape[1])
            if not isinstance(weight, Tensor) or weight.shape != expected:
                has = "none" if weight is None else f"one of {tuple(weight.shape)}"
                found = f"an adapter of a matrix of {expected}; the base model has {has}"
                raise ModelError.of("LU-M032", f"model.adapters: {name}", found, "train it on this base model")
            if weight is tied:
                found = "is both input and output embeddings here, of which an adapter changes one"
                raise ModelError.of("LU-M032", f"model.adapters: {name}", found, "give one without this matrix")
            weight += (low.b @ low.a).to(weight.device)
    return model


def _tied(model: Any) -> Tensor | None:
    """The weight of both input and output embeddings, where they are one."""
    output = model.get_output_embeddings()
    weight: Tensor = model.get_input_embeddings().weight
    return weight if output is not None and output.weight is weight else None


def join(folder: Path, given: Sequence[Adapter]) -> None:
    """Let the LoRA adapter in `folder` do what it does and what the `given` ones do; what else it holds stays."""
    from safetensors.torch import save_file

    config, weights = json.loads((folder / "adapter_config.json").read_bytes()), _load(folder)
    scales = _Scales.model_validate(config)
    rest = {name: w for name, w in weights.items() if not name.endswith((*LINEAR, *EMBEDDING))}
    ranks: dict[str, int] = {}
    for ends, others in ((LINEAR, given), (EMBEDDING, ())):
        adapters = [_lows(scales, weights, ends), *others]
        for name in sorted({name for adapter in adapters for name in adapter}):
            lows = [adapter[name] for adapter in adapters if name in adapter]
            rest[f"{PREFIX}{name}{ends[0]}"] = torch.cat([low.a for low in lows])
            rest[f"{PREFIX}{name}{ends[1]}"] = torch.cat([low.b for low in lows], dim=1)
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
