"""Training with frozen layers run once per example: step by step the same, and to the same bits if it is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from killed import dying
from rows import conversations, make_recipe, prepared
from test_models import FUSED
from test_trunk import check_equal, loss_and_gradient
from torch import nn

from luthier import trunk
from luthier.adapt import adapt
from luthier.decoder import Decoder
from luthier.encode import Encoded, Encoder
from luthier.models import find_base, load_model, load_tokenizer
from luthier.progress import Quiet
from luthier.settings import Full, Lora
from luthier.train import train
from luthier.train.data import StepData
from luthier.train.loop import nll_sums
from luthier.train.world import ALONE
from luthier.trunk import kept_trunk

UPPER = r".*layers\.1\..*_proj"
"""The upper one of the tiny model's two layers."""


def encoded(tiny: Path, n: int) -> list[Encoded]:
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))
    return [encoder(c) for c in conversations(n)]


def adapted(tiny: Path, how: Lora | Full, dtype: torch.dtype = torch.float32) -> Decoder:
    base = find_base(str(tiny))
    return Decoder(adapt(load_model(base, torch.device("cpu"), torch.float32), how, base, 0).to(dtype))


@pytest.mark.parametrize(("dtype", "gradient"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_every_step_and_validation_of_adapters_on_the_upper_layer(
    tiny: Path, tmp_path: Path, dtype: torch.dtype, gradient: float
) -> None:
    """Several micro-batches a step, epochs that end within a step, and a row that is on both sides.

    In float32 the gradient of these adapters differs by 3e-6 of its norm, as it does between rows and trees.
    """
    decoder = adapted(tiny, Lora(rank=4, target=UPPER), dtype)
    for name, p in decoder.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)  # else A has no gradient yet
    examples = encoded(tiny, 30)
    data = StepData(examples[:21], examples[20:], 3, 8, 96, seed=0)
    batches = [batch for step in range(data.n_steps) for batch in data.step(step)]
    assert len(batches) > data.n_steps
    by_name = {e.id: e for e in examples}
    groups = [[by_name[name] for name in batch.names] for batch in batches]
    expected = [loss_and_gradient(decoder, group) for group in groups]
    nll = nll_sums(decoder, ALONE.rounds(data.valid(), data.spare))
    with kept_trunk(decoder, data.homes(), tmp_path) as path:
        assert path == f"{FUSED}; layer 0 once per example"
        for group, wanted in zip(groups, expected, strict=True):
            check_equal(loss_and_gradient(decoder, group), wanted, gradient)
        assert nll_sums(decoder, ALONE.rounds(data.valid(), data.spare)) == pytest.approx(nll, rel=1e-6)


@pytest.mark.parametrize("how", [Full(method="full"), Lora(rank=2), Lora(rank=2, target=UPPER, dropout=0.1)])
def test_other_ways_to_adapt_keep_nothing(tiny: Path, tmp_path: Path, how: Lora | Full) -> None:
    decoder = adapted(tiny, how)
    with kept_trunk(decoder, [encoded(tiny, 4)], tmp_path) as path:
        assert path == decoder.path and decoder.shortcut is None


def test_without_homes_nothing_is_kept_and_that_is_said(tiny: Path, tmp_path: Path) -> None:
    decoder = adapted(tiny, Lora(rank=4, target=UPPER))
    with kept_trunk(decoder, [], tmp_path) as path:
        assert decoder.shortcut is None
        assert path == f"{FUSED}; all layers in every step: there are too many examples to keep their states"


def upper_recipe(**settings: Any) -> Any:
    return make_recipe(adapt={"method": "lora", "rank": 4, "target": UPPER}, tokens_per_micro_batch=256, **settings)


@pytest.mark.parametrize(
    ("precision", "digits"), [("float32", "float32"), ("bfloat16", "float32, products in bfloat16")]
)
def test_a_killed_run_goes_on_to_the_same_bits(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, digits: str
) -> None:
    data, base, recipe = prepared(tmp_path / "data", 37), find_base(str(tiny)), upper_recipe(precision=precision)
    straight = train(recipe, data, base, tmp_path / "straight")
    assert straight.path == f"{FUSED}; layer 0 once per example; in {digits}" and straight.steps == 10
    assert straight.checks[-1].nll < straight.checks[0].nll
    for after in (0, 3, 7, 9):
        with dying(after, monkeypatch):
            train(recipe, data, base, tmp_path / "killed")
    resumed = train(recipe, data, base, tmp_path / "killed")
    weights = [tmp_path / name / "model" / "adapter_model.safetensors" for name in ("straight", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert resumed.checks == straight.checks and resumed.curve == straight.curve


def test_training_says_its_path_and_leaves_no_states(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Quiet, "say", lambda self, text: said.append(text))
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    kept = train(upper_recipe(), data, base, tmp_path / "kept")
    assert said == [f"forward path: {FUSED}; layer 0 once per example; in float32", "learning rate: 0.01"]
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"checkpoints", "model", "train.json"}
    monkeypatch.setattr(trunk, "_way", lambda *_: (None, ""))
    whole = train(upper_recipe(), data, base, tmp_path / "whole")
    assert (kept.n_computed_tokens, kept.n_tokens) == (whole.n_computed_tokens, whole.n_tokens)
    assert [nll for _, nll in kept.curve] == pytest.approx([nll for _, nll in whole.curve], rel=1e-5)
    assert [c.nll for c in kept.checks] == pytest.approx([c.nll for c in whole.checks], rel=1e-5)
