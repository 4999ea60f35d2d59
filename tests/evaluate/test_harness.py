"""A task of lm-evaluation-harness, put by us, gives what the harness itself measures on the same model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from luthier.conversation import Message, make_conversation
from luthier.decoder import Decoder
from luthier.encode import Encoder
from luthier.errors import DataError
from luthier.evaluate.exam import Exam, Scorer
from luthier.evaluate.suites.harness import from_task
from luthier.models import find_base, load_model, load_tokenizer
from luthier.progress import Quiet
from luthier.settings import SuiteUse
from tests.evaluate.samples import value

TASK = """
task: kitchen
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{folder}/kitchen.jsonl"}}
test_split: test
output_type: {output_type}
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: "{target}"
num_fewshot: {shots}
fewshot_split: test
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
THINGS = ("kettle", "lamp", "box", "cloth", "pan", "cup", "jar", "spoon", "fork", "plate")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval")
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {
            "question": f"Where is the {a} of {i}?",
            "choices": [f"on the {b}", f"in a {a}, with water", "no"],
            "label": i % 3,
        }
        for i, (a, b) in enumerate(zip(THINGS * 2, THINGS[1:] * 3, strict=False))
    ]
    (tmp_path / "kitchen.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def task(folder: Path, *, shots: int = 0, output_type: str = "multiple_choice", target: str = "label") -> SuiteUse:
    text = TASK.format(folder=folder, shots=shots, output_type=output_type, target=target)
    (folder / "kitchen.yaml").write_text(text)
    return SuiteUse.model_validate({"name": "kitchen", "task": "kitchen", "path": "."})


@pytest.mark.parametrize("shots", [0, 2])
def test_parity(folder: Path, tiny: Path, shots: int) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    use = task(folder, shots=shots)
    model, tokenizer = (
        load_model(find_base(str(tiny)), torch.device("cpu"), torch.float32),
        load_tokenizer(find_base(str(tiny))),
    )
    theirs = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=["kitchen"],
        task_manager=TaskManager(include_path=str(folder)),
        bootstrap_iters=0,
        fewshot_random_seed=7,
    )
    suite = from_task(use, folder, 7)
    chat = make_conversation([Message(role="user", content="a"), Message(role="assistant", content="b")], "x:1")
    exam = Exam(suite, Encoder(tokenizer), tests=[chat], max_new_tokens=1, tokens_at_once=512)
    ours = exam.take(Scorer(Decoder(model)), "base", Quiet())
    scores = theirs["results"]["kitchen"]
    assert [value(m, ours) for m in suite.metrics] == pytest.approx(
        [scores["acc,none"], scores["acc_norm,none"]], abs=1e-12
    )
    for sample, logged in zip(ours, sorted(theirs["samples"]["kitchen"], key=lambda s: s["doc_id"]), strict=True):
        assert sample.choices is not None
        assert [-n for n in sample.choices.values()] == pytest.approx([r[0][0] for r in logged["resps"]], rel=1e-6)


def test_a_task_that_is_no_choice_of_one_answer_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="LU-D074 .*no choice of one right answer"):
        from_task(task(folder, output_type="loglikelihood", target="{{question}}"), folder, 0)


def test_a_split_without_right_answers_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="LU-D074 task 'kitchen', row 0: the right answer .* is none of its 3 choices"):
        from_task(task(folder, target="{{ -1 }}"), folder, 0)


def test_a_task_that_is_not_there(folder: Path) -> None:
    use = SuiteUse.model_validate({"name": "x", "task": "no_such_task"})
    with pytest.raises(DataError, match="LU-D074 .*'no_such_task' cannot be had"):
        from_task(use, folder, 0)


def test_without_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(DataError, match=r"LU-D073 .*\n.*constraints.txt .\.\[harness\]"):
        from_task(SuiteUse.model_validate({"name": "x", "task": "arc_easy"}), tmp_path, 0)
