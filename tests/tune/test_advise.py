"""Advice on a tiny model: rules with sources, a choice that repeats, and `adapt: auto` from recipe to record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier import lifecycle, show
from luthier import recipe as recipes
from luthier.errors import LuthierError, RunError
from luthier.progress import Quiet
from luthier.records import AdviceReport, RunRecord, TrainReport
from luthier.settings import Auto, Lora, Recipe
from luthier.tune.advise import _shortened
from luthier.tune.advise_rules import CANDIDATES, FACTS, RULES, AdviceRule, When, judge, markdown
from luthier.tune.decide import Advisor

AUTO = "model.adapt={method: auto, trials: false}"
NAMES = {c.name for c in CANDIDATES}


class Said:
    """A reporter that remembers what was said."""

    bar = Quiet.bar

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def advised(project: Path, *overrides: str, workspace: str = "runs", **given: Any) -> tuple[AdviceReport, Path]:
    given = {"until": "advise", "advisor": Advisor(), **given}
    run = lifecycle.run(project / "recipe.yaml", overrides=overrides or (AUTO,), workspace=project / workspace, **given)
    return AdviceReport.read(run.folder / "advise" / "advice.json"), run.folder


def test_trials_leave_suites_and_judges_out_with_the_rules_on_them(project: Path) -> None:
    path = project / "recipe.yaml"
    suite = "[{name: knowledge, limit: 4}]"
    judge = "[{name: kind, form: rubric, rubric: How kind is it?, model: x, url: 'http://127.0.0.1:9/v1'}]"
    rules = (
        "[{metric: knowledge_accuracy, must: not_regress, by_points: 0.1}, {metric: kind, must: beat_baseline}, "
        "{metric: token_f1, must: beat_baseline}]"
    )
    asked = f"evaluate.suites={suite}", f"evaluate.judges={judge}", "evaluate.requests=rows.jsonl"
    settings = (*asked, f"release.rules={rules}", "evaluate.metrics=[token_f1]")
    recipe = recipes.load(path, settings)
    short = recipes.load(path, (*settings, *_shortened(recipe)))
    assert [r.metric for r in short.release.rules] == ["token_f1"] and not short.evaluate.suites
    assert not short.evaluate.judges and short.evaluate.requests is None
    all_on_suites = recipe.model_copy(
        update={"release": recipe.release.model_copy(update={"rules": recipe.release.rules[:1]})}
    )
    assert _shortened(all_on_suites) == ("evaluate.requests=null",)


# -- rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_every_rule_has_a_source_known_facts_and_known_candidates(rule: AdviceRule) -> None:
    assert rule.source and rule.why and set(rule.about) <= NAMES
    assert all(w.fact in FACTS and (not isinstance(w.value, str) or w.value in FACTS) for w in rule.when)
    assert "arXiv" in rule.source or "Schulman" in rule.source or "benchmarks/advise.py" in rule.source


def test_every_fact_is_read_by_a_rule_and_names_are_said_once() -> None:
    read = {w.fact for r in RULES for w in r.when} | {w.value for r in RULES for w in r.when}
    assert set(FACTS) <= read and len({r.name for r in RULES}) == len(RULES) and len(NAMES) == len(CANDIDATES)


@pytest.mark.parametrize("rule", [r for r in RULES if r.when], ids=lambda r: r.name)
def test_a_rule_is_met_and_unmet(rule: AdviceRule) -> None:
    who = (rule.about or ("lora-16",))[0]
    met = [_facts(w, True) for w in rule.when]
    facts = {k: v for part in met for k, v in part.items()}
    assert rule.name in judge(who, facts).met
    assert judge(who, facts).out == (rule.points is None)
    for w in rule.when:
        assert rule.name not in judge(who, facts | _facts(w, False)).met
    assert rule.name not in judge(who, {}).met, "what is not known meets no condition"
    if rule.about:
        assert rule.name not in judge(next(iter(NAMES - {*rule.about})), facts).met


def _facts(when: When, met: bool) -> dict[str, float]:
    limit = 5.0 if isinstance(when.value, str) else float(when.value)
    above = (when.op in (">", ">=")) == met
    facts = {when.fact: limit + 1 if above else limit - 1}
    return facts | ({when.value: limit} if isinstance(when.value, str) else {})


def test_the_page_has_the_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "advise.md").read_text(encoding="utf-8")
    assert markdown() in page
    assert all(f"`{name}`" in page and about in page for name, about in FACTS.items())
    assert all(f"`{name}`" in page for name in NAMES)


# -- advice -----------------------------------------------------------------------------------------------


def test_the_rate_that_is_given_is_scaled_and_one_that_is_not_is_left_to_the_training(project: Path) -> None:
    given, _ = advised(project)
    rates = {c.name: [s for s in c.settings if "learning_rate" in s] for c in given.candidates if not c.out}
    assert rates["lora-4"] == ["train.learning_rate=0.01"] and rates["full"] == ["train.learning_rate=0.001"]
    assert rates["ia3"] == ["train.learning_rate=0.06"]
    left, _ = advised(project, AUTO, "train.learning_rate=null", workspace="others")
    assert {c.name for c in left.candidates if not c.out} == set(rates)
    assert not [s for c in left.candidates for s in c.settings if "learning_rate" in s]


def test_advice_is_recorded_followed_and_repeats(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said()
    text = (project / "recipe.yaml").read_text()
    (project / "recipe.yaml").write_text(text.replace("adapt: {method: lora, rank: 4}", "adapt: auto"))
    report, folder = advised(project, until="train", report=said)
    assert {a.name for a in report.candidates} == NAMES and report.candidates[0].name == report.chosen
    out = {a.name: a.out for a in report.candidates if a.out}
    assert set(out) == {"lora-64"} and "does not fit the model: 64 is more than q_proj has" in str(out["lora-64"])
    for a in report.candidates:
        assert a.out or (a.peak_bytes > a.memory["process"] > 0 and a.minutes and a.minutes > 0 and a.n_trainable)
    chosen = recipes.load(project / "recipe.yaml", report.settings)
    assert not (folder / "advise" / "recipe.yaml").exists(), "the recipe's settings are the recipe's alone"
    assert not isinstance(chosen.model.adapt, Auto) and "auto" in (folder / "recipe.yaml").read_text()
    record = RunRecord.read(folder / "advise" / "record.json")
    assert record.summary["chosen"] == report.chosen and "train.jsonl" in record.inputs
    trained = RunRecord.read(folder / "train" / "record.json")
    assert trained.inputs["model"] == chosen.model.model_dump(mode="json")
    assert TrainReport.read(folder / "train" / "train.json").method == chosen.model.adapt.method
    show.advice(report)
    shown = capsys.readouterr().out
    assert report.chosen in shown and "peak GiB" in shown and "trial step" in shown and "bits to learn" in shown

    again = Said()
    same, _ = advised(project, until="train", report=again)
    assert same == report and [line for line in again.lines if line.endswith(": unchanged")] == [
        "prepare: unchanged", "advise: unchanged", "train: unchanged",
    ]  # fmt: skip
    other, _ = advised(project, workspace="elsewhere")
    timed = {"available_bytes", "minutes"}
    assert (other.chosen, other.settings, other.why) == (report.chosen, report.settings, report.why)
    assert {k: v for k, v in other.facts.items() if k not in timed} == {
        k: v for k, v in report.facts.items() if k not in timed
    }
    assert [(a.name, a.points, a.rules) for a in other.candidates] == [
        (a.name, a.points, a.rules) for a in report.candidates
    ]


def test_advice_of_another_run_changes_what_is_trained_and_nothing_else(project: Path) -> None:
    advised(project)
    said, mine = Said(), (AUTO, "name=second", "release.needs=[human_review]")
    given = {"workspace": project / "runs", "advisor": Advisor(), "report": said}
    run = lifecycle.run(project / "recipe.yaml", overrides=mine, **given)
    assert any(line.startswith("advise: taken over from tiny-") for line in said.lines)
    assert run.verdict and "human_preference" in run.verdict.model_dump_json()


def test_labels_are_asked_and_probed_and_short_trials_choose(project: Path) -> None:
    """What the label is stands in the text: a linear classifier finds it."""
    labels = ("money", "parcel", "hello")
    rows = [{"text": f"Case {i}: {labels[i % 3]} {i % 7}", "intent": labels[i % 3]} for i in range(240)]
    (project / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    report, folder = advised(
        project,
        "model.adapt=auto",
        "data.fields={text: text, label: intent}",
        "data.format=classification",
        "data.slices=[]",
        "evaluate.metrics=[choice_accuracy]",
        "evaluate.probe_documents=8",
        "release.rules=[{metric: choice_accuracy, must: beat_baseline}]",
    )
    assert 0 <= report.facts["zero_shot"] <= 1 and report.facts["probe"] > 0.6
    assert report.trials and (folder.parent / report.trials).is_file()
    tried = [a for a in report.candidates if a.gain]
    assert len(tried) == 2 and report.why[0].startswith("short trials of ")
    assert any("luck" in note for note in report.notes)


def test_too_few_rows_for_trials_or_for_training_are_said(project: Path) -> None:
    lines = (project / "rows.jsonl").read_text().splitlines()[:25]
    (project / "rows.jsonl").write_text("\n".join(lines))
    report, _ = advised(project, "model.adapt=auto", "release.rules=[{metric: general_perplexity, must: not_regress}]")
    assert any("training rows: too few" in note for note in report.notes)
    assert any(note.startswith("no trials: ") for note in report.notes) and not report.trials
    assert report.facts["keeps_general"] == 1.0


# -- what people are told ---------------------------------------------------------------------------------


def test_no_time_for_any_technique_is_said_with_figures(project: Path) -> None:
    with pytest.raises(RunError, match="LU-U042") as caught:
        advised(project, "model.adapt={method: auto, trials: false, max_train_minutes: 1e-9}")
    assert "predicted time is more than training may take" in str(caught.value) and caught.value.exit_code == 2


def test_auto_without_an_advisor_is_refused(project: Path) -> None:
    with pytest.raises(LuthierError, match="LU-U040"):
        advised(project, AUTO, until="train", advisor=None)


def test_a_trial_step_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.models import Base
    from luthier.tune.advise_trial import trial_step

    nowhere = Base("nowhere", tmp_path / "nowhere", "nowhere", "")
    with pytest.raises(RunError, match=r"LU-M004 nowhere"):
        trial_step(nowhere, Lora(), [], tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/false")  # ends without an answer
    with pytest.raises(RunError, match=r"LU-U041 .*largest micro-batch failed: exit code 1"):
        trial_step(nowhere, Lora(), [], tmp_path)


def test_auto_is_read_short_and_long_and_written() -> None:
    tree: dict[str, Any] = {
        "name": "x",
        "data": {"sources": [{"path": "rows.jsonl"}]},
        "release": {"rules": [{"metric": "rouge1", "must": "beat_baseline"}]},
    }
    short, long = (Recipe.model_validate({**tree, "model": {"adapt": a}}) for a in ("auto", {"method": "auto"}))
    assert short == long and isinstance(short.model.adapt, Auto) and "method: auto" in recipes.to_yaml(short)
