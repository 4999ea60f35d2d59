"""The learning rate that suits a technique and a model, where a recipe leaves it open.

Schulman et al. 2025 ("LoRA Without Regret", thinkingmachines.ai; the formula in tinker-cookbook): over fourteen models
the best rate of LoRA depended on the model's width d and family, hardly on the rank, and was ten times that of all
weights: 5e-5 (2000 / d)^p for all weights, p = 0.781 for Llama's family and 0.0775 for Qwen's. Short runs wanted more
of it. Other families are taken for Llama's, widths below 512 and above 16,384 for these: none was measured there.
"""

from __future__ import annotations

from luthier.settings import Adapt, Peft

ALL_WEIGHTS = 5e-5
WIDTHS = (512, 16_384)
FAMILIES = {"qwen": 0.0775}
LLAMA = 0.781
MULTIPLES = {"full": 1.0, "partial": 1.0, "p_tuning": 100.0, "prefix": 100.0, "prompt": 200.0}
"""Of the rate of all weights, by method; what is not named learns at LoRA's. Learned prompts are small and far from the
loss: their authors' rates are tens of times LoRA's (Lester et al. 2021; Li & Liang 2021)."""
LORA = 10.0
IA3 = 60.0
"""3e-3 where LoRA's is 5e-4 (Liu et al. 2022)."""


def multiple(adapt: Adapt) -> float:
    """The technique's rate over that of all weights."""
    if isinstance(adapt, Peft) and adapt.type == "IA3":
        return IA3
    return MULTIPLES.get(adapt.method, LORA)


def suited_rate(adapt: Adapt, width: int, family: str) -> float:
    """The highest learning rate of a run, to three digits; `family` is transformers' `model_type`."""
    power = next((p for name, p in FAMILIES.items() if family.startswith(name)), LLAMA)
    d = min(max(width, WIDTHS[0]), WIDTHS[1])
    return float(f"{multiple(adapt) * ALL_WEIGHTS * (2000 / d) ** power:.3g}")
