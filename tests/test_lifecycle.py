"""The whole life on a tiny model: stages that are skipped when unchanged, and kills that change nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from luthier import finished, kept, lifecycle
from luthier.errors import LuthierError, RunError
from luthier.records import EvalReport, RunRecord
from luthier.store import stage_record
from luthier.target import Run, alone

RECIPE = """
name: tiny
seed: 3
data:
  sources: [{{path: rows.jsonl}}]
  split: {{by: row, valid_fraction: 0.1, test_fraction: 0.3}}
  slices: [topic]
model: {{base: "{base}", adapt: {{method: lora, rank: 4}}}}
train: {{epochs: 3, examples_per_step: 8, learning_rate: 1e-2, save_every_s: 0.0}}
evaluate:
  max_new_tokens: 8
  probe_documents: 24
  suites: []
  metrics: [perplexity, token_f1, {{use: "own:has_number"}}]
release:
  rules:
    - {{metric: perplexity, must: beat_baseline}}
    - {{metric: general_perplexity, must: not_regress, by_relative: 5.0}}
"""
OWN = "def has_number(sample):\n    return any(c.isdigit() for c in sample.answer)\n"


class Said:
    """A reporter that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    from luthier.progress import Quiet

    bar = Quiet.bar

    def about(self, stage: str) -> str:
        return next(line for line in self.lines if line.startswith(f"{stage}:"))


@pytest.fixture
def project(tmp_path: Path, tiny: Path) -> Path:
    """A folder with a recipe, its data and a metric of its own."""
    colours = ["red", "blue", "green", "white", "black", "brown", "grey", "pink"]
    things = ["kettle", "lamp", "spade", "apron", "pot", "knife", "bench", "hose", "bin", "rake", "sieve", "jug"]
    rows = [
        {
            "prompt": f"What colour is the {thing} of size {i}?",
            "completion": f"The {thing} of size {i} is {colours[(len(thing) + i) % 8]}.",
            "topic": "kitchen" if i % 2 else "garden",
        }
        for thing in things
        for i in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny))
    return tmp_path


def run(project: Path, *overrides: str) -> tuple[Run, Said]:
    said = Said()
    done = lifecycle.run(project / "recipe.yaml", overrides=overrides, workspace=project / "runs", report=said)
    return done, said


def test_a_run_leaves_everything_that_it_promises(project: Path) -> None:
    done, _ = run(project, "release.export=[merged]")
    release = done.folder / "release"
    assert {"report.html", "report.json", "MODEL_CARD.md", "model", "merged", "record.json"} <= {
        p.name for p in release.iterdir()
    }
    report = json.loads(done.report.read_text())
    assert {"verdict", "rules", "metrics", "slices", "audit", "run"} <= report.keys()
    wanted = {"value", "baseline", "delta", "low", "high", "p", "n", "min_detectable", "wins", "losses", "ties"}
    assert all(wanted <= m.keys() for m in report["metrics"].values())
    assert {"perplexity", "token_f1", "has_number", "general_perplexity"} == report["metrics"].keys()
    assert done.verdict and report["verdict"] == done.verdict.outcome
    for stage in ("prepare", "train", "evaluate", "release"):
        record = stage_record(done.folder, stage)
        assert record and record.artifacts and record.finished >= record.started
    assert RunRecord.read(release / "record.json").parents.keys() == {"prepare", "train", "evaluate"}


