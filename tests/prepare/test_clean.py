"""Cleaning within `prepare`: every change counted, no text lost, no personal data in anything that is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import DataError, LuthierError, RecipeError
from luthier.prepare.requests import read_requests
from luthier.prepare.symptoms import MOJIBAKE
from luthier.recipe import validate

from .lines import GOOD, Prepared, chat, run

Lines = Callable[..., Prepared]
HTML = [chat(f"<p>How much is item {i}?</p>", f"It is <b>{i}</b> euros &amp; taxes.") for i in range(4)]


def load(clean: list[Any], **data: Any) -> None:
    tree = {"name": "t", "data": {"sources": [{"path": "a.jsonl"}], "clean": clean, **data}}
    validate({**tree, "release": {"rules": [{"metric": "token_f1", "must": "beat_baseline"}]}}, "recipe", Path())


# -- the recipe -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "code", "place", "said"),
    [
        (["strip_htm"], "LU-R010", "data.clean.0", "strip_html"),
        ([{"use": "redact", "kind": ["email"]}], "LU-R012", "data.clean.0", "did you mean 'kinds'"),
        ([{"use": "redact", "kinds": ["emial"]}], "LU-R012", "data.clean.0", "emial"),
        ([{"use": "redact", "digits": 1}], "LU-R012", "data.clean.0", "greater than or equal to 2"),
        ([{"use": "redact", "text": "x"}], "LU-R012", "data.clean.0", "no parameter 'text'"),
        ([{"use": "unicode", "roles": ["asistant"]}], "LU-R009", "data.clean.0.roles.0", "assistant"),
        (
            ["unicode", {"use": "dedupe", "similarty": 1}],
            "LU-R008",
            "data.clean.1.similarty",
            "did you mean 'similarity'",
        ),
        (["dedupe", "unicode"], "LU-R009", "data.clean", "'unicode' cleans texts and stands after dedupe"),
        (["nowhere:clean"], "LU-R011", "data.clean.0", "nowhere"),
    ],
)
def test_a_wrong_step_is_an_error_of_the_recipe(clean: list[Any], code: str, place: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(clean)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == (code, f"recipe: {place}")
    assert said in problem.found + problem.advice


def test_names_alone_and_roles_are_accepted() -> None:
    load(
        ["strip_html", {"use": "unicode", "roles": ["user"]}, "redact", "dedupe", {"use": "dedupe", "similarity": 0.9}]
    )


# -- running ----------------------------------------------------------------------------------------------


def test_what_is_kept_is_the_cleaned_text_and_changes_are_counted(prepare_lines: Lines) -> None:
    prepared = prepare_lines(good=[*GOOD, *HTML], clean=["strip_html", "dedupe"])
    texts = {m.content for c in prepared.all() for m in c.messages}
    assert "How much is item 2?" in texts and "It is 2 euros & taxes." in texts
    (done,) = prepared.report.cleaning
    assert (done.cleaner, done.rows, done.texts) == ("strip_html", 4, 8)
    assert done.samples[0] == ("<p>How much is item 0?</p>", "How much is item 0?")
    assert any(note.startswith("strip_html changed 8 texts of 4 rows") for note in prepared.report.notes)
    steps = {step.name: (step.n_in, step.n_out) for step in prepared.report.steps}
    assert steps["clean"] == (9, 9)


def test_the_id_is_that_of_the_cleaned_text(prepare_lines: Lines) -> None:
    """Encoded rows are kept by it: the id of the raw text would bring back the raw text's tokens."""
    raw = prepare_lines(good=HTML).all()
    cleaned = prepare_lines(good=HTML, clean=["strip_html"]).all()
    plain = prepare_lines(good=[json.dumps({"messages": [m.model_dump() for m in c.messages]}) for c in cleaned]).all()
    assert {c.id for c in cleaned} == {c.id for c in plain} and not {c.id for c in cleaned} & {c.id for c in raw}


def test_cleaners_run_in_the_order_of_the_recipe(prepare_lines: Lines) -> None:
    row = chat("mail bob&#64;x.com", "ok, done")
    first = prepare_lines(row, clean=["strip_html", "redact"])
    assert "<EMAIL_" in first.all()[-1].messages[0].content and "LU-D044" not in first.report.counts
    second = prepare_lines(row, clean=["redact", "strip_html"])
    assert second.all()[-1].messages[0].content == "mail bob@x.com", "which redact could not see"
    assert second.report.counts["LU-D044"] == 1, "but the audit says so"


def test_roles_bind_a_cleaner(prepare_lines: Lines) -> None:
    prepared = prepare_lines(good=HTML, clean=[{"use": "strip_html", "roles": ["assistant"]}])
    assert all("<p>" in c.messages[0].content and "<b>" not in c.messages[1].content for c in prepared.all())


