"""Make a base model trainable: all of it, a part of it, or adapters beside frozen weights.

What is trained is saved by `saved.py`. This module knows nothing of losses, steps or learning rates.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from luthier import bottleneck
from luthier.decoder import CANNOT_RUN
from luthier.errors import ModelError, did_you_mean, first_line, printable
from luthier.models import Base, load_tokenizer, quiet_transformers
from luthier.prompts import begin, prompt_config
from luthier.settings import WHOLE, AdaLora, Adapt, Auto, Bottleneck, Lora, Partial, Peft, Prefix, Prompt, PTuning
from luthier.techniques import config_class
from luthier.vocabulary import rows_of


def adapt(model: nn.Module, how: Adapt, base: Base, seed: int) -> nn.Module:
    """The model with trainable parameters in float32, drawn by `seed`.

    Raises ModelError: LU-M010, the model has nothing of the name that is to be trained; LU-M012, a rank is larger than
    a layer, or there are fewer layers; LU-M013, the technique cannot take what it is to adapt.
    """
    assert not isinstance(how, Auto), "it is chosen before"
    torch.manual_seed(seed)
    if isinstance(how, WHOLE):
        model = model.float()  # updates at small rates vanish in bfloat16
        return _unfreeze(model, how, base) if isinstance(how, Partial) else model.requires_grad_(True)
    if isinstance(how, Bottleneck):
        return bottleneck.insert(model, _shape(model, how, base))
    if isinstance(how, Lora) and how.changes_base:
        model = model.float()  # what rounding would take out of the base's weights would be in no adapter
    adapted = _with_adapter(model, how, base)
    adapted.peft_config["default"].base_model_name_or_path = base.public_name
    if isinstance(how, Prompt | PTuning | Prefix):
        _begin(adapted, how, base)
    else:
        _check_ends(adapted, how, base)
    if isinstance(how, Lora | AdaLora):
        _check_ranks(adapted, how)
    if isinstance(how, Lora):
        _check_patterns(adapted, how)
        if how.changes_base:
            adapted.begun_with = adapter_weights(adapted)
    for parameter in trainable(adapted).values():
        parameter.data = parameter.data.float()  # peft does it for some techniques only
    return adapted  # type: ignore[no-any-return]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# -- a part of the weights -------------------------------------------------------------------------------


def _unfreeze(model: Any, how: Partial, base: Base) -> nn.Module:
    """The model with all weights frozen but those that a setting names; tied weights go by any of their names."""
    model.requires_grad_(False)
    early = _early_layers(model, how.last_layers) if how.last_layers else None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    _check_parts(how, parameters)
    for name, parameter in parameters.items():
        layer = _layer_of(name)
        late = early is not None and layer is not None and layer not in early
        if late or (how.bitfit and name.endswith(".bias")) or (how.train and _is_named(name, how.train)):
            parameter.requires_grad_(True)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if base.new_tokens and not all(end.weight.requires_grad for end in ends):
        found = "the embeddings of model.new_tokens are not among what is trained"
        raise ModelError.of("LU-M013", "model.adapt: partial", found, "name input and output embeddings in `train`")
    return model  # type: ignore[no-any-return]


def _check_parts(how: Partial, parameters: Collection[str]) -> None:
    """Raises ModelError LU-M010 with each of the settings, and each name in them, that fits no weight."""
    parts = [(part,) for part in how.train] if isinstance(how.train, tuple) else [how.train] if how.train else []
    missing = [part for part in parts if not any(_is_named(name, part) for name in parameters)]
    errors = [_nothing("train", part, parameters) for part in missing]
    if how.bitfit and not any(name.endswith(".bias") for name in parameters):
        errors.append(_nothing("bitfit", ".bias", parameters))
    if errors:
        raise ModelError(*(problem for error in errors for problem in error.problems))


def _is_named(name: str, names: str | tuple[str, ...]) -> bool:
    """By a regular expression for the whole name, or by one of its parts."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(f".{part}." in f".{name}." for part in names)


