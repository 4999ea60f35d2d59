"""Each bad input gets its code, its place, and no silent change; the numbers are those of BAD_INPUTS."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import DataError
from luthier.prepare import rows, sources
from luthier.settings import Data

from .lines import GOOD, Prepared, chat, encode_words, run

Lines = Callable[..., Prepared]
ROW = len(GOOD) + 1
"""The line of the first bad row."""


def messages(*turns: tuple[str, Any], **more: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": content, **more} for role, content in turns]})


DEEP = '{"messages": ' + "[" * 70 + "]" * 70 + "}"
BAD_ROWS: list[tuple[str, str, str | bytes]] = [
    ("LU-D001", "", '{"messages": oops}'),
    ("LU-D005", "", chat("Ol\u00e9?", "Ol\u00e9!").encode().replace(b"\\u00e9", b"\xe9")),
    ("LU-D007", ":messages", r'{"messages": [{"role": "user", "content": "\ud83d"}]}'),
    ("LU-D009", ":role", '{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}'),
    ("LU-D010", "", '["a", "b"]'),
    ("LU-D011", "", '{"messages": [], "score": NaN}'),
    ("LU-D011", "", '{"messages": [], "score": 1e999}'),
    ("LU-D012", "", DEEP),
    ("LU-D012", "", DEEP.replace("[" * 70, "[" * 50_000)),
    ("LU-D025", ":messages", '{"mesages": []}'),
    ("LU-D025", ":messages[0].content", '{"messages": [{"role": "user", "text": "hi"}]}'),
    ("LU-D026", ":messages", '{"messages": null}'),
    ("LU-D026", ":messages[1].content", messages(("user", "hi"), ("assistant", None))),
    ("LU-D027", ":messages", '{"messages": "hi"}'),
    ("LU-D027", ":messages[1].content", messages(("user", "hi"), ("assistant", 5))),
    ("LU-D027", ":messages[0].learn", messages(("user", "hi"), ("assistant", "ho"), learn=1)),
    ("LU-D029", ":messages", messages(("user", "hi"))),
    ("LU-D030", ":messages[1].content", messages(("user", "hi"), ("assistant", " \n"))),
    ("LU-D031", ":messages[2]", messages(("user", "hi"), ("assistant", "ho"), ("user", "well?"))),
    ("LU-D032", ":messages[1]", messages(("user", "hi"), ("user", "ho"), ("assistant", "hum"))),
    ("LU-D033", ":messages[0].role", messages(("humane", "hi"), ("assistant", "ho"))),
    ("LU-D034", ":messages[1]", messages(("user", "hi"), ("system", "be kind"), ("assistant", "ho"))),
    (
        "LU-D035",
        ":messages[1]",
        messages(("user", "hi"), ("assistant", None)).replace("null", 'null, "tool_calls": [{}]'),
    ),
    ("LU-D042", ":messages[0].weight", messages(("user", "hi"), ("assistant", "ho"), weight=-1)),
    ("LU-D047", "", messages(("user", "hi"), ("assistant", "ho"), weight=0)),
]


@pytest.mark.parametrize(
    ("code", "field", "line"), BAD_ROWS, ids=[f"{c}{f}-{i}" for i, (c, f, _) in enumerate(BAD_ROWS)]
)
def test_bad_rows_are_quarantined(prepare_lines: Lines, code: str, field: str, line: str | bytes) -> None:
    prepared = prepare_lines(line)
    (reject,) = prepared.rejects()
    assert (reject["code"], reject["where"]) == (code, f"data.jsonl:{ROW}{field}")
    assert reject["raw"].encode("utf-8", "surrogateescape") == (line if isinstance(line, bytes) else line.encode())
    assert prepared.report.counts == {code: 1}
    assert len(prepared.all()) == len(GOOD)


def test_a_latin_1_byte_has_its_offset(prepare_lines: Lines) -> None:
    prepared = prepare_lines(b'{"text": "\xe9"}')
    offset = len("\n".join(GOOD)) + 1 + len('{"text": "')
    assert f"offset {offset} " in prepared.report.findings[0].found


def test_a_cut_off_last_line(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(GOOD) + '\n{"messages": [{"ro')
    prepared = run(tmp_path, sources=[{"path": "data.jsonl"}])
    assert [r["code"] for r in prepared.rejects()] == ["LU-D002"]


def test_a_whole_last_line_needs_no_newline(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(GOOD))
    assert run(tmp_path, sources=[{"path": "data.jsonl"}]).report.counts == {}


def test_a_line_that_is_too_long_is_not_held(prepare_lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 10_000)
    prepared = prepare_lines(chat("long", "x" * 50_000), GOOD[0])
    assert prepared.report.counts["LU-D013"] == 1
    assert prepared.report.findings[0].where == f"data.jsonl:{ROW}"
    assert len(prepared.all()) == len(GOOD) + 1, "the line after it is read"


def test_too_many_tokens(prepare_lines: Lines) -> None:
    prepared = prepare_lines(chat("Well?", "word " * 50), encoder=lambda c: encode_words(c, max_tokens=30))
    assert [r["code"] for r in prepared.rejects()] == ["LU-D046"]


ESCAPE = chat("What is this?", "\x1b[31mred")
WARNED: list[tuple[str, str, list[str]]] = [
    ("LU-D003", f"data.jsonl:{ROW}", ["", GOOD[0].replace("How", "Now how")]),
    ("LU-D008", f"data.jsonl:{ROW}", [ESCAPE]),
    ("LU-D028", f"data.jsonl:{ROW}:messages[0].name", [chat("Hm?", "Hm!").replace('"user"', '"user", "name": "Bo"')]),
    ("LU-D037", f"data.jsonl:{ROW}", [GOOD[2].replace("It is", "It  is")]),
    ("LU-D038", f"data.jsonl:{ROW}", [GOOD[2].replace("It is", "It was")]),
]


@pytest.mark.parametrize(("code", "where", "lines"), WARNED, ids=[w[0] for w in WARNED])
def test_odd_rows_are_kept_and_counted(prepare_lines: Lines, code: str, where: str, lines: list[str]) -> None:
    report = prepare_lines(*lines).report
    assert report.counts == {code: 1}
    assert (report.findings[0].where, report.findings[0].severity) == (where, "warning")
    assert sum(report.sides.values()) == len(GOOD) + 1
    assert "\x1b" not in report.model_dump_json(), "escapes are shown, not sent to the terminal"


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(GOOD), encoding="utf-8-sig")
    report = run(tmp_path, sources=[{"path": "data.jsonl"}]).report
    assert report.counts == {"LU-D004": 1}
    assert sum(report.sides.values()) == len(GOOD)


def test_one_answer_to_everything(prepare_lines: Lines) -> None:
    report = prepare_lines(*[chat(f"Question {i} is about {i * i}?", "No.") for i in range(60)]).report
    assert report.counts == {"LU-D040": 1}


def test_every_row_bad(prepare_lines: Lines) -> None:
    with pytest.raises(DataError) as caught:
        prepare_lines(messages(("user", "hi")), "{", good=[])
    assert [p.code for p in caught.value.problems] == ["LU-D015", "LU-D029", "LU-D001"]


def test_nothing_to_learn_anywhere(prepare_lines: Lines) -> None:
    row = json.loads(GOOD[0])
    row["messages"][1]["learn"] = False
    with pytest.raises(DataError) as caught:
        prepare_lines(json.dumps(row), good=[])
    assert caught.value.problems[0].code == "LU-D048"


def test_above_the_fraction_the_run_stops_and_says_where(prepare_lines: Lines, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare_lines(messages(("user", "hi")), "{", max_rejected_fraction=0.1)
    first, *others = caught.value.problems
    assert first.code == "LU-D110"
    assert "2 of 7 rows" in first.found and "max_rejected_fraction" in first.found
    assert [p.where for p in others] == [f"data.jsonl:{ROW}:messages", f"data.jsonl:{ROW + 1}"]
    assert len((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()) == 2


def test_strict_stops_at_one_row_in_five_hundred_once_all_are_counted(prepare_lines: Lines, tmp_path: Path) -> None:
    bad = ["{", *["5"] * 12]
    with pytest.raises(DataError) as caught:
        prepare_lines(*bad, good=GOOD * 100, bad_rows="strict")
    first, *others = caught.value.problems
    assert first.code == "LU-D110" and "13 of 513 rows" in first.found and "LU-D010 12 times" in first.found
    assert "data.bad_rows is strict" in first.found and "rejects.jsonl" in first.advice
    assert [p.code for p in others] == ["LU-D001", *["LU-D010"] * 9]
    kept = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [one["raw"] for one in kept] == bad
    assert prepare_lines(good=GOOD * 100, bad_rows="strict").report.sides["train"] == 500


def test_a_quarantine_is_told_of(prepare_lines: Lines) -> None:
    report = prepare_lines("{", good=GOOD * 20, max_rejected_fraction=0.01).report
    assert [note for note in report.notes if note.startswith("1 of 101 rows are rejected (0.99%)")]
    assert report.counts["LU-D001"] == 1 and report.sides["train"] == 100


def test_no_bad_row_has_one_spelling() -> None:
    with pytest.raises(ValueError, match="bad_rows: strict"):
        Data(sources=({"path": "x.jsonl"},), max_rejected_fraction=0)  # type: ignore[arg-type]


def utf_16(path: Path) -> None:
    path.write_bytes("\n".join(GOOD).encode("utf-16-le"))


def pipe(path: Path) -> None:
    os.mkfifo(path)


FILES: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("LU-D006", "data.jsonl", utf_16),
    ("LU-D014", "data.jsonl", lambda path: path.write_text("")),
    ("LU-D014", "data.jsonl", lambda path: path.write_text("\n \n")),
    ("LU-D014", "data.csv", lambda path: path.write_text("text,label\n")),
    ("LU-D016", "data.jsonl", lambda path: path.write_text('[{"text": "a"}]')),
    ("LU-D016", "data.jsonl", lambda path: path.write_text("text,label\na,b\n")),
    ("LU-D016", "data.csv", lambda path: path.write_text(GOOD[0])),
    ("LU-D016", "data.jsonl", lambda path: path.write_bytes(gzip.compress(b"{}"))),
    ("LU-D016", "data.xyz", lambda path: path.write_text(GOOD[0])),
    ("LU-D018", "data.parquet", lambda path: path.write_bytes(b"PAR1" + b"\0" * 99)),
    ("LU-D018", "data.parquet", lambda path: path.write_bytes(b"\0\x01\x02" * 99)),
    ("LU-D019", "data.jsonl", lambda path: None),
    ("LU-D019", "data.jsonl", lambda path: path.mkdir()),
    ("LU-D019", "data.jsonl", pipe),
    ("LU-D001", "data.json", lambda path: path.write_text('[{"text": "a"}, {"text": ')),
    ("LU-D017", "data.csv", lambda path: path.write_text('text,label\n"never closed,x\n')),
    ("LU-D009", "data.csv", lambda path: path.write_text("text,text\na,b\n")),
]


@pytest.mark.parametrize(("code", "name", "make"), FILES, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(FILES)])
def test_bad_files_stop_the_run(tmp_path: Path, code: str, name: str, make: Callable[[Path], Any]) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError) as caught:
        run(tmp_path, sources=[{"path": name}])
    assert caught.value.problems[0].code == code
    assert caught.value.problems[0].where.startswith(name)


def test_the_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError) as caught:
        run(tmp_path, sources=[{"path": "absent.jsonl"}, {"path": "empty.jsonl"}, {"path": "/dev/zero"}])
    assert [p.code for p in caught.value.problems] == ["LU-D019", "LU-D014", "LU-D019"]


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.jsonl").write_text(GOOD[0])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources.Path, "open", refuse)
    with pytest.raises(DataError, match=r"LU-D019 data\.jsonl: cannot be read: Permission denied"):
        sources.find_files(recipe_sources("data.jsonl"), tmp_path)


def recipe_sources(*paths: str) -> Any:
    from luthier.settings import Source

    return tuple(Source(path=path) for path in paths)


def test_a_file_changed_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(GOOD))
    seen = 0

    def encode_and_change(conversation: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            path.write_text("\n".join([*GOOD, GOOD[0]]))
        return encode_words(conversation)

    with pytest.raises(DataError, match=r"LU-D021 data\.jsonl"):
        run(tmp_path, encode_and_change, sources=[{"path": "data.jsonl"}])


def test_a_fault_of_the_template_stops_at_once(prepare_lines: Lines) -> None:
    def no_template(conversation: Any) -> Any:
        raise DataError.of("LU-D054", conversation.source, "no chat template")

    with pytest.raises(DataError, match="LU-D054"):
        prepare_lines(encoder=no_template)


def test_a_name_that_cannot_be_shown_is_escaped(tmp_path: Path) -> None:
    name = "a\u202eb\n.jsonl"
    (tmp_path / name).write_text("\n".join(GOOD))
    sources_of = {conversation.source for conversation in run(tmp_path, sources=[{"path": name}]).all()}
    assert sources_of == {f"a\\u202eb\\n.jsonl:{n}" for n in range(1, ROW)}
    (tmp_path / name).write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError) as caught:
        run(tmp_path, sources=[{"path": name}])
    [problem] = caught.value.problems
    assert (problem.where + problem.advice).isprintable()


def test_a_number_of_thousands_of_digits_is_a_fault_of_its_row(tmp_path: Path) -> None:
    rows = [*GOOD, '{"messages": ' + "9" * 5000 + "}"]
    (tmp_path / "data.json").write_text("[" + ",\n".join(rows) + "]")
    prepared = run(tmp_path, sources=[{"path": "data.json"}])
    assert [(r["code"], r["where"]) for r in prepared.rejects()] == [("LU-D001", f"data.json:{ROW}")]
    assert len(prepared.all()) == len(GOOD)


CSV = 'text,label\n"one, two",a\n\nthree,b,c\n"four\nfive",b\n"x"y,a\nOl\u00e9,a\n'


def test_csv_rows(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(CSV.encode().replace("\u00e9".encode(), b"\xe9"))
    fields = {"text": "text", "label": "label"}
    prepared = run(tmp_path, sources=[{"path": "data.csv"}], fields=fields)
    assert [c.messages[0].content for c in prepared.all()] == ["one, two", "four\nfive"]
    assert [(r["code"], r["where"]) for r in prepared.rejects()] == [
        ("LU-D017", "data.csv:4"),
        ("LU-D017", "data.csv:7"),
        ("LU-D005", "data.csv:8"),
    ]
    assert prepared.rejects()[0]["raw"] == "three,b,c\n"
    assert prepared.report.counts["LU-D003"] == 1


def test_leak_across_given_sides(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    prompt = "Could you please tell me the price of the green kettle in your shop"
    train = [*GOOD, chat(f"{prompt}?", "Nine euros."), chat("What is your name?", "Bo.")]
    test = [chat("What is your name?", "Bo."), chat(f"{prompt} today?", "Ten euros."), chat("Where are you?", "Here.")]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(train))
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(test))
    split = {"by": "given", "valid_fraction": 0.0}
    prepared = run(tmp_path, sources=[{"path": "data"}], split=split)
    leaks = [f for f in prepared.report.findings if f.code == "LU-D039"]
    assert [f.where for f in leaks] == ["data/test.jsonl:1", "data/test.jsonl:2"]
    assert any("1 of 3 test rows (33.3%) have an exact copy in train, 1 more" in note for note in prepared.report.notes)

    cleaned = run(tmp_path, sources=[{"path": "data"}], split=split, clean=[{"use": "dedupe"}])
    assert cleaned.report.sides == {"train": 6, "validation": 0, "test": 3}, "the training copy goes"


def test_white_space_before_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n" * (2 * sources.HEAD_BYTES) + "\n".join(GOOD))
    assert len(run(tmp_path, sources=[{"path": "data.jsonl"}]).all()) == len(GOOD)
    (tmp_path / "data.jsonl").write_text(" " * (2 * sources.HEAD_BYTES))
    with pytest.raises(DataError, match="LU-D014"):
        run(tmp_path, sources=[{"path": "data.jsonl"}])


def test_a_column_that_cannot_be_shown_is_escaped_in_advice(tmp_path: Path) -> None:
    rows = [json.dumps({"a\x1b[1m": f"one {n}", "b\u202e": f"two {n}"}) for n in range(9)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match="LU-D101") as caught:
        run(tmp_path, sources=[{"path": "data.jsonl"}])
    assert caught.value.problems[0].advice.isprintable()