def test_a_text_that_would_be_blank_rejects_its_row(prepare_lines: Lines) -> None:
    prepared = prepare_lines(chat("Hm?", "<br>"), clean=["strip_html"])
    (reject,) = prepared.rejects()
    assert (reject["code"], reject["where"]) == ("LU-D120", "data.jsonl:6:messages[1]")
    assert json.loads(reject["raw"])["messages"][1]["content"] == "<br>", "nothing is lost"
    assert {s.name: s.dropped for s in prepared.report.steps}["clean"] == {"LU-D120": 1}


def test_labels_are_unified_over_all_rows(prepare_lines: Lines) -> None:
    rows = [
        json.dumps({"text": f"text number {i}", "label": label})
        for i, label in enumerate(["Spam", "spam ", "SPAM", "Spam", "ham", "Ham."] * 3)
    ]
    prepared = prepare_lines(good=rows, clean=["white_space", "labels"])
    assert prepared.report.labels == ("Spam", "ham")
    done = prepared.report.cleaning[1]
    assert (done.rows, dict(done.counts)) == (9, {"spam -> Spam": 3, "SPAM -> Spam": 3, "Ham. -> ham": 3})
    back = prepare_lines(good=rows[::-1], clean=["white_space", "labels"])
    assert back.report.labels == ("Spam", "ham")


def test_answers_that_are_no_labels_are_refused_before_anything_is_written(prepare_lines: Lines) -> None:
    rows = [chat(f"q {i}?", f"the answer to number {i}") for i in range(2100)]
    with pytest.raises(DataError, match="LU-D121"):
        prepare_lines(good=rows, clean=["labels"])


def test_ones_own_cleaner(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def loud(text: str, mark: str = '!') -> str:\n    return text.upper() + mark\n"
        "def broken(text: str) -> str:\n    return text if not text else None\n"
        "def raising(text: str) -> str:\n    assert not text, text\n    return text\n"
        "def half(text: str) -> str:\n    return text and '\\ud83d'\n"
    )
    (tmp_path / "d.jsonl").write_text("\n".join(GOOD))
    data: dict[str, Any] = {"sources": [{"path": "d.jsonl"}]}
    assert run(tmp_path, **data, clean=[{"use": "own:loud", "mark": "?"}]).all()[0].answer == "IT IS 0 EUROS.?"
    for name in ("broken", "raising", "half"):
        with pytest.raises(DataError, match="LU-D122") as caught:
            run(tmp_path, **data, clean=[f"own:{name}"])
        assert caught.value.problems[0].where == "d.jsonl:1: data.clean.0"
        assert "item number" not in str(caught.value), "what it raised may quote the row"


