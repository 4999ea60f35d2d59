"""Derived recipes on real data: the task is recognised and its metrics are reported. A tiny random model learns nothing
here; what SmolLM2 learns is in benchmarks/RESULTS.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier import lifecycle
from luthier.records import AuditReport, EvalReport

SETS = {
    "banking77": ("classification", {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "invalid_label"}),
    "sms_spam": ("classification", {"accuracy", "f1"}),
    "dstc9_faq": ("answer", {"exact_match", "token_f1", "rougeL", "bleu", "chrf"}),
    "legal_summarization": ("answer", {"rouge1", "rouge2", "rougeL"}),
    "sgd_dialogues": ("dialogue", {"token_f1", "rougeL", "bleu", "chrf"}),
}


@pytest.mark.parametrize("name", SETS)
def test_a_derived_recipe_runs(name: str, data_dir: Path, tiny: Path, tmp_path: Path) -> None:
    task, metrics = SETS[name]
    settings = (
        f"model.base={tiny}", "data.limit=48", "data.max_rejected_fraction=0.2", "train.epochs=1",
        "train.max_minutes=0.5",
        "evaluate.limit=32", "evaluate.max_new_tokens=4", "evaluate.probe_documents=24", "evaluate.suites=[]",
    )  # fmt: skip
    done = lifecycle.run(data_dir / name, overrides=settings, workspace=tmp_path)
    audit = AuditReport.read(done.folder / "prepare" / "audit.json")
    report = EvalReport.read(done.folder / "evaluate" / "evaluation.json")
    assert audit.task == report.task == task
    assert metrics | {"perplexity", "general_perplexity"} <= report.metrics.keys()
    assert any("evaluate.limit" in note for note in report.notes) and any("data.limit" in n for n in audit.notes)
    page = (done.folder / "release" / "report.html").read_text(encoding="utf-8")
    assert "data.limit" in page and "evaluate.limit" in page
