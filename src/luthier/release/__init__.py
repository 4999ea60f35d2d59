"""`release`: the records of a run in; a verdict, a report, a model card and checked exports out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.records import AuditReport, Comparison, EvalReport, KeptAugmentation, TrainReport, Verdict
from luthier.release.card import model_card
from luthier.release.evidence import Evidence
from luthier.release.gate import judge, judge_rule
from luthier.release.provenance import stated_licences
from luthier.release.report import report_html, report_json
from luthier.settings import Recipe, Rule
from luthier.store import artifacts_in

if TYPE_CHECKING:
    from luthier.models import Base


def release(
    recipe: Recipe,
    run: Path,
    out: Path,
    *,
    base: Base,
    evaluation: EvalReport,
    comparisons: Sequence[tuple[Rule, Mapping[str, Comparison]]],
    prompts: Sequence[list[int]],
    environment: Mapping[str, str],
) -> Verdict:
    """Judge the run by its recipe's rules and write everything that leaves the house into `out`.

    `evaluation` is what is reported; `comparisons` holds for each rule the places where it must hold. The files:
    `report.html`, `report.json`, `MODEL_CARD.md`, `verdict.json`, `model/` (the adapter, or the whole model) and what
    `release.export` asks for. Raises Stopped LU-S010 if an export does not behave as the original.
    """
    from luthier.release.export import export  # loads torch, which the pages of a finished run do not need

    verdict = judge([judge_rule(rule, c, place) for rule, places in comparisons for place, c in places.items()])
    verdict.write(out / "verdict.json")
    _link_tree(run / "train" / "model", out / "model")
    parity = export(base, out / "model", out, recipe.release.export, prompts)
    parity_text = {f"parity {k}": "logits identical" if v == 0 else f"logits within {v:.1e}" for k, v in parity.items()}
    evidence = Evidence(
        name=run.name,
        folder=run,
        recipe=recipe,
        audit=AuditReport.read(run / "prepare" / "audit.json"),
        training=TrainReport.read(run / "train" / "train.json"),
        evaluation=evaluation,
        verdict=verdict,
        environment={**environment, **parity_text},
        artifacts={f"release/{a.path}": a.sha256 for a in artifacts_in(out)},
        licences=stated_licences(recipe, Path(json.loads((run / "run.json").read_text())["origin"])),
        base_licence=base.licence,
        kept=KeptAugmentation.read(decided) if (decided := run / "augment" / "kept.json").is_file() else None,
    )
    (out / "report.json").write_text(
        json.dumps(report_json(evidence), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    (out / "report.html").write_text(report_html(evidence), encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(model_card(evidence), encoding="utf-8")
    return verdict


def _link_tree(source: Path, target: Path) -> None:
    """The same files under another name: hard links where the file system has them."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    shutil.copytree(source, target, copy_function=link)
