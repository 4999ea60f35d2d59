"""Checkpoints that cannot lie: a manifest of hashes, written aside and renamed, verified when read.

    checkpoints/step-00000120/   weights.safetensors  optimizer.safetensors  progress.json  manifest.json

The newest whole one is used; a damaged one is said, set aside and the one before it is tried. If there were
checkpoints and none is whole, the run stops: never silently from scratch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.errors import Stopped
from luthier.files import fresh_folder, sha256_of

KEEP_LAST = 2


def save(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    best_step: int,
) -> None:
    """Write step's checkpoint, then remove those that nothing needs: not the last two, not the best."""
    with fresh_folder(folder / _name(step)) as building:
        save_file({n: p.detach().contiguous() for n, p in parameters.items()}, building / "weights.safetensors")
        save_file(_flatten(optimizer, parameters), building / "optimizer.safetensors")
        (building / "progress.json").write_text(json.dumps(progress))
        manifest = {p.name: sha256_of(p) for p in sorted(building.iterdir())}
        (building / "manifest.json").write_text(json.dumps(manifest))
    keep = {*steps_in(folder)[-KEEP_LAST:], best_step}
    for old in set(steps_in(folder)) - keep:
        shutil.rmtree(folder / _name(old))


def resume(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Load the newest whole checkpoint into parameters and optimizer; None if there never was one.

    Raises Stopped LU-S002 if there are checkpoints and every one is damaged.
    """
    steps = steps_in(folder)
    for step in reversed(steps):
        reason = damage(folder / _name(step))
        if reason is None:
            load_weights(folder, step, parameters)
            _unflatten(optimizer, parameters, load_file(folder / _name(step) / "optimizer.safetensors"))
            return json.loads((folder / _name(step) / "progress.json").read_text())  # type: ignore[no-any-return]
        say(f"checkpoint {_name(step)} is damaged ({reason}); it is set aside and the one before it is used")
        aside = folder / f"damaged-{_name(step)}"
        shutil.rmtree(aside, ignore_errors=True)
        (folder / _name(step)).rename(aside)
    if steps or any(folder.glob("damaged-*")):
        raise Stopped.of(
            "LU-S002", str(folder), "every checkpoint is damaged", f"delete {folder} to train from the start"
        )
    return None


def load_weights(folder: Path, step: int, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put the weights of `step` into the parameters. Raises Stopped LU-S002 if they are damaged."""
    if reason := damage(folder / _name(step)):
        raise Stopped.of(
            "LU-S002",
            str(folder / _name(step)),
            f"the best weights are damaged: {reason}",
            "delete the checkpoints and train again",
        )
    weights = load_file(folder / _name(step) / "weights.safetensors")
    assert weights.keys() == parameters.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        for name, expected in manifest.items():
            if sha256_of(checkpoint / name) != expected:
                return f"{name} has changed"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def steps_in(folder: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*"))


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _flatten(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Optimizer state by parameter name: 'exp_avg/layers.0...' -> tensor."""
    return {
        f"{key}/{name}": value.detach().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _unflatten(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], flat: Mapping[str, Tensor]
) -> None:
    for flat_name, value in flat.items():
        key, _, name = flat_name.partition("/")
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)  # `step` too, as fused AdamW wants it
