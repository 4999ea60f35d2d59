"""Checkpoints: damage is seen, said and survived; what is needed is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from luthier.errors import Stopped
from luthier.train import checkpoint


def made(folder: Path, steps: int, best: int = 0) -> tuple[nn.Linear, torch.optim.AdamW]:
    """A model trained for some steps, each saved."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    parameters = dict(model.named_parameters())
    for step in range(steps):
        checkpoint.save(folder, step, parameters, optimizer, {"step": step}, best)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def loaded(folder: Path) -> tuple[dict[str, object] | None, nn.Linear, list[str]]:
    model = nn.Linear(3, 2)
    said: list[str] = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return checkpoint.resume(folder, dict(model.named_parameters()), optimizer, said.append), model, said


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    made(tmp_path, 6, best=1)
    assert checkpoint.steps_in(tmp_path) == [1, 4, 5]


def test_no_checkpoint_is_a_start_from_scratch(tmp_path: Path) -> None:
    assert loaded(tmp_path)[0] is None


def test_weights_and_optimizer_come_back_to_the_bit(tmp_path: Path) -> None:
    model, optimizer = made(tmp_path, 4)
    parameters = dict(model.named_parameters())
    checkpoint.save(tmp_path, 9, parameters, optimizer, {"step": 9}, 0)
    again = nn.Linear(3, 2)
    other = torch.optim.AdamW(again.parameters(), lr=0.1)
    assert checkpoint.resume(tmp_path, dict(again.named_parameters()), other, print) == {"step": 9}
    for m, o in ((model, optimizer), (again, other)):
        m(torch.ones(1, 3)).sum().backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "delete"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(tmp_path: Path, file: str, harm: str) -> None:
    made(tmp_path, 4)
    path = tmp_path / "step-00000003" / file
    content = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"flip": content, "cut": content[:-1], "empty": b""}[harm])
    progress, _, said = loaded(tmp_path)
    assert progress == {"step": 2}
    assert len(said) == 1 and "step-00000003 is damaged" in said[0]


def test_never_silently_from_scratch(tmp_path: Path) -> None:
    made(tmp_path, 3)
    for step in checkpoint.steps_in(tmp_path):
        (tmp_path / f"step-{step:08d}" / "weights.safetensors").write_bytes(b"")
    for _ in range(2):  # also the second time, when all are set aside
        with pytest.raises(Stopped, match="LU-S002") as error:
            loaded(tmp_path)
        assert error.value.exit_code == 4
