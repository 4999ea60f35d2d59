"""The learning curve: nested parts of the rows, the recipe's own test side left alone, one sentence at the end."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli import app
from luthier.conversation import read_conversations
from luthier.records import LearningCurve
from luthier.tune.curve import SHARES, in_words, learning_curve


def test_sizes_grow_rows_are_nested_and_held_out_rows_take_no_part(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    curve, path = learning_curve("recipe.yaml", workspace=Path("runs"))
    assert LearningCurve.read(path) == curve
    sizes = [point.rows for point in curve.points]
    assert sizes == sorted(set(sizes)) and len(sizes) == len(SHARES)
    assert all(abs(n / sizes[-1] - share) < 0.05 for n, share in zip(sizes, SHARES, strict=True))
    assert all(len(set(point.values)) == 2 for point in curve.points), "two seeds are two trainings"
    assert curve.metric == "perplexity" and curve.low <= curve.high and curve.gain >= 0
    assert curve.points[-1].values < curve.points[0].values, "it learns"
    trained = [_asked(Path("runs") / run.run, "train") for run in curve.runs if run.seed == 3]
    assert all(a < b for a, b in pairwise(trained)), "each part holds the one before"
    outer = next(f for f in Path("runs").iterdir() if f.name.startswith("tiny-"))
    held_out = _asked(outer, "test") | _asked(outer, "validation")
    assert held_out and not any(rows & held_out for rows in trained)
    told = in_words(curve)
    assert f"twice the rows ({2 * curve.rows:,})" in told and "perplexity" in told and "lower" in told
    told_by = CliRunner().invoke(app, ["check", "recipe.yaml", "--learning-curve", "--no-mask", "--page", "data.html"])
    assert told_by.exit_code == 0, told_by.output
    assert "Twice the rows" in told_by.output and "perplexity, each seed" in told_by.output
    assert "rows read" in Path("data.html").read_text()
    as_json = CliRunner().invoke(app, ["check", "recipe.yaml", "--learning-curve", "--json", "--quiet"])
    assert json.loads(as_json.stdout)["learning_curve"] == curve.model_dump(mode="json"), "nothing is trained again"


def _asked(run: Path, side: str) -> set[str]:
    return {c.prompt_text for c in read_conversations(run / "prepare" / f"{side}.jsonl")}
