"""The files: which is which, what is in the way, what is wrong; the command; and that what comes out trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier import lifecycle
from luthier.errors import LuthierError, RecipeError, RunError
from luthier.migrate import convert, migrate
from luthier.migrate.engine import shown
from luthier.records import RunRecord

AXOLOTL = """
base_model: {base}
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
datasets: [{{path: rows.jsonl, type: alpaca}}]
micro_batch_size: 4
gradient_accumulation_steps: 8
num_epochs: 1
learning_rate: 1e-3
sequence_len: 256
val_set_size: 0.1
"""
LLAMAFACTORY = """
model_name_or_path: {base}
finetuning_type: lora
lora_rank: 4
dataset: rows
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
num_train_epochs: 1
cutoff_len: 256
"""
TRL = """
model_name_or_path: {base}
dataset_name: rows.jsonl
use_peft: true
lora_r: 4
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
num_train_epochs: 1
max_length: 256
"""


@pytest.fixture
def project(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with each peer's configuration and rows; the current one."""
    monkeypatch.chdir(tmp_path)
    things = "kettle lamp spade apron pot knife bench hose bin rake sieve jug".split()
    rows = [
        {
            "instruction": f"What is the {thing} of size {i} for?",
            "input": "",
            "output": f"It is thing {len(thing) + i}.",
        }
        for thing in things
        for i in range(5)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "axolotl.yml").write_text(AXOLOTL.format(base=tiny))
    (tmp_path / "llamafactory.yaml").write_text(LLAMAFACTORY.format(base=tiny))
    (tmp_path / "trl.yaml").write_text(TRL.format(base=tiny))
    (tmp_path / "dataset_info.json").write_text('{"rows": {"file_name": "rows.jsonl"}}')
    return tmp_path


FILES = [["axolotl.yml"], ["dataset_info.json", "llamafactory.yaml"], ["trl.yaml"]]


@pytest.mark.parametrize("files", FILES, ids=lambda files: files[-1])
def test_what_comes_out_trains_two_steps(project: Path, files: list[str]) -> None:
    found, out = migrate([Path(file) for file in files])
    assert found.recipe.train.examples_per_step == 32
    run = lifecycle.run(out, workspace=project / "runs", until="train")
    record = RunRecord.read(run.folder / "train" / "record.json")
    assert record.summary["steps"] == 2


@pytest.mark.parametrize(
    "files", [["llamafactory.yaml", "dataset_info.json"], ["dataset_info.json", "llamafactory.yaml"]]
)
def test_the_files_may_stand_in_either_order(project: Path, files: list[str]) -> None:
    found, _ = migrate([Path(file) for file in files])
    assert found.recipe.data.sources[0].path == "rows.jsonl" and found.recipe.data.sources[0].fields


def test_dataset_info_is_looked_for_where_llamafactory_would(project: Path) -> None:
    (project / "data").mkdir()
    (project / "dataset_info.json").rename(project / "data" / "dataset_info.json")
    (project / "rows.jsonl").rename(project / "data" / "rows.jsonl")
    found, _ = migrate([Path("llamafactory.yaml")])
    assert found.recipe.data.sources[0].path == "data/rows.jsonl"
    assert {entry.file for entry in found.entries} == {"llamafactory.yaml", "dataset_info.json"}


def test_a_recipe_that_is_there_stays(project: Path) -> None:
    (project / "recipe.yaml").write_text("mine")
    with pytest.raises(RunError, match="LU-U043 recipe.yaml"):
        migrate([Path("trl.yaml")])
    assert (project / "recipe.yaml").read_text() == "mine"
    migrate([Path("trl.yaml")], force=True)
    assert "mine" not in (project / "recipe.yaml").read_text()


def test_the_configuration_itself_is_never_replaced(project: Path) -> None:
    before = (project / "trl.yaml").read_text()
    with pytest.raises(RunError, match="LU-U043"):
        migrate([Path("trl.yaml")], project / "trl.yaml", force=True)
    assert (project / "trl.yaml").read_text() == before


