"""The nested split of recipes as people have them: mixed formats, given sides, real data. Nothing is trained."""

from __future__ import annotations

from pathlib import Path

from luthier import lifecycle
from luthier.conversation import Conversation, read_conversations
from luthier.progress import Quiet
from luthier.records import AuditReport
from luthier.starter import write_starter
from luthier.target import open_target
from luthier.tune.nested import make_nest, question

SIDES = ("train", "validation", "test")


def prepared(run: Path) -> dict[str, list[Conversation]]:
    return {side: list(read_conversations(run / "prepare" / f"{side}.jsonl")) for side in SIDES}


def nested(target: Path, workspace: Path, *overrides: str) -> tuple[Path, Path, Path]:
    """The folders of three preparations: the recipe's own, that to choose by on half of the rows, that to report by."""
    recipe, origin = open_target(target, overrides, Quiet())
    outer = lifecycle.run(target, overrides=overrides, workspace=workspace, until="prepare").folder
    nest = make_nest(recipe, origin, outer, workspace, 0.3)
    asked = [question(nest, "perplexity", "choose", 0.5), question(nest, "perplexity", "report", 1.0)]
    choose, report = (lifecycle.run(q, workspace=workspace, until="prepare").folder for q in asked)
    return outer, choose, report


def test_the_starter_mixes_formats_and_gives_its_sides(tmp_path: Path, tiny: Path) -> None:
    write_starter(tmp_path / "shop")
    outer, choose, report = nested(tmp_path / "shop" / "recipe.yaml", tmp_path / "runs", f"model.base={tiny}")
    seen = [prepared(run) for run in (choose, report)]
    whole = {c.id: c for c in prepared(outer)["train"]}
    for conversation in (c for sides in seen for side in sides.values() for c in side):
        original = whole[conversation.id]
        assert conversation.messages == original.messages and conversation.tags == original.tags
    roles = {side: {m.role for c in seen[1][side] for m in c.messages} for side in SIDES}
    assert "text" in roles["train"] and "text" not in roles["validation"] | roles["test"], (
        "replayed texts are not asked"
    )
    assert AuditReport.read(report / "prepare" / "audit.json").task == "answer"


def test_weights_of_sources_stay(tmp_path: Path, tiny: Path) -> None:
    write_starter(tmp_path / "shop")
    recipe = tmp_path / "shop" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("general.jsonl, format", "general.jsonl, weight: 0.3, format"))
    _, choose, _ = nested(recipe, tmp_path / "runs", f"model.base={tiny}")
    for row in prepared(choose)["train"]:
        assert row.weight == (0.3 if row.is_document else 1.0)


def test_rows_that_were_made_are_made_anew_and_never_asked(tmp_path: Path, tiny: Path) -> None:
    write_starter(tmp_path / "shop")
    noise = "data.augment=[{use: noise, fraction: 1.0, meaning: null}]"
    outer, choose, report = nested(tmp_path / "shop" / "recipe.yaml", tmp_path / "runs", f"model.base={tiny}", noise)
    made = {c.id for c in prepared(outer)["train"] if c.made_by == "noise"}
    for run in (choose, report):
        sides = prepared(run)
        assert not made & {c.id for side in ("validation", "test") for c in sides[side]}
        again = {c.id for c in sides["train"] if c.made_by == "noise"}
        assert again and again <= made, "a row becomes the same, whatever rows are beside it"


def test_a_real_set_of_labels(tmp_path: Path, tiny: Path, data_dir: Path) -> None:
    overrides = (f"model.base={tiny}", "data.limit=1500")
    outer, choose, report = nested(data_dir / "sms_spam", tmp_path / "runs", *overrides)
    whole, chosen, reported = (prepared(run) for run in (outer, choose, report))
    audits = [AuditReport.read(run / "prepare" / "audit.json") for run in (outer, choose, report)]
    assert {(a.task, a.labels) for a in audits} == {("classification", ("ham", "spam"))}
    families = {c.family for c in whole["train"]}
    outside = {c.family for side in ("validation", "test") for c in whole[side]} - families
    parts = [chosen["test"], reported["test"], reported["validation"], reported["train"]]
    found = [{c.family for c in part} for part in parts]
    assert set.union(*found) == families and not set.union(*found) & outside
    assert all(not a & b for i, a in enumerate(found) for b in found[:i])
    assert {c.id for c in chosen["train"]} < {c.id for c in reported["train"]}
    assert 0.48 <= len(chosen["train"]) / len(reported["train"]) <= 0.52
    assert abs(len(parts[0]) / len(whole["train"]) - 0.15) < 0.01 and abs(len(parts[0]) - len(parts[1])) <= 2
