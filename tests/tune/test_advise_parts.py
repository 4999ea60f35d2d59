"""What advice rests on: facts of data whose order says nothing, and memory and time as the recipe trains."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import keys, lifecycle, machine
from luthier import recipe as recipes
from luthier.batch import make_batch
from luthier.cost import Rates, on_shapes, seconds_of, step_cost
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.errors import DataError, ModelError, RunError, Stopped
from luthier.models import Base, find_base, load_model, load_tokenizer
from luthier.progress import Quiet
from luthier.records import Advised
from luthier.settings import Auto, Full, Lora, Recipe, Train, fingerprint
from luthier.target import base_of
from luthier.tiny import write_tiny_model
from luthier.train import make_plan, read_data
from luthier.train.data import StepData
from luthier.tune import advise
from luthier.tune.advise import _advised, _cost, _limits, _Machine, _on_shapes, _Plan, _try
from luthier.tune.advise_facts import measure
from luthier.tune.advise_trial import Measured, gradient, most_held, trial_step

TEN = Rates(1e10, 1e10, 1e10)
LABELS = ("money", "parcel", "hello")
SORTED = (
    "data.slices=[]",
    "evaluate.metrics=[choice_accuracy]",
    "release.rules=[{metric: choice_accuracy, must: beat_baseline}]",
    "data.format=classification",
    "data.fields={text: text, label: intent}",
)


@pytest.fixture
def base(tiny: Path) -> Base:
    return find_base(str(tiny))


def facts_of(project: Path, *settings: str) -> dict[str, float]:
    recipe = recipes.load(project / "recipe.yaml", settings)
    run = lifecycle.run(project / "recipe.yaml", overrides=settings, workspace=project / "runs", until="prepare")
    base = base_of(recipe, project)
    tokenizer, prepared = load_tokenizer(base), run.folder / "prepare"
    data = read_data(recipe, prepared, base, tokenizer, share=True)
    return measure(recipe, prepared, data, Decoder(load_model(base)), tokenizer)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# -- facts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replayed", [False, True])
def test_labels_are_told_from_rows_in_any_order_and_beside_replayed_texts(project: Path, replayed: bool) -> None:
    rows = [{"text": f"Case {i}: {label} {i % 7}", "intent": label} for label in LABELS for i in range(80)]
    write(project / "rows.jsonl", rows)
    write(project / "general.jsonl", [{"text": f"This is text number {i}, of no kind."} for i in range(100)])
    both = "data.sources=[{path: rows.jsonl}, {path: general.jsonl, format: text, fields: {text: text}, split: train}]"
    facts = facts_of(project, *SORTED, *([both] if replayed else []))
    assert facts["probe"] > 0.8 and 0 <= facts["zero_shot"] <= 1
    assert facts["n_train"] > 100


def test_one_training_row_gives_no_probe(project: Path) -> None:
    sides = ["train", "validation", "validation", "test", "test"]
    write(
        project / "rows.jsonl",
        [{"text": f"Case {i}", "intent": LABELS[i % 2], "split": s} for i, s in enumerate(sides)],
    )
    facts = facts_of(project, *SORTED, "data.split={by: given}")
    assert facts["n_train"] == 1 and "probe" not in facts and "zero_shot" in facts


def test_the_limit_of_tokens_is_the_datas_and_not_our_own_texts(project: Path) -> None:
    assert facts_of(project, "data.max_tokens=60")["gap_nats"]


def test_no_memory_is_none_and_unknown_memory_is_no_fact(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load(project / "recipe.yaml")
    for free, facts in ((0, {"available_bytes": 0.0}), (None, {})):
        monkeypatch.setattr(advise, "available_bytes", lambda device, free=free: free)
        assert _limits(Auto(method="auto"), recipe) == facts


def test_files_that_were_read_count_as_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("max", "5000\n"), ("current", "4000\n"), ("stat", "anon 1000\ninactive_file 2500\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    assert machine.available_bytes(torch.device("cpu")) == 3500


# -- memory and time --------------------------------------------------------------------------------------


def example(n: int, n_learned: int, name: str) -> Encoded:
    return Encoded(
        [(37 * i + 11 * len(name)) % 400 for i in range(n)], [i >= n - n_learned for i in range(n)], name, ""
    )


@pytest.mark.parametrize(("easy", "hard"), [((300, 20), (301, 280)), ((300, 280), (301, 20)), ((100, 50), (400, 200))])
def test_minutes_are_those_of_the_steps_whatever_they_learn(
    base: Base, easy: tuple[int, int], hard: tuple[int, int]
) -> None:
    decoder, easiest, hardest = on_shapes(base, Lora(rank=4)), [example(*easy, "a")], [[example(*hard, "bb")]]
    costs = [step_cost(decoder, [make_batch(group)], gradient) for group in (*hardest, easiest)]
    plan = _Plan(hardest, easiest, 100, 100, sum(c.n_tokens for c in costs) / 2, 1.0, 0, 1)
    found = _Machine(Measured(0, 1.0, "", True, TEN), 0, 1.0).minutes(*costs, plan, 1)
    assert found == pytest.approx(sum(100 * TEN.seconds(c.work) for c in costs) / 2 / 60, rel=0.5)


def settings_of(project: Path, *settings: str) -> Recipe:
    return recipes.load(project / "recipe.yaml", settings)


@pytest.mark.parametrize("checks", [(40, 16, 3, 2), (24, 16, 3, 10), (100, 8, 3, 5), (17, 16, 4, 20)])
def test_as_many_validations_are_foretold_as_are_made(project: Path, checks: tuple[int, int, int, int]) -> None:
    n, at_once, epochs, per_epoch = checks
    given = f"train.epochs={epochs}", f"train.checks_per_epoch={per_epoch}", f"train.examples_per_step={at_once}"
    recipe = settings_of(project, *given)
    rows = [example(12 + i, 8, str(i)) for i in range(n)]
    data = StepData(rows, rows[:1], epochs, at_once, 2048, 0)
    every = make_plan(recipe, data).validate_every
    made = 1 + sum(step % every == 0 or step == data.n_steps for step in range(1, data.n_steps + 1))
    assert _Plan.of(data, recipe).n_checks == made


def test_what_the_recipe_says_of_memory_is_in_the_figures(base: Base) -> None:
    batches, room = [make_batch([example(12, 2, "a"), example(12, 2, "bb")])], float("inf")  # few logits

    def of(how: Train, room: float = room) -> dict[str, int]:
        decoder = on_shapes(base, Full(method="full"))
        memory = _cost(decoder, batches, how, room).memory
        return {name: getattr(memory, name) for name in ("gradients", "moments", "kept", "peak")} | {
            "again": decoder.recompute
        }

    whole, eight = of(Train()), of(Train(optimizer="adamw_8bit"))
    assert eight["moments"] * 4 == whole["moments"] and eight["gradients"] == whole["gradients"]
    early = of(Train(update_in_backward=True, max_grad_norm=None))
    assert early["gradients"] < whole["gradients"] and early["peak"] < whole["peak"]
    one, all_of_them = of(Train(recompute_layers=1)), of(Train(recompute_layers=99))
    assert whole["kept"] > one["kept"] > all_of_them["kept"] and all_of_them["again"] == 2
    assert of(Train(), room=whole["peak"] - 1) == all_of_them and of(Train(), room=whole["peak"]) == whole
    assert of(Train(recompute_layers=0), room=0) == whole


def test_a_candidate_that_fits_only_with_layers_computed_again_says_so(project: Path, base: Base) -> None:
    recipe = settings_of(project)
    rows = [example(200, 20, str(i)) for i in range(8)]
    plan = _Plan.of(StepData(rows, rows[:1], 1, 8, 2048, 0), recipe)
    slow = _Machine(Measured(0, 1.0, "", True, TEN), 0, 1e6)

    def full(**facts: float) -> Advised:
        [shaped] = [s for s in _on_shapes(base, recipe) if s.name == "full"]
        return _advised(shaped, recipe, plan, slow, facts)

    whole = full()
    assert "computed again" not in whole.rules
    again = full(available_bytes=whole.peak_bytes - 1.0)
    assert "computed again" in again.rules and again.out is None and again.peak_bytes < whole.peak_bytes
    assert again.minutes and whole.minutes and again.minutes > whole.minutes
    assert str(full(available_bytes=0.0).out).endswith("GiB, with every layer computed again")


# -- the trial step ---------------------------------------------------------------------------------------


def test_a_model_that_only_numbers_show_to_run_row_by_row_is_said(
    project: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, rows = settings_of(project), [example(12, 8, "a")]
    plan = _Plan.of(StepData(rows, rows, 1, 8, 2048, 0), recipe)
    answer = Measured(0, 1.0, "row by row: packed and single logits differ by 1.0e+00", False, TEN)
    monkeypatch.setattr(advise, "trial_step", lambda *given: answer)
    with pytest.raises(ModelError, match=r"LU-M022 .*logits differ"):
        _Machine.of(base, Lora(rank=4), recipe, plan, {}, tmp_path)


def test_the_trial_steps_own_mistakes_are_said_as_they_are(base: Base, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"LU-M012 .*64 is more than q_proj has") as caught:
        trial_step(base, Lora(rank=64), [[example(12, 8, "a")]], tmp_path)
    assert "LU-U041" not in str(caught.value)


def test_a_narrow_model_is_tried_with_what_fits_it(tmp_path: Path) -> None:
    narrow = find_base(str(write_tiny_model(tmp_path / "narrow", width=16)))
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "data": {"sources": [{"path": "rows.jsonl"}]},
            "release": {"rules": [{"metric": "rouge1", "must": "beat_baseline"}]},
        }
    )
    shaped = {s.name: s for s in _on_shapes(narrow, recipe)}
    assert shaped["lora-16"].decoder is None and shaped["lora-4"].decoder and shaped["full"].decoder
    rows = [example(12, 8, "a")]
    plan = _Plan.of(StepData(rows, rows, 1, 8, 2048, 0), recipe)
    assert _Machine.of(narrow, shaped["lora-4"].how, recipe, plan, {}, tmp_path).tried.shares


def test_a_gpus_time_is_the_clocks_and_its_peak_what_is_reserved_there(monkeypatch: pytest.MonkeyPatch) -> None:
    order, gpu = list[str](), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("waits"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 123)
    assert seconds_of(lambda: order.append("works"), gpu) > 0 and order == ["waits", "works", "waits"]
    assert most_held(gpu) == 123 and most_held(torch.device("cpu")) > 1000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_trial_step_on_a_gpu(base: Base, tmp_path: Path) -> None:
    found = trial_step(base, Lora(rank=4), [[example(64, 32, "a")]], tmp_path)
    assert 0 < found.peak_bytes < 2**30 and found.seconds > 0 and min(astuple(found.rates)) > 0


# -- the key, and trials ----------------------------------------------------------------------------------


def test_the_key_holds_what_advice_reads_and_no_more(project: Path) -> None:
    prepared = lifecycle.run(project / "recipe.yaml", workspace=project / "runs", until="prepare").folder

    def key(trials: bool, *settings: str) -> str:
        recipe = settings_of(project, f"model.adapt={{method: auto, trials: {str(trials).lower()}}}", *settings)
        return fingerprint(keys.stage_inputs("advise", recipe, project, prepared, "base"))

    before = {trials: key(trials) for trials in (True, False)}
    for setting in ("evaluate.suites=[]", "evaluate.requests=rows.jsonl", "evaluate.probe_documents=3", "name=x"):
        assert key(True, setting) == before[True], setting
    for setting in ("evaluate.max_new_tokens=3", "evaluate.limit=30", "data.split.valid_fraction=0.2"):
        assert key(True, setting) != before[True] and key(False, setting) == before[False], setting
    assert key(False, "train.epochs=2") != before[False]
    (project / "own.py").write_text("def has_number(sample):\n    return True\n")
    assert key(True) != before[True] and key(False) == before[False]


def test_a_candidate_whose_training_stops_is_out_and_other_errors_are_said(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, notes = settings_of(project), list[str]()
    first = [Advised(name=name, settings=(f"train.epochs={i + 1}",)) for i, name in enumerate("abc")]

    def ask(*args: Any, overrides: tuple[str, ...], **given: Any) -> Any:
        if overrides[0] == "train.epochs=1":
            raise Stopped.of("LU-S001", "step 3", "the gradient is not finite")
        raise DataError.of(code, "rows", "is wrong")

    monkeypatch.setattr(advise.trials, "trials", ask)
    code = "LU-D106"
    tried, path = _try(first, recipe, tmp_path, tmp_path, Quiet(), notes)
    assert [(a.name, a.out) for a in tried] == [("b", None), ("a", "its training stopped: the gradient is not finite")]
    assert notes == ["no trials: is wrong"] and not path
    code = "LU-D046"
    with pytest.raises(DataError, match="LU-D046"):
        _try(first, recipe, tmp_path, tmp_path, Quiet(), notes)
