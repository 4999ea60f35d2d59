"""What the peers share about adapters: LoRA's settings, which all of them hand to PEFT, and bases in few bits."""

from __future__ import annotations

from typing import Any

from luthier.migrate.engine import Fate, Rule, View
from luthier.migrate.kinds import either, flag, names, number, text, whole
from luthier.migrate.rules import carried, not_supported

RANK = carried("model.adapt.rank", whole)
ALPHA = carried("model.adapt.alpha", number)
RSLORA = carried("model.adapt.rslora", flag)
DORA = carried("model.adapt.dora", flag)
LORA_PLUS = carried("model.adapt.lora_plus_ratio", number)
LORA_PLUS_EMBEDDINGS = not_supported("a learning rate for LoRA on embeddings", "LoRA is on linear layers")
WHOLE_MODULES = not_supported(
    "modules that are trained whole beside LoRA, mostly for new tokens", "name the tokens in model.new_tokens"
)
PARAMETERS = not_supported("LoRA on parameters that are in no linear layer", "only modules can be targets")


def _dropout(value: float, view: View) -> Fate:
    said = "above 0 the model runs row by row, which takes longer" if value else ""
    return Fate("carried", said, {"model.adapt.dropout": value})


DROPOUT = Rule(number, "`model.adapt.dropout`; above 0 the model runs row by row", _dropout)


def targets(everything: str) -> Rule:
    """A list of names of modules; `everything` is what the peer calls all linear layers."""

    def by(value: list[str], view: View) -> Fate:
        return Fate("carried", "", {"model.adapt.target": "all-linear" if everything in value else value})

    return Rule(names, f"`model.adapt.target`: a list of names; {everything} → all-linear", by)


def bits(n: int) -> Rule:
    def by(value: bool, view: View) -> Fate:
        if n == 8 and value and view("load_in_4bit"):
            return Fate("no_effect", "load_in_4bit is on, and wins")
        return Fate("carried", "", {"model.quantize": f"{n}bit"}) if value else Fate("no_effect", "is off")

    return Rule(flag, f"`model.quantize`: {n}bit", by)


def beginnings(value: Any, view: View) -> Fate:
    """PEFT's init_lora_weights."""
    known = {"true": "default", "gaussian": "gaussian", "orthogonal": "orthogonal", "pissa": "pissa", "olora": "olora"}
    name = str(value).lower()
    if name in known:
        return Fate("carried", "", {"model.adapt.init": known[name]})
    return Fate("not_supported", "another beginning of the adapter; the recipe has the usual one")


INIT = Rule(either(text, flag), "`model.adapt.init`: true, gaussian, orthogonal, pissa, olora; no other", beginnings)
