"""Make a base model trainable: all of it, or low-rank adapters beside frozen weights (peft)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.errors import ModelError, did_you_mean
from luthier.models import Base, quiet_transformers
from luthier.settings import Adapt, Lora


def adapt(model: nn.Module, how: Adapt, base: Base, seed: int) -> nn.Module:
    """The model with trainable parameters in float32, drawn by `seed`. Raises ModelError LU-M010."""
    torch.manual_seed(seed)
    if not isinstance(how, Lora):
        return model.float().requires_grad_(True)  # updates at small rates vanish in bfloat16
    from peft import LoraConfig, get_peft_model

    target: Any = how.target if isinstance(how.target, str) else list(how.target)
    config = LoraConfig(
        r=how.rank, lora_alpha=how.alpha, lora_dropout=how.dropout, target_modules=target, task_type="CAUSAL_LM"
    )
    try:
        with quiet_transformers():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        names = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        raise ModelError.of(
            "LU-M010",
            f"model.adapt.target: {how.target}",
            str(error).splitlines()[0],
            did_you_mean(str(how.target), names),
        ) from None
    adapted.peft_config["default"].base_model_name_or_path = base.public_name
    return adapted  # type: ignore[no-any-return]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_adapted(model: Any, folder: Path, tokenizer: Any) -> None:
    """Write what plain transformers or peft load: an adapter folder, or a whole model; and the tokenizer."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's template; our card says what was measured
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_adapted(model: nn.Module, folder: Path) -> nn.Module:
    """The base model with the adapter of `folder`, unmerged, in evaluation mode."""
    from peft import PeftModel

    with quiet_transformers():
        return PeftModel.from_pretrained(model, folder).eval()  # type: ignore[no-any-return]


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def load_merged(model: nn.Module, folder: Path) -> nn.Module:
    """The tuned model as plain weights, W + scale BA for an adapter; `model`'s own weights are changed.

    For a whole model the weights of `folder` replace those of `model`.
    """
    if is_adapter(folder):
        return load_adapted(model, folder).merge_and_unload().eval()  # type: ignore[no-any-return,operator]
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for part in sorted(folder.glob("*.safetensors")):
        weights |= load_file(part)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied:
        raise ModelError.of("LU-M011", str(folder), "its weights are not those of this architecture")
    return model.eval()
