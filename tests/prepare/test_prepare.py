"""The whole of `prepare`: counting, formats, detection, sides, dedupe, and the derived recipe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import DataError
from luthier.prepare import derive
from luthier.prepare.detect import detect
from luthier.prepare.formats import render
from luthier.prepare.rows import Fault
from luthier.recipe import validate
from luthier.records import AuditReport
from luthier.settings import Data, Source

from .lines import DATA, GOOD, Prepared, chat, run

Lines = Callable[..., Prepared]
LINES = st.lists(
    st.one_of(
        st.sampled_from([*GOOD, "", "{", "[1]", '{"messages": []}', chat("a b c", ""), chat("who?", "me", kind="x")]),
        st.text(max_size=20),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(lines=LINES, at_most=st.none() | st.integers(1, 5), similarity=st.sampled_from([0.5, 1.0]))
def test_every_row_read_is_accounted_for(lines: list[str], at_most: int | None, similarity: float) -> None:
    with TemporaryDirectory() as folder:
        content = "\n".join([*GOOD, *lines]).encode("utf-8", "replace")
        (Path(folder) / "data.jsonl").write_bytes(content)
        n_lines = sum(bool(line.strip()) for line in content.split(b"\n"))
        clean = [{"use": "dedupe", "similarity": similarity}]
        prepared = run(Path(folder), sources=[{"path": "data.jsonl"}], limit=at_most, clean=clean)
        steps = prepared.report.steps
        assert steps[0].n_in == n_lines
        for before, after in pairwise(steps):
            assert before.n_out == after.n_in
        dropped = sum((Counter(step.dropped) for step in steps), Counter())
        assert n_lines == len(prepared.all()) + dropped.total()
        assert len(prepared.rejects()) == sum(n for code, n in dropped.items() if code.startswith("LU-"))
        assert prepared.report == AuditReport.read(prepared.out / "audit.json")


def detected(rows: list[dict[str, Any]], **data: Any) -> tuple[str, dict[str, str]]:
    found = detect(rows, Data(sources=(Source(path="x"),), **data))
    return found.name, found.fields


def many(**columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{name: value(i) for name, value in columns.items()} for i in range(50)]


def text(i: int) -> str:
    return f"text number {i}"


def test_formats_are_told_by_columns_and_types() -> None:
    assert detected(many(question=text, answer=text)) == (
        "prompt_completion",
        {"prompt": "question", "completion": "answer"},
    )
    assert detected(many(instruction=text, input=text, output=text))[1]["prompt"] == "{instruction}\n\n{input}"
    assert detected(many(text=text, label=lambda i: "ab"[i % 2])) == (
        "classification",
        {"text": "text", "label": "label"},
    )
    assert detected(many(review=text, stars=lambda i: "ab"[i % 2])) == (
        "classification",
        {"text": "review", "label": "stars"},
    )
    assert detected(many(text=text)) == ("text", {"text": "text"})
    assert detected(many(title=text, text=text)) == ("text", {"text": "text"})


def test_an_input_that_is_not_always_there_is_optional() -> None:
    rows = [*many(instruction=text, output=text), {"instruction": "a", "input": "b", "output": "c"}]
    assert detected(rows)[1]["prompt"] == "{instruction}\n\n{input?}"


def test_fields_given_by_a_person() -> None:
    rows = many(table=text, question=text, answer=lambda i: ["a", "b"])
    with pytest.raises(DataError, match=r"""LU-D101.*table \(text\), question \(text\), answer \(list\)""") as caught:
        detected(rows)
    assert 'completion: "{answer}"' in caught.value.problems[0].advice
    fields = {"prompt": "{table}\n\n{question}", "completion": "{answer}"}
    assert detected(rows, fields=fields) == ("prompt_completion", fields)
    with pytest.raises(DataError, match=r"LU-D102 data\.fields\.prompt: no column is called 'tabel'.*\n.*'table'"):
        detected(rows, fields={**fields, "prompt": "{tabel}"})
    with pytest.raises(DataError, match=r"LU-D102 data\.fields\.promt: no such field\n.*'prompt'"):
        detected(rows, fields={"promt": "table", "completion": "{answer}"})
    with pytest.raises(DataError, match="holds a list, not a text"):
        detected(rows, fields={"prompt": "question", "completion": "answer"})


def test_templates() -> None:
    data = {"a": "x", "b": ["y", "z"], "c": None, "d": 1.5}
    assert render(data, "{a}: {b} {c} {d}") == "x: y, z  1.5"
    assert render(data, "{a}\n\n{e?}") == "x"
    with pytest.raises(Fault) as caught:
        render(data, "{a} {e}")
    assert caught.value.code == "LU-D025"


def test_a_csv_and_a_parquet_file_give_what_json_gives(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"question": f"What is {i} and {i}, please?", "answer": f"It is\n{2 * i}.", "kind": "ab"[i % 2]}
        for i in range(20)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    csv = ["question,answer,kind", *(f'"{r["question"]}","{r["answer"]}",{r["kind"]}' for r in rows)]
    (tmp_path / "a.csv").write_text("\n".join(csv))
    (tmp_path / "a.tsv").write_text(
        "\n".join(csv).replace('","', '"\t"').replace('",', '"\t').replace("n,a", "n\ta").replace("r,k", "r\tk")
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    ids = {}
    for kind in ("jsonl", "json", "csv", "tsv", "parquet"):
        prepared = run(tmp_path, sources=[{"path": f"a.{kind}"}])
        assert not prepared.report.counts, kind
        ids[kind] = [(c.id, c.tags) for c in prepared.all()]
    assert all(found == ids["jsonl"] for found in ids.values())


def test_json_arrays_have_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n {"text": "one"},\n {"text": null},\n {"text": "two", "text": "two"}\n]\n')
    prepared = run(tmp_path, sources=[{"path": "a.json"}], fields={"text": "text"})
    assert [(r["code"], r["where"]) for r in prepared.rejects()] == [
        ("LU-D026", "a.json:3:text"),
        ("LU-D009", "a.json:4:text"),
    ]


def test_tags_system_and_learn(prepare_lines: Lines) -> None:
    row = json.loads(chat("One?", "Two.", "Three?", "Four.", kind="x"))
    row["messages"][1]["weight"] = 0
    report = prepare_lines(
        json.dumps(row), system="Be brief.", slices=["kind"], good=[*GOOD, chat("hm?", "hm", kind="y")]
    )
    last = report.all()[-1]
    assert [m.role for m in last.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.learned for m in last.messages] == [False, False, False, False, True]
    assert last.tags == {"kind": "x"}
    assert report.report.task == "dialogue"
    assert report.report.tokens["n_learned"] == 4 * len(GOOD) + 2


def test_a_slice_must_be_a_column(prepare_lines: Lines) -> None:
    with pytest.raises(DataError, match=r"LU-D102 data\.slices: no column is called 'knd'"):
        prepare_lines(chat("hm?", "hm", kind="x"), slices=["knd"])


def test_a_split_column(prepare_lines: Lines) -> None:
    sides = ["train", "train", "dev", "test", "Train"]
    good = [chat(f"How much is {i}?", f"It is {i}.", split=side) for i, side in enumerate(sides)]
    split = {"by": "given"}
    prepared = prepare_lines(chat("hm?", "hm"), chat("ho?", "ho", split="tset"), good=good, split=split)
    assert prepared.report.sides == {"train": 3, "validation": 1, "test": 1}
    assert [(r["code"], r["where"]) for r in prepared.rejects()] == [
        ("LU-D025", "data.jsonl:6:split"),
        ("LU-D105", "data.jsonl:7:split"),
    ]
    assert prepared.all()[0].tags == {}


@pytest.mark.parametrize("column", ["customer", "family"])
def test_split_by_a_column_keeps_its_values_together(prepare_lines: Lines, column: str) -> None:
    good = [chat(f"How much is {i} of {i * 3}?", f"It is {i}.", **{column: f"c{i % 7}"}) for i in range(70)]
    split = {"by": column, "valid_fraction": 0.2, "test_fraction": 0.2}
    prepared = prepare_lines(good=good, split=split)
    seen = [{c.tags[column] for c in prepared.side(side)} for side in ("train", "validation", "test")]
    assert all(seen) and sum(map(len, seen)) == 7
    assert prepared.all()[0].family.startswith(f"{column}=c")


def test_rows_of_which_the_column_says_nothing_are_no_family(prepare_lines: Lines) -> None:
    good = [chat(f"How much is {i} of {i * 3}?", f"It is {i}.", customer=f"c{i % 7}") for i in range(70)]
    nobody = [chat(f"Is it {n}?", "No.", customer=n) for n in ("", None)]
    prepared = prepare_lines(*nobody, good=good, split={"by": "customer"})
    assert [r["code"] for r in prepared.rejects()] == ["LU-D025"] * 2


def test_dedupe_drops_copies_and_near_copies_but_not_other_answers(prepare_lines: Lines) -> None:
    long = "I would like to know where my order of two green kettles from last week has gone"
    lines = [
        chat(f"{long}?", "It is on its way to you."),
        chat(f"{long}?", "It  is on its way to you."),
        chat(f"{long} please?", "It is on its way to you."),
        chat(
            f"{long}?", "Sorry, we have lost it somewhere between Bremen and Hamburg; you will get a new one for free."
        ),
    ]
    report = prepare_lines(*lines, clean=[{"use": "dedupe", "similarity": 0.8}]).report
    (step,) = [step for step in report.steps if step.name == "dedupe"]
    assert step.dropped == {"exact copy": 1, "near-duplicate": 1}
    assert report.counts == {"LU-D038": 1}


def test_a_shared_system_text_makes_no_rows_alike(prepare_lines: Lines) -> None:
    good = [chat(f"{word}?", f"{word}!") for word in ("one", "two", "three", "four", "five")]
    system = "You are the assistant of a shop for gardens and kitchens. Answer briefly, kindly and from what you know."
    report = prepare_lines(good=good, system=system, clean=[{"use": "dedupe", "similarity": 0.5}]).report
    assert report.sides["train"] == 5


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(
        "\n".join(chat(f"How much is {i} of {i * 3}?", f"It is {i}.") for i in range(50))
    )

    def outputs() -> list[bytes]:
        prepared = run(tmp_path, sources=[{"path": "data.jsonl"}], split={}, limit=10)
        return [path.read_bytes() for path in sorted(prepared.out.iterdir())]

    assert outputs() == outputs()


EXPECTED = {
    "banking77": ("classification", {"text": "text", "label": "intent"}),
    "bitext_intents": ("classification", {"text": "text", "label": "intent"}),
    "dolly_sample": ("answer", {"prompt": "{instruction}\n\n{context}", "completion": "response"}),
    "dstc9_faq": ("answer", {"prompt": "question", "completion": "answer"}),
    "gsm8k": ("answer", {"prompt": "question", "completion": "answer"}),
    "legal_summarization": ("answer", {"prompt": "text", "completion": "summary"}),
    "mts_dialog": ("answer", {"prompt": "dialogue", "completion": "note"}),
    "personality_chat": ("answer", {"prompt": "question", "completion": "answer"}),
    "probe_wikitext2": ("text", {"text": "text"}),
    "self_instruct": ("answer", {"prompt": "{instruction}\n\n{input}", "completion": "response"}),
    "sgd_dialogues": ("dialogue", {"messages": "messages"}),
    "sms_spam": ("classification", {"text": "text", "label": "label"}),
    "uci_sentiment": ("classification", {"text": "text", "label": "label"}),
    "youtube_spam": ("classification", {"text": "text", "label": "label"}),
}


def real(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not here; set LUTHIER_DATA")
    return DATA / name


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_real_sets_are_understood(name: str, tmp_path: Path) -> None:
    path = real(name)
    tree = derive(path)
    recipe = validate(tree, "derived", tmp_path)
    task, fields = EXPECTED[name]
    assert recipe.data.fields == fields
    main = {"classification": ["choice_skill", "label_skill"], "text": ["perplexity"]}.get(task, ["token_f1"])
    main = ["rougeL"] if fields.get("completion") in ("summary", "note") else main
    assert [rule.metric for rule in recipe.release.rules] == [*main, "general_perplexity"]
    if name != "probe_wikitext2":  # it has no training side
        prepared = run(tmp_path, **tree["data"] | {"max_rejected_fraction": 0.01})
        assert prepared.report.task == task
        assert all(prepared.report.sides.values())


@pytest.mark.parametrize("name", ["tatqa", "student_responses"])
def test_real_sets_that_need_a_person(name: str, tmp_path: Path) -> None:
    path = real(name)
    with pytest.raises(DataError) as caught:
        derive(path)
    (problem,) = caught.value.problems
    assert problem.code == "LU-D101" and "question (text)" in problem.found
    example = problem.advice.partition("data.fields: ")[2]
    from luthier.strict_yaml import parse_yaml

    prepared = run(tmp_path, sources=[{"path": str(path)}], fields=parse_yaml(example, "advice"))
    assert prepared.report.sides["train"] > 100, "what the advice says works"


def test_the_leak_in_bitext_is_found(tmp_path: Path) -> None:
    report = run(tmp_path, sources=[{"path": str(real("bitext_intents"))}], split={"by": "given"}).report
    assert report.counts["LU-D039"] >= 23


def test_derive_for_one_file(tmp_path: Path) -> None:
    path = tmp_path / "my tickets.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": f"I need {i}", "intent": "ab"[i % 2], "lang": "xyz"[i % 3]}) for i in range(60))
    )
    tree = derive(path)
    recipe = validate(tree, "derived", tmp_path)
    assert recipe.name == "my-tickets"
    assert recipe.data.system == "Classify the text. Answer with one of: a, b."
    assert recipe.data.slices == ("lang",) and recipe.data.split.by == "row"
    assert (recipe.train.epochs, recipe.evaluate.max_new_tokens) == (6, 16)
    assert recipe.evaluate.limit == 10_000, "20,000 label scores a model"


def test_derive_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("{oops\n{\n")
    with pytest.raises(DataError) as caught:
        derive(path)
    assert [p.code for p in caught.value.problems] == ["LU-D015", "LU-D001", "LU-D001"]