def _layer_of(name: str) -> int | None:
    """The layer's number in a weight's name: the first part that is a number."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _early_layers(model: Any, last: int) -> range:
    """All layers but the `last` ones. Raises ModelError LU-M012."""
    n = model.config.get_text_config().num_hidden_layers
    if last > n:
        raise ModelError.of("LU-M012", "model.adapt.last_layers", f"there are {n} layers, not {last}")
    return range(n - last)


def _nothing(setting: str, wanted: str | tuple[str, ...], names: Collection[str]) -> ModelError:
    text = wanted if isinstance(wanted, str) else ", ".join(wanted)
    parts = {part for name in names for part in name.split(".") if part and not part.isdecimal()}
    return ModelError.of(
        "LU-M010",
        f"model.adapt.{setting}: {text}",
        "the model has nothing of this name",
        did_you_mean(text, parts),
    )


# -- adapters --------------------------------------------------------------------------------------------


_Wrapped = Lora | AdaLora | Peft | Prompt | PTuning | Prefix
"""What peft wraps a model for."""
CHANGED = re.compile(r"Invalid .* Adjusted|Setting boft_n_butterfly_factor|The symmetric initialization can NOT")
"""How peft's warnings begin that it does not do what a technique's settings say."""


def _with_adapter(model: nn.Module, how: _Wrapped, base: Base) -> Any:
    """The model in peft's wrapping. Raises ModelError LU-M010, LU-M012, LU-M013."""
    from peft import get_peft_model

    if isinstance(how, Lora | AdaLora | Peft):  # the others look for no modules
        _check_target(how.target, [name for name, _ in model.named_modules()])
    try:
        with quiet_transformers(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = get_peft_model(model, _config(model, how, base))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError, re.error) as error:
        raise _misfit(how, f"peft cannot adapt this model so: {first_line(error)}") from None
    changed = [text for one in said if CHANGED.match(text := str(one.message))]
    if isinstance(how, Peft) and how.params.get("boft_n_butterfly_factor", 1) == 1:
        changed = [text for text in changed if "boft_n_butterfly_factor" not in text]  # said in any case
    if changed:
        raise _misfit(how, f"peft would train it with other settings: {printable(changed[0], 300)}")
    return adapted


def _check_target(target: str | tuple[str, ...] | None, modules: Sequence[str]) -> None:
    """Raises ModelError LU-M010 with each name that fits no module, as peft compares them."""
    if target is None or target == "all-linear":
        return
    if isinstance(target, str):
        missing = [] if any(re.fullmatch(target, name) for name in modules) else [target]
    else:
        missing = [end for end in target if not any(f".{name}".endswith(f".{end}") for name in modules)]
    if missing:
        raise ModelError(*(p for name in missing for p in _nothing("target", name, modules).problems))


def _shape(model: Any, how: Bottleneck, base: Base) -> bottleneck.Shape:
    """Raises ModelError LU-M012."""
    width = model.config.get_text_config().hidden_size
    if how.reduction is not None and how.reduction > width:
        raise ModelError.of(
            "LU-M012", "model.adapt.reduction", f"{how.reduction} is more than the hidden size, {width}"
        )
    return bottleneck.Shape(
        base_model=base.public_name,
        placement=how.placement,
        size=width // how.reduction if how.reduction else how.size,
        activation=how.activation,
        scale=how.scale or (4.0 if how.placement == "parallel" else 1.0),
        first_layer=len(_early_layers(model, how.last_layers)) if how.last_layers else 0,
    )


def _misfit(how: _Wrapped, found: str) -> ModelError:
    advice = "docs/techniques.md says what each technique takes"
    if isinstance(how, Lora | AdaLora | Peft):
        advice = f"model.adapt.target names what is adapted; {advice}"
    return ModelError.of("LU-M013", f"model.adapt: {how.type if isinstance(how, Peft) else how.method}", found, advice)


def _begin(adapted: Any, how: Prompt | PTuning | Prefix, base: Base) -> None:
    """Raises ModelError LU-M013 where peft cannot run the model so: a recurrent one has no keys for a prefix."""
    try:
        begin(adapted, how, load_tokenizer(base))
    except (*CANNOT_RUN, IndexError) as error:  # IndexError: more positions than the model has learned
        raise _misfit(how, f"peft cannot run this model so: {first_line(error)}") from None


