"""`keep: if_it_helps`: trials decide; what does not help is made and shown, and not learned from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier import lifecycle
from luthier import recipe as recipes
from luthier.errors import RunError
from luthier.records import KeptAugmentation, RunRecord, TrainReport
from luthier.store import stage_record
from luthier.tune.decide import Advisor

OWN = """
def more(conversation, rng):
    first, *rest = conversation.messages
    for i in range(1, 10):
        asked = first.model_copy(update={"content": first.content + " Please" + "!" * i})
        yield conversation.model_copy(update={"messages": (asked, *rest)})
"""
MORE = {"use": "more:more", "fraction": 4.0, "meaning": None, "length": [0.1, 9.0], "same_language": False}
NOISE = {"use": "noise", "fraction": 1.0, "meaning": None, "same_language": False}


@pytest.fixture
def augmented(project: Path) -> Path:
    (project / "more.py").write_text(OWN)
    return project / "recipe.yaml"


def setting(*uses: dict[str, object]) -> str:
    return f"data.augment={json.dumps(uses)}"


def trained_on(run: Path) -> int:
    record = stage_record(run, "train")
    assert record is not None
    return TrainReport.read(run / "train" / "train.json").steps


def test_what_helps_is_kept_and_learned_from(augmented: Path) -> None:
    tentative = setting(MORE | {"keep": "if_it_helps"})
    run = lifecycle.run(augmented, overrides=(tentative,), until="train", advisor=Advisor()).folder
    kept = KeptAugmentation.read(run / "augment" / "kept.json")
    assert kept.kept == ("more:more",) and not kept.left_out
    assert any("on rows that chose nothing: better by +" in why for why in kept.why)
    without = lifecycle.run(augmented, until="train").folder
    assert trained_on(run) > 3 * trained_on(without), "four new rows of each"
    again = lifecycle.run(augmented, overrides=(tentative,), until="train", advisor=None).folder
    assert again == run, "what was decided is not asked again"


def test_too_few_rows_to_try_keep_nothing_and_nobody_learns_from_them(augmented: Path) -> None:
    few = ("data.limit=60", setting(MORE | {"keep": "if_it_helps"}, NOISE))
    run = lifecycle.run(augmented, overrides=few, until="train", advisor=Advisor()).folder
    kept = KeptAugmentation.read(run / "augment" / "kept.json")
    assert kept.left_out == ("more:more",) and "nothing could be tried" in kept.why[0]
    made = (run / "prepare" / "train.jsonl").read_text()
    assert '"made_by":"more:more"' in made and '"made_by":"noise"' in made
    always = ("data.limit=60", setting(MORE | {"keep": "never"}, NOISE))
    assert trained_on(run) == trained_on(lifecycle.run(augmented, overrides=always, until="train").folder)
    record = RunRecord.read(run / "train" / "record.json")
    assert record.inputs["left out"] == ["more:more"]


def test_who_decides_must_be_there(augmented: Path) -> None:
    asked = (setting(MORE | {"keep": "if_it_helps"}),)
    with pytest.raises(RunError, match="LU-U045"):
        lifecycle.run(augmented, overrides=asked, until="train", workspace=augmented.parent / "own")
    recipe = recipes.load(augmented, (setting(MORE),))
    assert recipe.data.augment[0].keep == "always"
