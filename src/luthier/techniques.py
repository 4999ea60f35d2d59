"""Which of peft's techniques may train here beside LoRA, and whether peft takes the parameters that a recipe gives.

Let in is what the tests train, resume, reload and merge (`docs/techniques.md` says what each costs). This module knows
nothing of models, and imports peft only to check parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from luthier.errors import Problem, did_you_mean, first_line

# peft imports it where it is installed, and it then warns of a kernel for generation that is not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

TECHNIQUES = ("BEFT", "BOFT", "C3A", "DELORA", "HRA", "IA3", "LOHA", "LOKR", "MISS", "OFT", "VBLORA", "VERA")
"""As peft calls them."""
LEARNED_PROMPTS = {"prompt": "PROMPT_TUNING", "p_tuning": "P_TUNING", "prefix": "PREFIX_TUNING"}
"""A recipe's method -> peft's name of what learns a beginning of the text (`prompts.py`)."""
UNMERGED = frozenset({"BEFT", "bottleneck", *LEARNED_PROMPTS.values()})
"""What cannot, or not always, be added to the base model's weights, and so is never merged."""
REFUSED = {
    "LORA": "it is `method: lora`",
    "LN_TUNING": "it is `{method: partial, train: '.*norm.*'}`",
    "ADALORA": "it is `method: adalora`",
    **{technique: f"it is `method: {method}`" for method, technique in LEARNED_PROMPTS.items()},
    **dict.fromkeys(
        ("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING"),
        "of what learns a beginning of the text only `method: prompt`, `p_tuning` and `prefix` are supported",
    ),
}
"""What people ask for and what is said to them."""


def not_trained(technique: str) -> str | None:
    """Why a technique is refused, in words; None if it may train."""
    if technique in TECHNIQUES:
        return None
    name = technique.upper()
    return f"{technique}: {REFUSED.get(name) or 'no such technique; ' + did_you_mean(name, TECHNIQUES)}"


def config_class(technique: str) -> Any:
    """peft's configuration of a technique, a dataclass."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(technique)]


def check_params(technique: str, params: Mapping[str, Any], where: str) -> list[Problem]:
    """Every parameter that peft does not know (LU-R008), or of which it would not take this value (LU-R009)."""
    from peft import PeftConfig

    config = config_class(technique)
    ours = {field.name for field in fields(PeftConfig)} | {"target_modules", "modules_to_save"}
    known = [field.name for field in fields(config) if field.name not in ours]
    types = get_type_hints(config)
    problems = []
    for name, value in params.items():
        if name not in known:
            advice = "`model.adapt.target` says it" if name == "target_modules" else did_you_mean(name, known)
            problems.append(Problem("LU-R008", f"{where}.{name}", "no such setting", advice))
            continue
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            found = f"{error.errors()[0]['msg']}, found {value!r}"
            problems.append(Problem("LU-R009", f"{where}.{name}", found))
    if not problems:
        try:
            made = config(**params)
        except ValueError as error:
            return [Problem("LU-R009", where, first_line(error))]
        if technique == "VBLORA" and made.topk > made.num_vectors:  # which peft notices in the first forward pass
            problems.append(Problem("LU-R009", where, f"topk {made.topk} is more than num_vectors {made.num_vectors}"))
    return problems
