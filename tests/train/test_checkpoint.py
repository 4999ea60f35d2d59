"""Checkpoints: damage is seen, said and survived; what is needed is kept; what is written is what was there."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from luthier import faults
from luthier.errors import Stopped
from luthier.train import checkpoint
from luthier.train.checkpoint import Checkpoints, steps_in


def opened(folder: Path, said: list[str] | None = None) -> tuple[nn.Linear, torch.optim.AdamW, Checkpoints]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    said = [] if said is None else said
    return model, optimizer, Checkpoints(folder, dict(model.named_parameters()), optimizer, said.append)


def made(folder: Path, steps: int, best: int = 0) -> tuple[nn.Linear, torch.optim.AdamW]:
    """A model trained for some steps, each saved; the best one is that of step `best`, or of 0 before it."""
    model, optimizer, checkpoints = opened(folder)
    with checkpoints:
        for step in range(steps):
            best_step = best if best <= step else 0
            checkpoints.save(step, {"step": step, "best_step": best_step}, best_step)
            learn(model, optimizer)
    return model, optimizer


def learn(model: nn.Linear, optimizer: torch.optim.AdamW) -> None:
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def resumed(folder: Path) -> tuple[int | None, list[str]]:
    said: list[str] = []
    _, _, checkpoints = opened(folder, said)
    progress = checkpoints.resume()
    return progress and progress["step"], said


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    made(tmp_path, 6, best=1)
    assert steps_in(tmp_path) == [1, 4, 5]


def test_no_checkpoint_is_a_start_from_scratch(tmp_path: Path) -> None:
    assert resumed(tmp_path)[0] is None


def test_weights_and_optimizer_come_back_to_the_bit(tmp_path: Path) -> None:
    model, optimizer = made(tmp_path, 4)
    with Checkpoints(tmp_path, dict(model.named_parameters()), optimizer, print) as checkpoints:
        checkpoints.save(9, {"step": 9, "best_step": 0}, 0)
    again, other, checkpoints = opened(tmp_path)
    assert checkpoints.resume() == {"step": 9, "best_step": 0}
    for m, o in ((model, optimizer), (again, other)):
        learn(m, o)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_what_is_restored_is_what_was_saved(tmp_path: Path) -> None:
    """Also moments that there were none of then."""
    model, optimizer, checkpoints = opened(tmp_path)
    first = [p.detach().clone() for p in model.parameters()]
    with checkpoints:
        checkpoints.save(0, {"best_step": 0}, 0)
        learn(model, optimizer)
        checkpoints.restore(0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), first, strict=True)) and not optimizer.state


# -- a thread of its own ----------------------------------------------------------------------------------------------


def test_what_is_written_is_what_was_there_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer, checkpoints = opened(tmp_path)
    before = [p.detach().clone() for p in model.parameters()]
    may_write, real = threading.Event(), checkpoint.fresh_folder
    monkeypatch.setattr(checkpoint, "fresh_folder", lambda folder: may_write.wait(60) and real(folder))
    with checkpoints:
        checkpoints.save(0, {"step": 0, "best_step": 0}, 0)
        learn(model, optimizer)
        assert not steps_in(tmp_path)
        may_write.set()
    again, _, other = opened(tmp_path)
    other.resume()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), before, strict=True))


def test_a_snapshot_that_memory_has_no_room_for_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "available_bytes", lambda _: 0)
    _, _, checkpoints = opened(tmp_path)
    with checkpoints:
        checkpoints.save(0, {"step": 0, "best_step": 0}, 0)
        assert steps_in(tmp_path) == [0]


# -- damage -----------------------------------------------------------------------------------------------------------

FILES = ["weights.safetensors", "optimizer.safetensors", "progress.json", "environment.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "half", "empty", "delete"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(tmp_path: Path, file: str, harm: str) -> None:
    made(tmp_path, 4)
    path = tmp_path / "step-00000003" / file
    content = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(
            {"flip": content, "cut": content[:-1], "half": content[: len(content) // 2], "empty": b""}[harm]
        )
    step, said = resumed(tmp_path)
    assert step == 2
    assert len(said) == 1 and "step-00000003: is damaged" in said[0]


def test_every_single_bit_counts(tmp_path: Path) -> None:
    made(tmp_path, 1)
    folder = tmp_path / "step-00000000"
    assert checkpoint.damage(folder) is None
    for file in FILES:
        content = (folder / file).read_bytes()
        for bit in range(0, 8 * len(content), 1 + len(content) // 50):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (folder / file).write_bytes(flipped)
            assert checkpoint.damage(folder), (file, bit)
        (folder / file).write_bytes(content)


def test_a_file_too_many_is_damage(tmp_path: Path) -> None:
    made(tmp_path, 1)
    (tmp_path / "step-00000000" / "more.json").write_text("{}")
    assert checkpoint.damage(tmp_path / "step-00000000") == "more.json is missing, or is not in the manifest"


def test_where_the_best_weights_are_lost_training_finds_them_again(tmp_path: Path) -> None:
    made(tmp_path, 6, best=4)
    (tmp_path / "step-00000004" / "weights.safetensors").write_bytes(b"")
    made_before = tmp_path / "step-00000003"
    made(tmp_path / "again", 4)
    (tmp_path / "again" / "step-00000003").rename(made_before)
    (tmp_path / "again" / "step-00000000").rename(tmp_path / "step-00000000")
    step, said = resumed(tmp_path)
    assert step == 3
    assert len(said) == 2 and "step-00000005: the best weights, of step 4, are lost" in said[1]


def test_never_silently_from_scratch(tmp_path: Path) -> None:
    made(tmp_path, 3)
    for step in steps_in(tmp_path):
        (tmp_path / f"step-{step:08d}" / "weights.safetensors").write_bytes(b"")
    for _ in range(2):  # also the second time, when all are set aside
        with pytest.raises(Stopped, match="LU-S002") as error:
            resumed(tmp_path)
        assert error.value.exit_code == 4


def test_another_number_of_threads_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, 2)
    assert resumed(tmp_path) == (1, [])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    [said] = resumed(tmp_path)[1]
    assert said.endswith("-> 64: what follows is equal but for rounding, and not exact any more")


# -- writing that fails, and ends -------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_is_said_and_the_next_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    _, _, checkpoints = opened(tmp_path, said)
    failing = failing_at(monkeypatch, {1})
    with checkpoints:
        for step in range(3):
            checkpoints.save(step, {"step": step, "best_step": 0}, 0)
    assert steps_in(tmp_path) == [0, 2] and next(failing) == 3
    assert said == ["the checkpoint of step 1 could not be written: No space left on device"]


@pytest.mark.parametrize(
    ("failing", "whole"), [({3, 4, 5}, "that of step 2 is whole"), ({5}, "that of step 4 is whole")]
)
def test_three_in_a_row_or_the_last_one_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: set[int], whole: str
) -> None:
    _, _, checkpoints = opened(tmp_path)
    failing_at(monkeypatch, failing)
    with pytest.raises(Stopped, match=f"LU-S004(?s:.*)step 5 could not be written(?s:.*){whole}"), checkpoints:
        for step in range(6):
            checkpoints.save(step, {"step": step, "best_step": 0}, 0)


def failing_at(monkeypatch: pytest.MonkeyPatch, saves: set[int]) -> object:
    """Numbers of the next saves; these find a full disk."""
    counter, real = iter(range(100)), checkpoint.save_file

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.name.startswith("weights") and next(counter) in saves:
            raise OSError(28, os.strerror(28))
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    return counter


class Killed(BaseException):
    """In the place of a `kill -9`: nothing here catches it, and nothing cleans up."""


A_SAVE = {"write": 3, "sync": 7, "rename": 1, "delete": 1}
"""How often a save comes by; deletions of older ones come to it."""


@pytest.mark.parametrize(
    ("site", "n"), [(site, n) for site, each in A_SAVE.items() for n in range(3 * each + 1, 6 * each + 1)]
)
def test_killed_anywhere_in_a_save_two_are_whole_and_nothing_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, n: int
) -> None:
    """After the first three saves, that is."""
    with monkeypatch.context() as patched:
        patched.setattr(faults, "_faults", {(site, n): "kill"})
        patched.setattr(faults, "_reached", Counter())
        patched.setattr(faults.os, "kill", killed)
        with pytest.raises(Killed):
            made(tmp_path, 6, best=1)
    steps = steps_in(tmp_path)
    assert len(steps) >= 2 and not any(checkpoint.damage(tmp_path / f"step-{s:08d}") for s in steps), steps
    step, said = resumed(tmp_path)
    assert step == steps[-1] and not said and not list(tmp_path.glob(".*"))
    progress = json.loads((tmp_path / f"step-{step:08d}" / "progress.json").read_text())
    assert progress["best_step"] in steps


def killed(_: int, __: int) -> None:
    raise Killed
