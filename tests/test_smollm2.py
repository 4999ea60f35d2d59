"""The starter's recipe on the real model, cut short: it learns, and what it exports is what it trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier import lifecycle
from luthier.records import TrainReport
from luthier.starter import write_starter


@pytest.mark.smollm2
def test_a_short_run_learns_and_exports_what_it_learned(tmp_path: Path, smollm2: object) -> None:
    write_starter(tmp_path / "shop")
    settings = (
        "train.epochs=3", "data.limit=32", "evaluate.limit=24", "evaluate.max_new_tokens=16",
        "evaluate.probe_documents=20", "release.export=[merged]",
    )  # fmt: skip
    done = lifecycle.run(tmp_path / "shop" / "recipe.yaml", overrides=settings, workspace=tmp_path / "runs")
    trained = TrainReport.read(done.folder / "train" / "train.json")
    assert trained.path.startswith("prefix tree")
    assert trained.n_computed_tokens < 0.6 * trained.n_input_tokens, "the system text is shared"
    assert trained.checks[-1].nll < trained.checks[0].nll - 0.5
    page = (done.folder / "release" / "report.html").read_text(encoding="utf-8")
    assert "parity adapter" in page and "parity merged" in page
    named = json.loads((done.folder / "release" / "model" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