def test_devices_multiply_the_examples_of_a_step(project: Path) -> None:
    for file in ("axolotl.yml", "trl.yaml"):
        alone, four = (convert(Path(file), None, Path("r.yaml"), devices=n) for n in (None, 4))
        assert 4 * alone.recipe.train.examples_per_step == four.recipe.train.examples_per_step
        assert any("--devices" in note for note in alone.notes) and not any("--devices" in note for note in four.notes)


def test_paths_count_from_the_recipe(project: Path) -> None:
    (project / "elsewhere").mkdir()
    outside = convert(Path("trl.yaml"), None, Path("elsewhere/recipe.yaml"))
    assert outside.recipe.data.sources[0].path == str(project / "rows.jsonl")
    (project / "rows.jsonl").rename(project / "elsewhere" / "rows.jsonl")
    (project / "trl.yaml").rename(project / "elsewhere" / "trl.yaml")
    beside = convert(Path("elsewhere/trl.yaml"), None, Path("elsewhere/recipe.yaml"))
    assert beside.recipe.data.sources[0].path == "rows.jsonl"
    (project / "elsewhere" / "rows.jsonl").unlink()
    assert "not there yet: rows.jsonl" in convert(Path("elsewhere/trl.yaml"), None, Path("recipe.yaml")).notes


AX = "base_model: a/b\ndatasets: [{path: a.json, type: alpaca}]\n"
WRONG = [
    ("x.yml", AX + "learning_rate: fast\n", "LU-R020 x.yml: learning_rate: a number is expected, found fast"),
    ("x.yml", AX + "micro_batch_size: 2.5\n", "LU-R020 x.yml: micro_batch_size: a whole number is expected, found 2.5"),
    ("x.yml", AX + "sequence_len: .inf\n", "LU-R020 x.yml: sequence_len"),
    ("x.yml", AX + "base_model_config: a\nsample_packing: [1]\nload_in_4bit: perhaps\n", "LU-R020 x.yml: load_in_4bit"),
    ("x.yml", "base_model: a/b\ndatasets: 3\n", "LU-R020 x.yml: datasets: a list of mappings is expected, found 3"),
    ("x.yml", "base_model: a/b\nlearning_rate: 1e-4\n", "LU-R021 x.yml: no data are named"),
    ("x.yml", "sequence_len: 9\ndatasets: [{path: a.jsonl, type: alpaca}]\n", "LU-R021 x.yml: base_model"),
    ("x.yml", "base_model: a\ndatasets: [{pth: a.jsonl, type: alpaca}]\n", "LU-R021 x.yml: datasets.0.path"),
    ("x.yml", "base_model: a\ndatasets: [{path: a.jsonl}, 3]\n", "LU-R020 x.yml: datasets.1: a mapping is expected"),
    ("x.yml", AX + "learning_rate: 0\n", "LU-R009 x.yml: learning_rate: as train.learning_rate"),
    ("x.yml", AX + "seed: -1\n", "LU-R009 x.yml: seed: as seed"),
    ("x.yml", AX + "load_in_4bit: true\nadapter: lora\npeft_init_lora_weights: pissa\n", "quantize: init pissa"),
    ("x.yml", "base_model: ${oc.env:HOME}\n" + AX[16:], "LU-R006 x.yml: base_model"),
    ("x.yml", "base_model: !!python/object/apply:os.system [id]\n", "LU-R004 x.yml:1"),
    ("x.yml", "a: &a [1]\nb: &b [*a, *a]\nbase_model: {c: [*b, *b\n", "LU-R003"),
    ("x.yml", "base_model: a\nbase_model: b\n", "LU-R003"),
    ("x.yml", "- base_model\n", "LU-R002 x.yml: a configuration is a mapping of settings, this is a list"),
    ("x.yml", "", "LU-R002 x.yml"),
    ("x.yml", "\tbase_model: a\n", "LU-R003 x.yml:1"),
    ("x.yml", "colour: red\n", "LU-U044 x.yml: whose configuration this is cannot be told"),
    ("x.yml", "learning_rate: 1\nseed: 3\n", "LU-U044"),
    ("x.json", "{\n", "LU-R003 x.json: not JSON: "),
    ("x.json", '{"base_model": "a", "base_model": "b"}', "'base_model': the key stands twice in one object"),
    ("x.json", '{"base_model": NaN}', "LU-R003"),
    ("x.json", '{"base_model": ' + "[" * 90 + "]" * 90 + "}", "LU-R003 x.json: nested deeper than 64"),
    ("x.json", "[" * 100_000, "LU-R003 x.json"),
    ("x.json", '{"a": {"file_name": "b"}}', "LU-U044"),
    ("x.yaml", "model_name_or_path: a/b\ndataset: faq\nstage: sft\n", "in which the data set 'faq' is looked up"),
    ("absent.yml", None, "LU-R001 absent.yml: no such configuration file"),
]