def test_without_ftfy_the_run_ends_before_a_row_is_read(prepare_lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.prepare.cleaners import characters

    characters._fix_encoding.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(DataError, match="LU-D108") as caught:
        prepare_lines(clean=["mojibake"])
    assert "encoding" in caught.value.problems[0].advice
    characters._fix_encoding.cache_clear()


def test_requests_are_cleaned_as_users_turns(tmp_path: Path) -> None:
    from luthier.prepare.clean import Cleaning

    (tmp_path / "asked.txt").write_text("<p>call 555-123-4567</p>\n<br>\n")
    tree = {
        "name": "t",
        "data": {"sources": [{"path": "a"}], "clean": [{"use": "strip_html", "roles": ["user"]}, "redact"]},
    }
    recipe = validate({**tree, "release": {"rules": [{"metric": "token_f1", "must": "beat_baseline"}]}}, "r", tmp_path)
    (found,), (note,) = read_requests("asked.txt", tmp_path, Cleaning(recipe, tmp_path))
    assert found.asked_text.startswith("call <PHONE_") and "1 rows" in note


# -- symptoms ---------------------------------------------------------------------------------------------

DAMAGED = ["fÃ¼r", "donâ€™t", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "РџСЂРёРІРµС‚", "ðŸ˜€", "Â£5", "caf\ufffd"]


@pytest.mark.parametrize("text", DAMAGED)
def test_wrong_decoding_is_a_warning_and_mended(prepare_lines: Lines, text: str) -> None:
    report = prepare_lines(chat("What is that?", text + " it is")).report
    assert report.counts == {"LU-D043": 1} and report.findings[0].where == "data.jsonl:6"
    if "\ufffd" not in text:
        assert prepare_lines(chat("What is that?", text + " it is"), clean=["mojibake"]).report.counts == {}


@pytest.mark.parametrize("text", ["été…” «Ünlü»", "CAFÉ” NÃO ÇA", "СССР РОССИЯ Привет", "naïve ñandú 日本語 Ελλάδα Â"])
def test_what_is_decoded_rightly(text: str) -> None:
    assert not MOJIBAKE.search(text)


@settings(max_examples=200)
@given(
    st.text(st.characters(whitelist_categories=["Ll"], max_codepoint=0x24F, min_codepoint=0xC0), min_size=1, max_size=5)
)
def test_what_was_decoded_as_latin_1_is_mostly_seen(text: str) -> None:
    """Of letters of Latin-1; what comes after them begins otherwise and is seen from the third letter."""
    if max(text) <= "\xff":
        assert MOJIBAKE.search(text.encode().decode("latin-1"))


def test_a_character_that_cleaning_removed_is_no_finding(prepare_lines: Lines) -> None:
    row = chat("What is this?", "\x1b[31mred")
    assert prepare_lines(row).report.counts == {"LU-D008": 1}
    assert prepare_lines(row, clean=["unicode"]).report.counts == {}


# -- personal data ----------------------------------------------------------------------------------------

SECRETS = {
    "email": "planted.person@secret-mail.example", "phone": "+49 151 23456789", "card": "4111 1111 1111 1111",
    "iban": "DE89370400440532013000", "ip": "203.0.113.77", "ssn": "460-89-9847",
    "key": "ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8", "credentials": "planted:hunter2secret",
}  # fmt: skip
PARTS = [value[:12] for value in SECRETS.values()] + [
    "planted.person",
    "secret-mail",
    "23456789",
    "hunter2",
    "460899847",
]


def secret_rows(value: str) -> list[str]:
    """The value wherever a row may hold one."""
    mess: list[Any] = [
        {"messages": [{"role": value, "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"messages": [{"role": "x" * 100 + f" {value}", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"messages": [{"role": "user", "content": f"I am {value}"}]},
        {"messages": [{"role": "user", "content": f"I am {value}", value: 1}, {"role": "assistant", "content": "ho"}]},
        {
            "messages": [
                {"role": "user", "content": f"I am {value}", "weight": value},
                {"role": "assistant", "content": "ho"},
            ]
        },
        {"messages": [{"role": "user", "content": f"is {value} me?"}, {"role": "assistant", "content": "<br>"}]},
        {"mesages": value},
        {value: 1},
        {"messages": value},
    ]
    broken = [
        '{"messages": "' + value,
        f'{{"{value}": 1, "{value}": 2}}',
        f'["{value}"]',
        f'{{"a": NaN, "b": "{value}"}}',
    ]
    escaped = json.dumps({"messages": value}).replace("@", "\\u0040").replace(".", "\\u002e")
    return [json.dumps(row) for row in mess] + broken + [escaped]


def good_secret_row(i: int, value: str) -> str:
    within = f"https://{value}@host.example/" if ":" in value else value
    return chat(
        f"<p>Question {i}: who is {within}?</p>", f"Answer {i}: that is {within}, written {within}.",
        customer=within, number=4111111111111111, nested={"list": [within, {within: 1}]}, group=within * (i % 2),
    )  # fmt: skip


def everything_under(folder: Path) -> str:
    return "\n".join(path.read_text("utf-8", "surrogateescape") for path in sorted(folder.rglob("*")) if path.is_file())


def shows(text: str) -> list[str]:
    decoded = text + text.encode("utf-8", "surrogateescape").decode("unicode_escape", "ignore")
    return [part for part in [*SECRETS.values(), *PARTS, "4111111111111111"] if part in decoded]


@pytest.mark.parametrize(
    "settings_", [{"clean": ["strip_html", "unicode", "boilerplate", "redact", "dedupe"]}, {"clean": ["redact"]}]
)
def test_no_file_holds_a_value(tmp_path: Path, settings_: dict[str, Any]) -> None:
    values = list(SECRETS.values())
    secret = [good_secret_row(i, values[i % len(values)]) for i in range(24)]
    bad = [row for value in values for row in secret_rows(f"https://{value}@h.example/" if ":" in value else value)]
    split = {"valid_fraction": 0.2, "test_fraction": 0.2}
    for by in ("row", "customer"):
        data = [*secret] if by == "customer" else [*GOOD * 3, *secret, *bad, *HTML]
        (tmp_path / "data.jsonl").write_text("\n".join(data), encoding="utf-8")
        prepared = run(
            tmp_path, sources=[{"path": "data.jsonl"}], split={**split, "by": by}, slices=["customer"], **settings_
        )
        assert shows(everything_under(prepared.out)) == [], by
        assert sum(prepared.report.cleaning[-1].counts.values()) >= 24 * 4
    assert prepared.report.counts.get("LU-D044", 0) == 0


def test_no_error_shows_a_value(tmp_path: Path) -> None:
    n_raised = 0
    for value in SECRETS.values():
        value = f"https://{value}@h.example/" if ":" in value else value
        for row in secret_rows(value):
            for lines, more in (([*GOOD, row], {"bad_rows": "strict"}), ([row], {"slices": ["customr"]})):
                (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
                try:
                    run(tmp_path, sources=[{"path": "data.jsonl"}], clean=["strip_html", "redact"], **more)
                except LuthierError as error:
                    n_raised += 1
                    assert shows(str(error)) == []
    assert n_raised > 150


def test_one_value_has_one_placeholder_in_all_rows_and_tags(prepare_lines: Lines) -> None:
    rows = [good_secret_row(i, SECRETS["email"]) for i in range(4)]
    prepared = prepare_lines(good=rows, clean=["redact"])
    text = everything_under(prepared.out)
    assert len({part[:13] for part in text.split("<EMAIL_")[1:] if part[4] == ">"}) >= 1
    assert len({part[:4] for part in text.split("<EMAIL_")[1:] if part[4] == ">"}) == 1
    assert {c.tags["customer"] for c in prepared.all()} == {
        prepared.all()[0].messages[0].content.split()[-1].split("?")[0]
    }


def test_without_a_step_it_is_a_warning_without_a_value(prepare_lines: Lines) -> None:
    prepared = prepare_lines(chat("I am ann@x.com, 555-123-4567", "Hello ann@x.com"))
    assert prepared.report.counts == {"LU-D044": 1}
    (found,) = prepared.report.findings
    assert (found.severity, found.where, found.found) == ("warning", "data.jsonl:6", "personal data: 2 email, 1 phone")
    assert "ann@x.com" in prepared.all()[-1].messages[0].content, "nothing is changed that the recipe does not change"
    assert "ann@x.com" not in (prepared.out / "audit.json").read_text()


def test_the_recipe_may_reject_such_rows(prepare_lines: Lines) -> None:
    prepared = prepare_lines(chat("I am ann@x.com", "Hello"), personal_data="reject")
    (reject,) = prepared.rejects()
    assert reject["code"] == "LU-D044" and "ann@x.com" not in json.dumps(reject) and "<EMAIL>" in reject["raw"]
    assert prepare_lines(chat("I am ann@x.com", "Hello"), personal_data="allow").report.counts == {}


def test_samples_of_other_cleaners_show_no_personal_data(prepare_lines: Lines) -> None:
    """What a signature held stands in no file, though no step redacts."""
    mail = "It is late.\n\nBest regards,\nAnn\nann&#64;x.com"
    report = prepare_lines(chat(mail, "I see, <b>wait</b>"), clean=["boilerplate", "strip_html"]).report
    assert [done.rows for done in report.cleaning] == [1, 1]
    assert report.cleaning[0].samples == () and report.cleaning[1].samples == (("I see, <b>wait</b>", "I see, wait"),)


@settings(max_examples=60)
@given(
    asked=st.text(st.sampled_from("<>bp/& ;\u200b\x1b[3m\n`>-*•aA.@:“”é\u202e")),
    answered=st.text(st.sampled_from("<>bp/& ;\u200b\x1b[3m\n`>-*•aA.@:“”é\u202e")),
)
def test_every_row_is_counted_and_none_becomes_blank(
    tmp_path_factory: pytest.TempPathFactory, asked: str, answered: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "d.jsonl").write_text("\n".join([*GOOD, chat(asked, answered)]), encoding="utf-8")
    steps = ["strip_html", "mojibake", "unicode", "boilerplate", "white_space", "quotes", "lists", "redact"]
    prepared = run(folder, sources=[{"path": "d.jsonl"}], clean=steps)
    assert len(prepared.all()) + len(prepared.rejects()) == len(GOOD) + 1
    assert all(m.content.strip() for c in prepared.all() for m in c.messages)


def test_calls_their_results_and_rejected_answers_are_redacted_too(tmp_path: Path) -> None:
    secret = "ann.smith@mail.example.com"
    call = {"function": {"name": "send", "arguments": {"to": secret, "copies": [secret]}}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Write to {secret}"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": f"sent to {secret}"},
                {"role": "assistant", "content": "Done."},
            ],
            "tools": [{"name": "send"}],
        },
    ]
    pairs = [{"prompt": "Who?", "chosen": "I cannot say.", "rejected": f"It is {secret}."}]
    for name, some in (("calls", rows), ("pairs", pairs)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        prepared = run(tmp_path / name, sources=[{"path": "data.jsonl"}], clean=["redact"])
        [conversation] = prepared.all()
        assert conversation.tools or conversation.rejected
        for file in prepared.out.iterdir():
            assert secret.encode() not in file.read_bytes()
        assert "<EMAIL_" in (prepared.out / "train.jsonl").read_text()
