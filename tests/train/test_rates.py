"""The learning rate that a technique gets where the recipe names none."""

from __future__ import annotations

from pathlib import Path

import pytest
from rows import make_recipe, prepared

from luthier.models import find_base
from luthier.progress import Lines
from luthier.rates import multiple, suited_rate
from luthier.settings import Adapt, Bottleneck, Full, Lora, Peft, Prompt
from luthier.train import train


@pytest.mark.parametrize(
    ("adapt", "width", "family", "rate"),
    [
        (Lora(), 4096, "llama", 2.86e-4),  # Llama-3.1-8B, as the formula's authors give it
        (Full(method="full"), 2000, "llama", 5e-5),
        (Full(method="full"), 4096, "qwen3", 4.73e-5),
        (Lora(), 576, "llama", 1.32e-3),
        (Lora(), 32, "llama", 1.45e-3),  # as of 512
        (Bottleneck(method="bottleneck"), 2000, "gemma3_text", 5e-4),
    ],
)
def test_the_rate_is_that_of_the_formula(adapt: Adapt, width: int, family: str, rate: float) -> None:
    assert suited_rate(adapt, width, family) == pytest.approx(rate, rel=1e-2)


def test_what_learns_less_learns_faster() -> None:
    order = [Full(method="full"), Lora(), Peft(method="peft", type="IA3"), Prompt(method="prompt", tokens=4)]
    assert sorted(order, key=multiple) == order


def test_training_says_the_rate_and_learns_at_it(tiny: Path, tmp_path: Path) -> None:
    data, base = prepared(tmp_path / "data", 8), find_base(str(tiny))
    said: list[str] = []
    done = train(make_recipe(learning_rate=None, epochs=1), data, base, tmp_path / "auto", Lines(said.append))
    assert done.learning_rate == suited_rate(Lora(), 32, "llama") and f"learning rate: {done.learning_rate:g}" in said
    same = train(make_recipe(learning_rate=done.learning_rate, epochs=1), data, base, tmp_path / "number")
    assert same.curve == done.curve