def _check_ends(adapted: Any, how: Lora | AdaLora | Peft, base: Base) -> None:
    """Raises ModelError LU-M013 for an adapter on tied embeddings: merged, it would change input and output alike.

    Also for one on embeddings that gain tokens, and for a head's bias, of which peft's rows of tokens know nothing.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = adapted.get_base_model()
    ends = (inner.get_input_embeddings(), inner.get_output_embeddings())
    if base.new_tokens:
        ends = tuple(end.original_module for end in ends)
        if getattr(ends[1], "bias", None) is not None:
            raise _misfit(how, "the output embeddings have a bias, without which peft would learn new tokens")
    tied = inner.config.get_text_config().tie_word_embeddings
    if (tied or base.new_tokens) and any(isinstance(end, BaseTunerLayer) for end in ends):
        why = "are one tensor, which an adapter cannot change for one of them" if tied else "learn the new tokens alone"
        raise _misfit(how, f"input and output embeddings {why}")


def _config(model: nn.Module, how: _Wrapped, base: Base) -> Any:
    """peft's configuration."""
    if isinstance(how, Lora):
        return _lora_config(model, how, base)
    if isinstance(how, Prompt | PTuning | Prefix):
        return prompt_config(how)
    named = {"target_modules": _listed(how.target), "task_type": "CAUSAL_LM"}
    if isinstance(how, Peft):
        return config_class(how.type)(**named, **how.params)
    # One step, because peft's own schedule is not used.
    tokens = _learned_tokens(model, base)
    return config_class("ADALORA")(
        init_r=how.initial_rank, lora_alpha=how.alpha, total_step=1, trainable_token_indices=tokens, **named
    )


def _lora_config(model: nn.Module, how: Lora, base: Base) -> Any:
    from peft import LoraConfig

    early = _early_layers(model, how.last_layers) if how.last_layers else ()
    return LoraConfig(
        r=how.rank,
        lora_alpha=how.alpha,
        lora_dropout=how.dropout,
        target_modules=_listed(how.target),
        exclude_modules=rf"(?:[^.]*[^.\d][^.]*\.)+(?:{'|'.join(map(str, early))})\..*" if early else None,
        use_rslora=how.rslora,
        use_dora=how.dora,
        init_lora_weights=True if how.init == "default" else how.init,
        rank_pattern=dict(how.rank_pattern),
        alpha_pattern=dict(how.alpha_pattern),
        trainable_token_indices=_learned_tokens(model, base),
        task_type="CAUSAL_LM",
    )


def _learned_tokens(model: Any, base: Base) -> dict[str, list[int]] | None:
    """The names of the embeddings, once where they are tied, and which of their rows are new tokens'."""
    if not base.new_tokens:
        return None
    ends = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings:
        ends.append(model.get_output_embeddings())
    rows = rows_of(load_tokenizer(base), base.new_tokens)
    return {name: rows for name, module in model.named_modules() if any(module is end for end in ends)}


def _listed(target: str | tuple[str, ...] | None) -> Any:
    return list(target) if isinstance(target, tuple) else target


def lora_layers(adapted: Any) -> dict[str, Any]:
    """Those of LoRA and AdaLoRA, by their names in the base model."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in adapted.get_base_model().named_modules() if isinstance(m, LoraLayer)}


def _check_patterns(adapted: Any, how: Lora) -> None:
    """Raises ModelError LU-M010 for a pattern that no adapted module fits."""
    layers = lora_layers(adapted)
    for setting, patterns in (("rank_pattern", how.rank_pattern), ("alpha_pattern", how.alpha_pattern)):
        for pattern in patterns:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in layers):  # as peft looks for them
                raise _nothing(setting, pattern, layers)


def _check_ranks(adapted: Any, how: Lora | AdaLora) -> None:
    """Raises ModelError LU-M012 for a rank above a layer's."""
    instead = ", or give them their own in rank_pattern" if isinstance(how, Lora) else ""
    for name, layer in lora_layers(adapted).items():
        rank, most = layer.r["default"], min(layer.in_features, layer.out_features)
        if rank > most:
            raise ModelError.of(
                "LU-M012",
                "model.adapt.rank" if isinstance(how, Lora) else "model.adapt.initial_rank",
                f"{rank} is more than {name.rpartition('.')[2]} has: {layer.in_features} x {layer.out_features}",
                f"{most} at most, or leave these layers out by target{instead}",
            )


def adapter_weights(adapted: Any) -> dict[str, torch.Tensor]:
    """A copy of the adapter's weights, by the names of peft's files."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}
