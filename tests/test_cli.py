"""Commands as a person or a script meets them: exit codes, the last line of stdout, no traceback for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier import show

RECIPE = """
name: tiny
data: {{sources: [{{path: rows.jsonl}}], split: {{by: row, valid_fraction: 0.1, test_fraction: 0.3}}}}
model: {{base: "{base}"}}
train: {{epochs: 1, examples_per_step: 8, learning_rate: {rate}}}
evaluate: {{max_new_tokens: 4, probe_documents: 24, suites: [], metrics: [perplexity]}}
release: {{rules: [{{metric: perplexity, must: beat_baseline}}]}}
"""


def luthier(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command, expects its exit code, and never a traceback."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "luthier", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return done


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def project(tmp_path: Path, tiny: Path) -> Path:
    rows = [
        {"prompt": f"What is number {i} in the list?", "completion": f"It is the {w} one."}
        for i in range(12)
        for w in ("red", "blue", "green", "black", "white", "brown", "grey", "pink")[: 1 + i % 8]
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny, rate="1e-2"))
    return tmp_path


def test_a_run_ends_with_one_json_object(project: Path) -> None:
    found = last_line(luthier("run", "recipe.yaml", "--json", cwd=project))
    assert found.keys() == {"run", "verdict", "report"} and found["verdict"] in ("PASS", "FAIL", "UNDERPOWERED")
    report = json.loads((project / str(found["report"])).read_text())
    assert report["verdict"] == found["verdict"]
    listed = json.loads(luthier("runs", "--json", cwd=project).stdout)
    assert [r["run"] for r in listed] == [Path(str(found["run"])).name]
    assert "perplexity" in luthier("compare", "tiny", "tiny", cwd=project).stdout
    assert luthier("chat", "tiny", "--say", "What is number 3?", cwd=project).stdout
    again = luthier("run", str(found["run"]), "--json", cwd=project)
    assert last_line(again) == found and again.stderr.count("unchanged") == 4


def test_every_verb_up_to_its_stage(project: Path) -> None:
    for stage in ("prepare", "train", "evaluate"):
        found = last_line(luthier(stage, "recipe.yaml", "--json", "--quiet", cwd=project))
        assert found["stage"] == stage and (project / str(found["run"]) / stage / "record.json").is_file()
    assert luthier("release", "recipe.yaml", "-q", cwd=project).stdout.split()[0] in ("PASS", "FAIL", "UNDERPOWERED")


def test_require_pass(project: Path, tiny: Path) -> None:
    (project / "recipe.yaml").write_text(RECIPE.format(base=tiny, rate="1e-9"))
    found = last_line(luthier("run", "recipe.yaml", "--require-pass", "--json", cwd=project, code=3))
    assert found["verdict"] != "PASS"


def test_check_trains_nothing_and_shows_the_mask(project: Path) -> None:
    shown = luthier("check", "recipe.yaml", cwd=project).stdout
    assert "tokens are learned" in shown and "steps" in shown
    assert not (project / "runs").exists()
    assert {"audit", "steps"} == last_line(luthier("check", "recipe.yaml", "--json", cwd=project)).keys()
    for where in ("nowhere/data.html", "."):
        wrong = luthier("check", "recipe.yaml", "--page", where, cwd=project, code=2)
        assert "names a file in a folder that is there" in wrong.stderr
    luthier("check", "recipe.yaml", "--no-mask", "--page", "data.html", cwd=project)
    assert "rows read" in (project / "data.html").read_text()


def test_a_mistake_is_said_with_its_place_and_exit_code_2(project: Path) -> None:
    (project / "recipe.yaml").write_text("name: x\ndata: {sources: [{path: rows.jsonl}]}\ntrian: {}\n")
    done = luthier("run", "recipe.yaml", "--json", cwd=project, code=2)
    assert "recipe.yaml: trian: no such setting" in done.stderr and "did you mean 'train'?" in done.stderr
    problems = last_line(done)["problems"]
    assert isinstance(problems, list) and {p["code"] for p in problems} == {"LU-R008", "LU-R009"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "absent.yaml"), "LU-R001 absent.yaml: no such recipe file"),
        (("run", "absent"), "LU-U002"),
        (("chat", "absent"), "LU-U001"),
        (("runs", "--frobnicate"), "LU-U000"),
        (("run", "recipe.yaml", "--set", "train.epochs=many"), "LU-R009 recipe.yaml: train.epochs"),
        (("run", "recipe.yaml", "--set", "model.base=no/such-model"), "LU-M001"),
        (("init", "recipe.yaml"), "LU-U019 recipe.yaml: File exists"),
        (("run", "x" * 300), "LU-U019 xxx"),
        (("prepare", "recipe.yaml", "--workspace", "rows.jsonl"), "LU-U019 rows.jsonl"),
        (("review", "tiny", "--port", "99999999"), "LU-U000"),
        (("trials", "recipe.yaml", "--vary", "train.epochs=1,2", "--held-out", "nan"), "--held-out lies between"),
        (("trials", "recipe.yaml", "--vary", "train.epochs=1,2", "--new-seeds", "-3"), "LU-U000"),
        (("plan", "--differ", "0.2", "--gain", "nan"), "--gain and --limit are numbers"),
        (("check", "recipe.yaml", "--set", "data.split.valid_fraction=0"), "LU-D070"),
    ],
)
def test_other_mistakes(project: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in luthier(*arguments, cwd=project, code=2).stderr


def test_answers_are_shown_with_their_lines_and_nothing_that_a_terminal_obeys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show.chat(lambda _: "1. tea\n2. milk\x1b[2J", ["What?"])
    assert capsys.readouterr().out == "1. tea\n2. milk\\x1b[2J\n"


def test_a_run_that_diverges_is_stopped_by_rule(project: Path) -> None:
    done = luthier("run", "recipe.yaml", "--set", "train.learning_rate=1e38", cwd=project, code=4)
    assert "LU-S001" in done.stderr


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(project: Path, signum: int, code: int) -> None:
    command = [sys.executable, "-m", "luthier", "run", "recipe.yaml", "--set", "train.epochs=2000"]
    process = subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(project.glob("runs/*/train/checkpoints/step-*")):
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "the same command goes on from there" in said and "Traceback" not in said
    assert list(project.glob("runs/*/train/checkpoints/step-*"))


def test_init_writes_what_check_understands(tmp_path: Path) -> None:
    luthier("init", "shop", cwd=tmp_path)
    audit = last_line(luthier("check", "shop/recipe.yaml", "--json", cwd=tmp_path))["audit"]
    assert isinstance(audit, dict) and audit["sides"]["train"] > 400 and not audit["counts"]
    assert "LU-U007" in luthier("init", "shop", cwd=tmp_path, code=2).stderr


def test_doctor_knows_the_machine(tmp_path: Path) -> None:
    facts = last_line(luthier("doctor", "--json", cwd=tmp_path))
    assert str(facts["model smollm2-135m-instruct"]).startswith("ready")
    assert facts["kernels"] == "compiled"
