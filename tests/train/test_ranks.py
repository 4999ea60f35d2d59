"""AdaLoRA: ranks are taken as peft's allocator takes them, to the budget, and what is left is saved as LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import make_recipe, prepared
from safetensors.torch import load_file
from torch import Tensor, nn

from luthier.adapt import adapt, trainable
from luthier.models import Base, find_base, load_model, load_tokenizer
from luthier.saved import save_adapted
from luthier.settings import AdaLora
from luthier.train import train
from luthier.train.loop import Progress
from luthier.train.optim import make_optimizer
from luthier.train.ranks import Orthogonal, allocator, budget

HOW = AdaLora(method="adalora", initial_rank=6, target_rank=4, start_fraction=0.2, final_fraction=0.3)
N_STEPS = 20


@pytest.fixture
def base(tiny: Path) -> Base:
    return find_base(str(tiny))


def adapted(base: Base) -> Any:
    """With E moved from 0, so that A and B have gradients too."""
    model = adapt(load_model(base, torch.device("cpu"), torch.float32), HOW, base, 0)
    for name, p in model.named_parameters():
        if ".lora_E." in name:
            nn.init.normal_(p, generator=torch.Generator().manual_seed(len(name)))
    return model


def of_e(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_E." in n}


def n_kept(model: nn.Module) -> int:
    return sum(int((e != 0).sum()) for e in of_e(model).values())


def put_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in trainable(model).values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_the_budget_falls_from_the_initial_to_the_target_rank() -> None:
    found = [budget(HOW, step, N_STEPS) for step in range(1, N_STEPS + 1)]
    assert found[:4] == [6.0] * 4 and found[13:] == [4.0] * 7
    assert found == sorted(found, reverse=True) and found[8] == pytest.approx(4 + 2 * 0.5**3)
    assert [budget(HOW, 1, 1), budget(HOW, 2, 2)] == [4.0, 4.0], "even a single step ends at the target"


def test_ranks_are_taken_as_by_pefts_allocator(base: Base) -> None:
    """Also given back: peft's masks, step by step, until the last phase, from the same gradients and updates."""
    ours, theirs = adapted(base), adapted(base)
    config = theirs.peft_config["default"]
    config.target_r, config.tinit, config.tfinal, config.total_step = 4, 4, 6, N_STEPS
    theirs.base_model.rankallocator._set_budget_scheduler(theirs.base_model.model)
    optimizers = [make_optimizer(trainable(m), make_recipe(learning_rate=0.1).train) for m in (ours, theirs)]
    optimizers[0].register_step_post_hook(allocator(HOW, trainable(ours), N_STEPS))
    given_back = 0
    for step in range(1, N_STEPS - 6):
        before = of_e(ours)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            put_gradients(model, step)
            optimizer.step()
        theirs.base_model.update_and_allocate(step)
        mine, other = of_e(ours), of_e(theirs)
        assert all(torch.equal(mine[n] != 0, other[n] != 0) for n in mine), step
        assert all(torch.allclose(mine[n], other[n]) for n in mine)
        given_back += sum(int(((before[n] == 0) & (mine[n] != 0)).sum()) for n in mine)
        assert n_kept(ours) == int(budget(HOW, step, N_STEPS) * 14)
    assert n_kept(ours) < 6 * 14 and given_back


def test_the_last_ranks_stay_in_the_last_phase(base: Base) -> None:
    model = adapted(base)
    optimizer = make_optimizer(trainable(model), make_recipe(learning_rate=0.1).train)
    optimizer.register_step_post_hook(allocator(HOW, trainable(model), N_STEPS))
    kept = []
    for step in range(1, N_STEPS + 1):
        put_gradients(model, step)
        optimizer.step()
        kept.append({n: e != 0 for n, e in of_e(model).items()})
    assert n_kept(model) == 4 * 14
    assert all(torch.equal(now[n], kept[13][n]) for now in kept[13:] for n in now)
    assert len({int(mask.sum()) for mask in kept[-1].values()}) > 1, "layers differ"


def test_the_penalty_is_that_of_its_formula(base: Base) -> None:
    model = adapted(base).double()
    model.zero_grad()
    Orthogonal(0.3).before_update(model, Progress())
    matrices = {n: p for n, p in trainable(model).items() if ".lora_E." not in n}
    for name, p in matrices.items():
        rows = p.detach() if ".lora_A." in name else p.detach().T
        off = rows @ rows.T - torch.eye(6).double()
        expected = 0.3 / len(matrices) * 2 * off @ rows / off.norm()
        assert p.grad is not None
        assert torch.allclose(p.grad, expected if ".lora_A." in name else expected.T, rtol=1e-9)
    assert len(matrices) == 28


def test_a_training_ends_at_the_target_and_leaves_a_lora_of_the_ranks_that_are_left(base: Base, tmp_path: Path) -> None:
    how = {"method": "adalora", "initial_rank": 6, "target_rank": 3}
    recipe = make_recipe(adapt=how, keep="last")
    done = train(recipe, prepared(tmp_path / "data"), base, tmp_path / "out")
    assert done.checks[-1].nll < done.checks[0].nll
    config = json.loads((tmp_path / "out" / "model" / "adapter_config.json").read_text())
    weights = load_file(tmp_path / "out" / "model" / "adapter_model.safetensors")
    rows = {name: w for name, w in weights.items() if "lora_A" in name}
    assert sum(int((w != 0).any(dim=1).sum()) for w in rows.values()) == 3 * 14
    assert config["peft_type"] == "LORA"
    assert sorted(config["rank_pattern"].values()) == sorted(map(len, rows.values()))  # 1 of zeros where none is left
    scales = {config["alpha_pattern"][n] / rank for n, rank in config["rank_pattern"].items()}
    assert max(scales) == pytest.approx(min(scales)) == pytest.approx(32 / 6, rel=1e-5)
    assert config["target_modules"] == sorted(config["target_modules"])


def test_an_untrained_adapter_is_a_lora_that_changes_nothing(base: Base, tmp_path: Path) -> None:
    from luthier.saved import load_merged

    model = adapt(load_model(base, torch.device("cpu")), HOW, base, 0)
    save_adapted(model, tmp_path, load_tokenizer(base))
    plain, ids = load_model(base, torch.device("cpu")), torch.arange(3, 20)[None]
    expected = plain(ids).logits
    assert torch.equal(load_merged(plain, tmp_path)(ids).logits, expected)
