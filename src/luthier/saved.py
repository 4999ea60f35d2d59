"""The folder of a trained model: what training leaves, and how it is loaded again.

It is as plain transformers or peft load it, on the *unchanged* base model; bottleneck adapters, which neither has, are
as `bottleneck.py` writes them.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier import bottleneck
from luthier.adapt import adapter_weights, lora_layers
from luthier.errors import ModelError
from luthier.models import quiet_transformers
from luthier.techniques import UNMERGED


def save_adapted(model: Any, folder: Path, tokenizer: Any) -> None:
    """Write an adapter folder, or a whole model; and the tokenizer."""
    if hasattr(model, "bottleneck"):
        bottleneck.save(model, folder)
    elif hasattr(model, "peft_config"):
        is_adalora = model.peft_config["default"].peft_type.value == "ADALORA"
        (_save_adalora if is_adalora else _save_adapter)(model, folder)
        _settle(folder)
    else:
        with quiet_transformers():
            model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _settle(folder: Path) -> None:
    """Without what differs between two savings of one adapter, and without peft's template of a card: ours has figures.

    peft writes its sets of names in the order that this process happens to give them.
    """
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for names in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(config.get(names), list):  # others are patterns, and prompts have none
            config[names].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def _save_adapter(model: Any, folder: Path) -> None:
    """Where training began with B0A0 out of the base's weights, BA - B0A0 as an adapter of twice the rank.

    So it fits the unchanged base. peft converts too, but looks for the base's configuration on the hub meanwhile.
    """
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder, save_embedding_layers=False)
    begun_with = getattr(model, "begun_with", None)
    if begun_with is None:
        return
    weights = load_file(folder / "adapter_model.safetensors")
    for name, begun in begun_with.items():
        if ".trainable_tokens_delta" in name:  # which replace rows, and add nothing to them
            continue
        is_a = name.endswith(("lora_A.weight", "lora_embedding_A"))
        weights[name] = torch.cat([weights[name], begun if is_a else -begun], dim=0 if is_a else 1)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(_of_twice_the_rank(json.loads(path.read_text())), indent=2, sort_keys=True))


def _save_adalora(model: Any, folder: Path) -> None:
    """B E A as LoRA, without the ranks that were taken, whose E is 0; the scale stays that of the initial rank."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    begun, weights, ranks, alphas = model.peft_config["default"], {}, {}, {}
    for name, layer in lora_layers(model).items():
        a, e, b = (getattr(layer, f"lora_{part}")["default"].detach().cpu() for part in "AEB")
        kept = e[:, 0] != 0
        kept[0] |= not kept.any()  # peft has no LoRA of rank 0: one of zeros is as much
        weights[f"base_model.model.{name}.lora_A.weight"] = (a * e)[kept].contiguous()
        weights[f"base_model.model.{name}.lora_B.weight"] = b[:, kept].contiguous()
        ranks[name] = int(kept.sum())
        alphas[name] = ranks[name] * layer.scaling["default"] / float(layer.ranknum["default"] + 1e-5)
    weights |= {name: rows for name, rows in adapter_weights(model).items() if ".trainable_tokens_delta" in name}
    LoraConfig(
        base_model_name_or_path=begun.base_model_name_or_path,
        target_modules=begun.target_modules,
        fan_in_fan_out=begun.fan_in_fan_out,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        trainable_token_indices=begun.trainable_token_indices,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(folder)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _of_twice_the_rank(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the same adapter, equally scaled, that begins as LoRA does."""
    times = 2**0.5 if config["use_rslora"] else 2
    return config | {
        "init_lora_weights": True,
        "r": 2 * config["r"],
        "lora_alpha": times * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in config["rank_pattern"].items()},
        "alpha_pattern": {name: times * alpha for name, alpha in config["alpha_pattern"].items()},
    }


def load_adapted(model: nn.Module, folder: Path) -> nn.Module:
    """The base model with the adapter of `folder`, unmerged, in evaluation mode."""
    if bottleneck.is_bottleneck(folder):
        return bottleneck.load(model, folder).eval()
    from peft import PeftModel

    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module="peft.tuners"
        )  # that BEFT is not merged; missing weights are still said
        return PeftModel.from_pretrained(model, folder).eval()  # type: ignore[no-any-return]


def is_adapter(folder: Path) -> bool:
    return bottleneck.is_bottleneck(folder) or (folder / "adapter_config.json").is_file()


def load_merged(model: nn.Module, folder: Path) -> nn.Module:
    """The tuned model as plain weights, W + scale BA for LoRA; `model`'s own weights are changed.

    An adapter that cannot be merged stays beside them. For a whole model the weights of `folder` replace those of
    `model`. Raises ModelError LU-M011.
    """
    if is_adapter(folder):
        adapted: Any = load_adapted(model, folder)
        if bottleneck.is_bottleneck(folder) or adapted.peft_config["default"].peft_type.value in UNMERGED:
            return adapted  # type: ignore[no-any-return]
        return adapted.merge_and_unload().eval()  # type: ignore[no-any-return]
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for part in sorted(folder.glob("*.safetensors")):
        weights |= load_file(part)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied:
        raise ModelError.of("LU-M011", str(folder), "its weights are not those of this architecture")
    return model.eval()
