"""Sixty steps of training take TRL's losses: on both of our paths, with adapters and with all weights.

The benchmark that states speeds (`benchmarks/engine.py`) trains; the random model is small, the examples are its own.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from luthier.encode import Encoder
from luthier.models import find_base, load_tokenizer


@pytest.fixture(scope="module")
def engine() -> ModuleType:
    folder = Path(__file__).parents[2] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))  # it has its data beside it
        spec = importlib.util.spec_from_file_location("benchmark_engine", folder / "engine.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_curves_are_those_of_trl(engine: ModuleType, tiny: Path, tmp_path: Path, method: str) -> None:
    base = find_base(str(tiny))
    setting = engine.Setting(base, Encoder(load_tokenizer(base)), ("trl", "generic", "fused"), 1, True, tmp_path)
    steps = setting.steps(engine.SETS["B"], 60, size=4)
    theirs = engine.trained(setting, method, "trl", steps)
    assert len(theirs) == 60 and theirs[0] - theirs[-1] > 0.01
    for way in ("generic", "fused"):
        ours = engine.trained(setting, method, way, steps)
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < engine.MOST_APART