def test_no_file_of_a_run_holds_a_value_that_was_redacted(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From prepare to the report: every stage reads the cleaned text, real requests among it."""
    monkeypatch.setenv("LUTHIER_CACHE", str(cache := tmp_path_factory.mktemp("cache")))
    secret = ["planted.person@secret-mail.example", "+49 151 23456789", "4111111111111111"]
    rows = [json.loads(line) for line in (project / "rows.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["prompt"], row["customer"] = f"{secret[i % 3]} asks: {row['prompt']}", secret[i % 3]
        row["completion"] += f" Mail {secret[0]}."
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "asked.txt").write_text("".join(f"What colour is the lamp of {one}?\n" for one in secret * 20))
    done, _ = run(project, "data.clean=[redact]", "evaluate.requests=asked.txt", "data.slices=[topic, customer]")
    assert done.verdict
    files = [p for folder in (project / "runs", cache) for p in folder.rglob("*") if p.is_file()]
    assert any(p.name == "report.html" for p in files)
    for path in files:
        content = path.read_bytes().lower()
        assert not [one for one in (*secret, "planted.person", "23456789") if one.encode() in content], path


def test_a_cleaner_that_changed_prepares_anew(project: Path) -> None:
    clean = "data.clean=[{use: 'own:loud'}]"
    for mark, said_as in (("!", "prepare"), ("!", "unchanged"), ("?", "cleaners")):
        (project / "own.py").write_text(OWN + f"def loud(text: str) -> str:\n    return text + '{mark}'\n")
        said = Said()
        recipe = project / "recipe.yaml"
        lifecycle.run(recipe, overrides=(clean,), workspace=project / "runs", report=said, until="prepare")
        assert said_as in said.about("prepare")


def test_a_run_that_is_given_stays_where_it_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lifecycle.run(project / "recipe.yaml", workspace=project / "elsewhere", until="prepare")
    monkeypatch.chdir(project)
    assert lifecycle.run(first.folder, until="prepare").folder == first.folder
    monkeypatch.chdir(first.folder)
    assert lifecycle.run(".", until="prepare").folder == first.folder
    assert lifecycle.run(project / "recipe.yaml", until="prepare").folder.parent == Path("runs")


def test_a_learned_prompt_is_judged_released_and_talked_to_beside_the_base(project: Path) -> None:
    done, _ = run(project, "model.adapt={method: prefix, tokens: 4}")
    assert done.verdict
    assert "prefix tuning with 4 virtual tokens" in (done.folder / "release" / "MODEL_CARD.md").read_text()
    assert isinstance(finished.talk(done.folder)("What colour is the lamp of size 3?"), str)


def test_the_adapter_and_the_merged_model_are_loaded_by_transformers_and_peft_alone(project: Path, tiny: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    done, _ = run(project, "release.export=[merged]")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = torch.tensor([[5, 9, 100, 7, 33]])
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, done.folder / "release" / "model").eval()
    merged = AutoModelForCausalLM.from_pretrained(done.folder / "release" / "merged", dtype=torch.float32)
    expected = adapted(ids).logits
    assert (expected - before).abs().max() > 1e-2
    assert (merged(ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    named = json.loads((done.folder / "release" / "model" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == tiny.name, "a path of this machine says nothing elsewhere"


def test_an_unchanged_run_is_not_run_again(project: Path) -> None:
    first, _ = run(project)
    again, said = run(project)
    assert again.folder == first.folder
    assert [line for line in said.lines if line.endswith(": unchanged")] == [
        "prepare: unchanged", "train: unchanged", "evaluate: unchanged", "release: unchanged",
    ]  # fmt: skip


def test_another_rule_trains_nothing_and_asks_no_model(project: Path) -> None:
    first, _ = run(project)
    second, said = run(project, "release.rules.0.by_points=0.1")
    assert second.folder != first.folder
    assert said.about("train") == f"train: taken over from {first.folder.name}"
    assert "base: answers known from an earlier run" in said.lines
    assert "tuned: answers known from an earlier run" in said.lines
    assert said.about("release") == "release: running"


def test_another_learning_rate_trains_again_but_asks_the_base_once(project: Path) -> None:
    run(project)
    _, said = run(project, "train.learning_rate=0.005")
    assert said.about("prepare").startswith("prepare: taken over")
    assert said.about("train") == "train: running"
    assert "base: answers known from an earlier run" in said.lines
    assert not any(line.startswith("tuned: answers known") for line in said.lines)


def test_another_seed_asks_the_base_nothing_new_where_nothing_is_drawn(project: Path) -> None:
    sides = "data.sources=[{path: rows.jsonl, split: train}, {path: held.jsonl, split: test}]"
    rows = (project / "rows.jsonl").read_text().splitlines(keepends=True)
    (project / "rows.jsonl").write_text("".join(rows[:60]))
    (project / "held.jsonl").write_text("".join(rows[60:]))
    run(project, sides, "data.split.by=given")
    _, said = run(project, sides, "data.split.by=given", "seed=4")
    assert "base: answers known from an earlier run" in said.lines


def test_a_changed_plugin_is_seen(project: Path) -> None:
    run(project)
    (project / "own.py").write_text(OWN.replace("any", "all"))
    sys.modules.pop(next(n for n in sys.modules if n.startswith("luthier_plugin_") and n.endswith("_own")))
    _, said = run(project)
    assert said.about("train") == "train: unchanged"
    assert said.about("evaluate") == f"evaluate: plugins changed; the earlier result is kept in {_aside(said)}"


def _aside(said: Said) -> str:
    return said.about("evaluate").rpartition(" ")[2]


def test_changed_data_is_another_run(project: Path) -> None:
    first, _ = run(project)
    with (project / "rows.jsonl").open("a") as rows:
        rows.write('{"prompt": "Is there a new row?", "completion": "There is.", "topic": "garden"}\n')
    second, said = run(project)
    assert second.folder != first.folder and said.about("prepare") == "prepare: running"


def test_a_changed_artifact_is_seen(project: Path) -> None:
    first, _ = run(project)
    adapter = first.folder / "train" / "model" / "adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.unlink()
    adapter.write_bytes(content)
    _, said = run(project)
    assert "has changed since it was written" in said.about("train")


def test_a_stale_release_does_not_stand_for_the_trained_model(project: Path) -> None:
    """The release holds a copy of the model: what decides an evaluation is the one that training left."""
    done, _ = run(project)
    record = stage_record(done.folder, "release")
    assert record
    stale = [a.model_copy(update={"sha256": "0" * 64}) if a.path.startswith("model/") else a for a in record.artifacts]
    record.model_copy(update={"artifacts": tuple(stale)}).write(done.folder / "release" / "record.json")
    _, said = run(project)
    assert said.about("evaluate") == "evaluate: unchanged"


def test_a_second_process_is_refused(project: Path) -> None:
    done, _ = run(project)
    with alone(done.folder), pytest.raises(RunError, match="LU-U003"):
        run(project)


def test_a_half_finished_training_refuses_another_base(project: Path, tmp_path: Path) -> None:
    done, _ = run(project)
    train = done.folder / "train"
    start = json.loads(kept.read(train / "start.json") or b"")
    (train / "record.json").unlink()
    kept.write(train / "start.json", json.dumps(start | {"base": "another"}).encode())
    with pytest.raises(RunError, match="LU-U004 .*was started with another base"):
        run(project)
    kept.write(train / "start.json", json.dumps(start | {"versions": {"torch": "1.0"}}).encode())
    _, said = run(project)
    assert any("not exact any more" in line for line in said.lines)


def test_two_runs_are_compared_on_what_both_answered(project: Path) -> None:
    first, _ = run(project)
    second, _ = run(project, "train.learning_rate=0.001")
    report = finished.compare(first.folder, second.folder)
    assert isinstance(report, EvalReport)
    assert (report.baseline, report.model) == (first.folder.name, second.folder.name)
    own = EvalReport.read(second.folder / "evaluate" / "evaluation.json")
    assert report.metrics["perplexity"].value == pytest.approx(own.metrics["perplexity"].value)


def test_runs_are_compared_though_one_was_asked_a_suite_more(project: Path) -> None:
    first, _ = run(project)
    more = "evaluate.suites=[{name: ambiguity, limit: 30}]", "release.rules.1.metric=ambiguity_accuracy"
    second, _ = run(project, "train.learning_rate=0.001", *more)
    report = finished.compare(first.folder, second.folder)
    assert "perplexity" in report.metrics and "ambiguity_accuracy" not in report.metrics


def test_what_counts_as_seen_in_training_is_looked_at_again(project: Path) -> None:
    first, _ = run(project)
    _, said = run(project, "data.split.near_duplicate_similarity=0.79")
    assert said.about("train") == f"train: taken over from {first.folder.name}"
    assert said.about("evaluate") == "evaluate: running"


def test_a_metric_inside_a_metric_is_seen(project: Path) -> None:
    from luthier.keys import _plugins
    from luthier.recipe import load

    gap = "evaluate.metrics=[{use: group_gap, by: topic, groups: [kitchen, garden], of: {use: 'own:has_number'}}]"
    recipe = load(project / "recipe.yaml", (gap, "release.rules.0.metric=group_gap"))
    before = _plugins(recipe, project)
    (project / "own.py").write_text(OWN.replace("any", "all"))
    assert _plugins(recipe, project) != before


def test_the_base_reads_the_answers_where_fluency_is_measured(project: Path) -> None:
    gap = "{use: group_gap, by: topic, groups: [kitchen, garden], of: fluency}"
    asked = f"evaluate.metrics=[perplexity, {{use: 'own:has_number'}}, fluency, {gap}]", "evaluate.temperature=1.0"
    done, _ = run(project, *asked)
    report = EvalReport.read(done.folder / "evaluate" / "evaluation.json")
    assert "group_gap" in report.metrics and report.metrics["fluency"].n > 0 and report.metrics["fluency"].baseline > 1
    again, _ = run(project, *asked, "train.learning_rate=0.001", "release.rules.0.metric=fluency")
    compared = finished.compare(done.folder, again.folder)
    assert compared.metrics["fluency"].baseline == pytest.approx(report.metrics["fluency"].value)


def test_a_run_can_be_talked_to(project: Path) -> None:
    done, _ = run(project)
    answer = finished.talk(done.folder)
    assert isinstance(answer("What colour is the kettle?"), str)
    assert isinstance(answer("And the lamp?"), str)


def test_a_recipe_is_derived_from_data_and_kept(project: Path, tiny: Path) -> None:
    said = Said()
    overrides = (
        f"model.base={tiny}",
        "train.epochs=1",
        "evaluate.probe_documents=24",
        "evaluate.suites=[]",
        "data.split.test_fraction=0.3",
    )
    done = lifecycle.run(project / "rows.jsonl", overrides=overrides, workspace=project / "runs", report=said)
    assert (done.folder / "recipe.yaml").is_file() and any("derived from" in line for line in said.lines)
    again = lifecycle.run(done.folder, workspace=project / "runs", report=said)
    assert again.folder == done.folder


JUDGE = "{name: preferred, form: pairwise, model: smollm2-135m-instruct}"
ASKED = "{name: preferred, form: pairwise, model: m, url: 'http://127.0.0.1:9/v1', key_env: LUTHIER_NO_SUCH_KEY}"


def test_what_cannot_be_judged_stops_before_training(project: Path) -> None:
    for settings, code in (
        (("data.split.test_fraction=0.0",), "LU-D070"),
        (("release.rules.0.where={topic: nowhere}",), "LU-E007"),
        (("evaluate.suites=[{name: x, path: missing.jsonl, form: pairs}]",), "LU-D071"),
        (("evaluate.requests=missing.txt",), "LU-D019"),
        (("evaluate.cluster_by=topik",), "LU-D102"),
        (("data.split.valid_fraction=0.0",), "LU-D070"),
        (("model.adapters=[nope]",), "LU-M030"),
        ((f"evaluate.judges=[{ASKED}]",), "LU-M006"),
        ((f"evaluate.judges=[{JUDGE}]", "release.rules.0.metric=preferred_corrected"), "LU-E008"),
    ):
        with pytest.raises(LuthierError, match=code):
            run(project, *settings)
        with pytest.raises(LuthierError, match=code):
            lifecycle.check(project / "recipe.yaml", overrides=settings, out=project / "checked")
    assert not list(project.glob("runs/*/train"))


def test_a_runs_own_recipe_that_has_changed_is_not_run(project: Path) -> None:
    done = lifecycle.run(project / "recipe.yaml", workspace=project / "runs", until="prepare")
    recipe = done.folder / "recipe.yaml"
    before = recipe.read_bytes()
    recipe.write_bytes(before.replace(b"seed: 3", b"seed: 7"))
    with pytest.raises(RunError, match=r"LU-U047 .*recipe\.yaml"):
        lifecycle.run(done.folder, until="prepare")
    lifecycle.run(project / "recipe.yaml", workspace=project / "runs", until="prepare")  # which knows it
    assert recipe.read_bytes() == before


def test_a_run_whose_files_are_damaged_is_said(project: Path) -> None:
    done, _ = run(project)
    folder, origin = done.folder, (done.folder / "run.json").read_text()
    for content in ("", "{}", "[]"):
        (folder / "run.json").write_text(content)
        with pytest.raises(RunError, match=r"LU-U008 .*run.json: does not say where"):
            lifecycle.run(folder)
    run(project)
    assert (folder / "run.json").read_text() == origin  # the recipe says it anew
    recipe = (folder / "recipe.yaml").read_bytes()
    for bad in (b"", b"\xff\xfe"):
        (folder / "recipe.yaml").write_bytes(bad)
        with pytest.raises(RunError, match=r"LU-U047 .*recipe.yaml"):
            lifecycle.run(folder, overrides=("seed=3",))
    (folder / "recipe.yaml").write_bytes(recipe)
    (folder / "prepare" / "train.jsonl").unlink()
    with pytest.raises(RunError, match=r"LU-U018 .*train.jsonl is missing"):
        finished.talk(folder)
    (folder / "evaluate" / "evaluation.json").unlink()
    with pytest.raises(RunError, match=r"LU-U018 .*evaluation.json is missing"):
        finished.pilot(folder, None, None, 0.8)
    with pytest.raises(RunError, match=r"LU-U008 .*evaluation.json: cannot be read"):
        EvalReport.read(folder / "evaluate" / "evaluation.json")
    (folder / "train" / "record.json").write_text("x")
    [(_, stages)] = finished.list_runs(project / "runs")
    assert [*stages] == ["prepare", "evaluate", "release"]


def test_a_training_whose_beginning_is_not_known_is_said(project: Path) -> None:
    done = lifecycle.run(project / "recipe.yaml", workspace=project / "runs", until="prepare")
    start = done.folder / "train" / "start.json"
    start.parent.mkdir()
    kept.write(start, b'{"base": "5ac", "seed": 3}')
    for content in (b"", start.read_bytes().replace(b"5ac", b"5ab")):  # a bit of another base is no other base
        start.write_bytes(content)
        with pytest.raises(RunError, match=r"LU-U004 .*start.json: does not say"):
            run(project)
    start.unlink()
    (start.parent / "checkpoints").mkdir()  # of whatever they are
    with pytest.raises(RunError, match=r"LU-U004 .*start.json: does not say"):
        run(project)


def test_how_often_it_is_saved_trains_nothing_anew(project: Path) -> None:
    lifecycle.run(project / "recipe.yaml", workspace=project / "runs", until="train")
    said = Said()
    again = ("train.save_every_s=9.0", "train.recompute_layers=1")
    lifecycle.run(project / "recipe.yaml", overrides=again, workspace=project / "runs", until="train", report=said)
    assert said.about("train").startswith("train: taken over from")


def test_a_project_that_was_moved_is_looked_for_where_it_lies(project: Path, tmp_path: Path) -> None:
    lifecycle.run(project / "recipe.yaml", workspace=project / "runs", until="prepare")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("recipe.yaml", "rows.jsonl", "own.py", "runs"):
        (project / name).rename(moved / name)
    done = lifecycle.run(moved / "recipe.yaml", workspace=moved / "runs", until="prepare")
    assert json.loads((done.folder / "run.json").read_text())["origin"] == str(moved)


def test_virtual_tokens_take_places_of_the_context_window(project: Path) -> None:
    lifecycle.run(project / "recipe.yaml", workspace=project / "runs", until="prepare")
    prompt = "model.adapt={method: prompt, tokens: 2040}"
    with pytest.raises(LuthierError, match="LU-D046 .*over the limit of 8"):
        lifecycle.run(project / "recipe.yaml", overrides=(prompt,), workspace=project / "runs", until="prepare")


# -- kill -9 ----------------------------------------------------------------------------------------------------------


def start(project: Path, workspace: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "luthier", "run", "recipe.yaml", "--workspace", workspace, "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def adapter(project: Path, workspace: str) -> bytes:
    [found] = (project / workspace).glob("tiny-*/train/model/adapter_model.safetensors")
    return found.read_bytes()


def wait_for(project: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not list(project.glob(pattern)):
        time.sleep(0.01)


KILL_AT: Sequence[str] = (
    "killed/tiny-*/prepare/*.jsonl",
    "killed/tiny-*/train/checkpoints/step-00000003",
    "killed/tiny-*/train/checkpoints/.*building",
    "killed/tiny-*/train/checkpoints/step-00000011",
    "killed/tiny-*/train/record.json",
    "killed/.answers/*",
    "killed/tiny-*/release/model",
)


def test_kill_9_at_any_moment_and_the_result_is_the_same_to_the_bit(project: Path) -> None:
    finish(start(project, "straight"))
    rng = random.Random(0)
    for pattern in KILL_AT:
        process = start(project, "killed")
        wait_for(project, pattern, process)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finish(start(project, "killed"))
    assert adapter(project, "killed") == adapter(project, "straight")
    reports = [
        json.loads(next((project / w).glob("tiny-*/release/report.json")).read_text()) for w in ("straight", "killed")
    ]
    assert reports[0]["metrics"] == reports[1]["metrics"] and reports[0]["verdict"] == reports[1]["verdict"]