@pytest.mark.parametrize(("file", "text", "said"), WRONG)
def test_what_is_wrong_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(file).write_text(text)
    with pytest.raises(LuthierError) as caught:
        migrate([Path(file)])
    assert said in str(caught.value) and caught.value.exit_code == 2
    assert not Path("recipe.yaml").exists()


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    config = tmp_path / "x.yml"
    config.write_text("base_model: [a]\nlearning_rate: fast\nmicro_batch_size: 2.5\ndatasets: 3\nlora_r: many\n")
    with pytest.raises(RecipeError) as caught:
        migrate([config])
    assert [problem.where.rpartition(" ")[2] for problem in caught.value.problems] == [
        "base_model", "learning_rate", "micro_batch_size", "datasets", "lora_r",
    ]  # fmt: skip


def test_a_name_that_dataset_info_does_not_have(project: Path) -> None:
    (project / "llamafactory.yaml").write_text("model_name_or_path: a/b\ndataset: row\nstage: sft\n")
    with pytest.raises(RecipeError, match="did you mean 'rows'"):
        migrate([Path("llamafactory.yaml"), Path("dataset_info.json")])


def test_dataset_info_goes_with_llamafactory_alone(project: Path) -> None:
    with pytest.raises(RunError, match="goes with LLaMA-Factory's configuration, not TRL's"):
        migrate([Path("trl.yaml"), Path("dataset_info.json")])


def test_keys_that_peers_share_need_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("model_name_or_path: a/b\nseed: 1\n")
    with pytest.raises(RunError, match="LLaMA-Factory and TRL"):
        migrate([Path("x.yaml")])
    with pytest.raises(RecipeError, match="TRL reads them from dataset_name or datasets"):
        migrate([Path("x.yaml")], peer="trl")


@pytest.mark.parametrize(
    ("key", "value", "seen"),
    [
        ("hub_token", "hf_abc", "***"),
        ("swanlab_api_key", "abc", "***"),
        ("swanlab_lark_webhook_url", "https://x", "***"),
        ("eos_token", "<|im_end|>", "<|im_end|>"),
        ("tokens", ["<a>"], "[<a>]"),
        ("mlflow_tracking_uri", "http://me:hush@host:5000", "http://***@host:5000"),
        ("env", {"A": "hush"}, "{...}"),
        ("x", "\x1b[2J\u202e", "\\x1b[2J\\u202e"),
        ("x", None, "null"),
    ],
)
def test_values_are_shown_without_secrets_and_escapes(key: str, value: Any, seen: str) -> None:
    assert shown(key, value) == seen


def command(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "migrate", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_the_command(project: Path) -> None:
    said = command("axolotl.yml", cwd=project).stdout
    assert "carried" in said and "examples_per_step" in said and said.splitlines()[-1] == "recipe.yaml"
    told = json.loads(command("trl.yaml", "--out", "t.yaml", "--json", cwd=project).stdout.splitlines()[-1])
    assert told.keys() == {"recipe", "peer", "keys", "assumed", "notes"} and told["recipe"] == "t.yaml"
    assert {key["key"] for key in told["keys"]} == {line.partition(":")[0] for line in TRL.split()[::2]}
    assert "LU-U043" in command("trl.yaml", cwd=project, code=2).stderr
    assert "LU-U000" in command("trl.yaml", "--peer", "unsloth", cwd=project, code=2).stderr
    assert command("trl.yaml", "--force", "--quiet", cwd=project).stdout == "recipe.yaml\n"
