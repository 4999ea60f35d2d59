"""A run that fails at any of its failpoints ends, when it is asked again, in what it would have been.

Deaths are exceptions that nothing catches here; `benchmarks/faults.py` kills processes, tests/test_lifecycle.py some.
"""

from __future__ import annotations

import errno
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from luthier import faults, lifecycle
from luthier.errors import LuthierError
from luthier.faults import ERRORS, reach

RECIPE = """
name: tiny
seed: 3
data: {{sources: [{{path: rows.jsonl}}], split: {{by: row, valid_fraction: 0.1, test_fraction: 0.2}}}}
model: {{base: "{base}", adapt: {{method: lora, rank: 4, dropout: 0.1}}}}
train: {{epochs: 2, examples_per_step: 8, tokens_per_micro_batch: 128, learning_rate: 1e-2, save_every_s: 0.0}}
evaluate: {{max_new_tokens: 4, probe_documents: 4, suites: [], metrics: [perplexity]}}
release: {{rules: [{{metric: perplexity, must: beat_baseline}}]}}
"""
DEATHS = 20


class Died(BaseException):
    """As by `kill -9`: what follows is not run, but for what cleans up on any exception."""


def die(_: int, __: int) -> None:
    raise Died


@pytest.fixture
def project(tmp_path: Path, tiny: Path) -> Path:
    rows = [
        {"prompt": f"What size is lamp {i}?", "completion": f"Lamp {i} is of size {i * 7 % 13}."} for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny))
    return tmp_path


def adapter(project: Path, workspace: str) -> bytes:
    done = lifecycle.run(project / "recipe.yaml", workspace=project / workspace, until="train")
    return (done.folder / "train" / "model" / "adapter_model.safetensors").read_bytes()


def counted(project: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, dict[str, int]]:
    """What a run comes to that nothing disturbs, and how often it reaches each site."""
    with monkeypatch.context() as patched:
        reached = Counter[str]()
        patched.setattr(faults, "_faults", {("none", 0): "none"})
        patched.setattr(faults, "_reached", reached)
        return adapter(project, "straight"), dict(reached)


def fail_at(site: str, n: int, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_faults", {(site, n): action})
    monkeypatch.setattr(faults, "_reached", Counter())
    monkeypatch.setattr(faults.os, "kill", die)


def test_a_run_that_dies_anywhere_goes_on_to_the_same_bits(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, reached = counted(project, monkeypatch)
    assert reached.keys() == {"write", "sync", "rename", "delete", "read", "step"}
    rng, sites = random.Random(0), sorted(reached)
    for i in range(DEATHS):  # one run, which dies again and again, at each site in turn
        with monkeypatch.context() as patched, pytest.raises(Died):
            site = sites[i % len(sites)]
            workspace = f"died-{i}" if i < len(sites) else "dies"
            fail_at(site, rng.randint(1, reached[site] if i < len(sites) else 2), "kill", patched)
            adapter(project, workspace)
        if i < len(sites):
            assert adapter(project, workspace) == exact, (site, i)
    assert adapter(project, "dies") == exact


@pytest.mark.parametrize("action", ["full", "io", "denied"])
def test_a_disk_that_fails_is_said_or_outlived_and_nothing_is_lost(
    project: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    exact, reached = counted(project, monkeypatch)
    rng = random.Random(action)
    for site in ("write", "sync", "rename"):
        with monkeypatch.context() as patched:
            fail_at(site, rng.randint(1, reached[site]), action, patched)
            try:
                assert adapter(project, site) == exact
            except (LuthierError, OSError) as error:  # which the command line says as LU-U019
                assert os.strerror(ERRORS[action]) in str(error), error
        assert adapter(project, site) == exact, site


def test_a_failpoint_is_reached_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_faults", faults._read("write:2:full,sync:1:io"))
    monkeypatch.setattr(faults, "_reached", Counter())
    reach("write")
    with pytest.raises(OSError, match="No space left") as full:
        reach("write")
    assert full.value.errno == errno.ENOSPC
    reach("write")
    with pytest.raises(OSError, match="Input/output"):
        reach("sync")
