"""Several processes learn what one does: gradients, weights and order; and survive what one survives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from together import ADAPT, ALONE, steps
from torch import Tensor

from luthier.launch import Launch, launch
from luthier.train.world import part_of

SCRIPT = Path(__file__).with_name("together.py")


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest relative difference of norms over the tensors."""
    assert a.keys() == b.keys() and a
    return max(float((a[n] - b[n]).norm() / b[n].norm().clamp(min=1e-30)) for n in a)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_learn_what_one_does(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])]))
    launch(Launch(nproc=size), [str(SCRIPT), str(tiny), str(tmp_path)])
    for how in ADAPT:
        alone = steps(tiny, how, ALONE)
        for way in ("ddp", "fsdp"):
            found = torch.load(tmp_path / f"{how}-{way}-{size}.pt", weights_only=True)
            assert gap(found["gradient"], alone["gradient"]) < 1e-6
            assert gap(found["weights"], alone["weights"]) < 1e-6
            assert gap(found["told"], alone["told"]) < 1e-6


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_every_example_is_in_one_part_and_parts_are_of_about_one_size(size: int) -> None:
    lengths = [1, 5, 2, 9, 3, 3, 8, 1, 1, 4]
    parts = [lengths[part_of(lengths, rank, size)] for rank in range(size)]
    assert [length for part in parts for length in part] == lengths
    assert all(abs(sum(part) - sum(lengths) / size) <= max(lengths) for part in parts)
