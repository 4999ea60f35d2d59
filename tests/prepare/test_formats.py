"""Every format that users know: told from its columns, and read into the same conversations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.conversation import Conversation, Message
from luthier.encode import Encoder
from luthier.errors import DataError
from luthier.models import find_base, load_tokenizer
from luthier.prepare.chats import ROLE_NAMES
from luthier.prepare.detect import detect
from luthier.prepare.formats import Format
from luthier.prepare.rows import Fault, Row
from luthier.settings import Data, Source

from .lines import Prepared, run

ALL_TRAIN = {"valid_fraction": 0, "test_fraction": 0}
Q, A, Q2, A2, BAD = "What is it?", "A red kettle.", "And that?", "A blue lamp.", "No idea."


def read(rows: list[dict[str, Any]], **data: Any) -> tuple[Format, list[Conversation], list[tuple[str, ...]]]:
    """The format that is detected, what it makes of the rows, and what it warned of."""
    format = detect(rows, Data(sources=(Source(path="x"),), **data))
    warned: list[tuple[str, ...]] = []
    known = {column for row in rows for column in row}
    found = [format.conversation(Row(f"x:{n}", row), known, lambda *w: warned.append(w)) for n, row in enumerate(rows)]
    return format, found, warned


def one(row: dict[str, Any], **data: Any) -> tuple[str, Conversation]:
    format, [conversation], warned = read([row], **data)
    assert not warned
    return format.name, conversation


def said(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in messages]


def fault(row: dict[str, Any], **data: Any) -> tuple[str, str]:
    with pytest.raises(Fault) as caught:
        one(row, **data)
    return caught.value.code, caught.value.field


def turns(
    *texts: str, names: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = ("user", "assistant")
) -> Any:
    return [dict(zip(names, (roles[i % 2], text), strict=True)) for i, text in enumerate(texts)]


SHAREGPT = {"names": ("from", "value"), "roles": ("human", "gpt")}
TWO = [("user", Q), ("assistant", A), ("user", Q2), ("assistant", A2)]
SAME: dict[str, dict[str, Any]] = {
    "openai": {"messages": turns(Q, A, Q2, A2)},
    "sharegpt": {"conversations": turns(Q, A, Q2, A2, **SHAREGPT)},
    "pairs": {"conversation": [{"human": Q, "assistant": A}, {"human": Q2, "assistant": A2}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, *turns(Q, A, Q2, A2)[1:]]},
    "alpaca with history": {"instruction": Q2, "output": A2, "history": [[Q, A]]},
    "query and response": {"query": Q2, "response": A2, "history": [[Q, A]]},
    "turns as prompt": {"prompt": turns(Q, A, Q2), "completion": [{"role": "assistant", "content": A2}]},
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME.keys())
def test_the_same_chat_in_every_format_is_the_same_conversation(row: dict[str, Any]) -> None:
    _, conversation = one(row)
    assert said(conversation.messages) == TWO


def test_roles_and_systems_of_other_formats_are_read_as_what_they_mean() -> None:
    chat = [{"from": "system", "value": "Be kind."}, *turns(Q, A, **SHAREGPT)]
    assert said(one({"conversations": chat})[1].messages)[0] == ("system", "Be kind.")
    assert said(one({"conversations": turns(Q, A, **SHAREGPT), "system": "Be kind."})[1].messages)[0][0] == "system"
    assert said(one({"instruction": Q, "input": "x", "output": A, "system": "Be kind."})[1].messages)[0][0] == "system"
    developer = [{"role": "developer", "content": "Be kind."}, *turns(Q, A)]
    assert one({"messages": developer})[1].messages[0].role == "system"
    assert fault({"messages": turns(Q, A, roles=("Human", "gpt"))}) == ("LU-D033", "messages[0].role")


@pytest.mark.parametrize("mark", [{"learn": False}, {"weight": 0}, {"loss": False}, {"train": False}, {"training": 0}])
def test_a_turn_that_is_marked_is_not_learned(mark: dict[str, Any]) -> None:
    chat = turns(Q, A, Q2, A2)
    chat[1] |= mark
    assert [m.learned for m in one({"messages": chat})[1].messages] == [False, False, False, True]
    chat[1] |= {"weight": 1, "loss": False}
    if "learn" not in mark:
        assert fault({"messages": chat}) == ("LU-D042", "messages[1]")


def test_what_a_prompt_answers_is_not_learned_and_what_its_history_answers_is() -> None:
    learned = {
        name: [m.learned for m in one(SAME[name])[1].messages] for name in ("turns as prompt", "query and response")
    }
    assert learned["turns as prompt"] == [False, False, False, True]
    assert learned["query and response"] == [False, True, False, True]


# -- preferences and ratings -----------------------------------------------------------------------------

PAIRS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": Q, "chosen": A, "rejected": BAD},
    "chats that repeat the prompt": {"prompt": Q, "chosen": turns(Q, A), "rejected": turns(Q, BAD)},
    "chats alone": {"chosen": turns(Q, A), "rejected": turns(Q, BAD)},
    "a chat and answers": {"messages": turns(Q), "chosen": turns(Q, A)[1], "rejected": turns(Q, BAD)[1]},
    "a chat and a worse answer": {"messages": turns(Q, A), "rejected_response": BAD},
    "a chat and a worse one": {"messages": turns(Q, A), "rejected_messages": turns(Q, BAD)},
    "sharegpt": {
        "conversations": turns(Q, **SHAREGPT),
        "chosen": {"from": "gpt", "value": A},
        "rejected": {"from": "gpt", "value": BAD},
    },
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS.keys())
def test_a_preference_pair_in_every_format_is_the_same(row: dict[str, Any]) -> None:
    name, conversation = one(row)
    assert name == "preference"
    assert said(conversation.messages) == [("user", Q), ("assistant", A)]
    assert said(conversation.rejected) == [("assistant", BAD)]
    other = one({"prompt": Q, "chosen": A, "rejected": "Another."})[1]
    assert other.id != conversation.id, "the rejected answer is part of what the row is"


def test_a_pair_without_a_difference_or_a_prompt_is_a_fault() -> None:
    assert fault({"prompt": Q, "chosen": A, "rejected": A}) == ("LU-D041", "rejected")
    assert fault({"chosen": turns(Q, A), "rejected": turns(Q2, BAD)}) == ("LU-D025", "chosen")


def test_only_answers_that_people_found_good_are_learned(tmp_path: Path) -> None:
    rows = [{"prompt": f"{Q} {i}", "completion": f"{A} {i}", "label": i % 3 > 0} for i in range(30)]
    prepared = run_rows(tmp_path, rows)
    assert prepared.report.format == "rated"
    assert next(s for s in prepared.report.steps if s.name == "rated").dropped == {"rated bad": 10}
    assert all(c.rating for c in prepared.all()) and len(prepared.all()) == 20
    assert fault(rows[0] | {"label": 7}, fields={"rating": "label"}, format="rated")[0] == "LU-D042"
    with pytest.raises(DataError, match="LU-D048 all 30 rows are rated bad"):
        run_rows(tmp_path, [row | {"label": False} for row in rows])


def run_rows(folder: Path, rows: list[dict[str, Any]], **data: Any) -> Prepared:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(folder, sources=[{"path": "data.jsonl"}], **data)


# -- tools -----------------------------------------------------------------------------------------------

CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3"}
TOOLS: dict[str, dict[str, Any]] = {
    "openai": {
        "messages": [
            *turns(Q),
            {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
            RESULT,
            turns(Q, A)[1],
        ],
        "tools": [TOOL],
    },
    "older openai": {
        "messages": [
            *turns(Q),
            {"role": "assistant", "content": None, "function_call": OPENAI_CALL["function"]},
            {"role": "function", "name": "weather", "content": "3"},
            turns(Q, A)[1],
        ],
        "tools": json.dumps([TOOL["function"]]),
    },
    "sharegpt": {
        "conversations": [
            *turns(Q, **SHAREGPT),
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": A},
        ],
        "tools": json.dumps([TOOL]),
    },
}


@pytest.mark.parametrize("row", TOOLS.values(), ids=TOOLS.keys())
def test_tools_and_calls_in_every_format_are_the_same(row: dict[str, Any]) -> None:
    _, conversation = one(row)
    assert said(conversation.messages) == [("user", Q), ("assistant", ""), ("tool", "3"), ("assistant", A)]
    [call] = conversation.messages[1].tool_calls
    assert call.model_dump(include={"name", "arguments"}) == CALL
    assert conversation.tools == (TOOL,)


def test_calls_that_are_no_calls_are_faults() -> None:
    def with_call(call: Any, *after: Any) -> dict[str, Any]:
        last = turns(Q, A)[1]
        return {
            "messages": [
                *turns(Q),
                {"role": "assistant", "content": "", "tool_calls": [call]},
                *after,
                *([last] if after else []),
            ]
        }

    assert fault(with_call({"function": {"name": "weather", "arguments": "{oops"}})) == ("LU-D035", "messages[1]")
    assert fault(with_call({"function": {"arguments": {}}})) == ("LU-D035", "messages[1]")
    assert fault(with_call({"function": {"name": "weather", "arguments": [1]}})) == ("LU-D035", "messages[1]")
    assert fault(with_call(OPENAI_CALL, RESULT | {"tool_call_id": "c2"})) == ("LU-D036", "messages[2]")
    assert fault({"messages": [*turns(Q), RESULT, turns(Q, A)[1]]}) == ("LU-D036", "messages[1]")
    assert fault({"messages": turns(Q, A), "tools": "[oops"}) == ("LU-D035", "tools")
    for text in ('{"a": NaN}', '{"a": 1, "a": 2}', '{"a": "\\ud83d"}', '{"a": ' + "[" * 80 + "]" * 80 + "}"):
        assert fault(with_call({"function": {"name": "weather", "arguments": text}})) == ("LU-D035", "messages[1]")
    assert fault({"messages": [turns(Q)[0] | {"tool_calls": [OPENAI_CALL]}, turns(Q, A)[1]]})[0] == "LU-D035"


def test_two_calls_that_differ_are_no_copies(tmp_path: Path) -> None:
    rows = []
    for city in ("Oslo", "Rome", "Oslo"):
        call = {"function": {"name": "weather", "arguments": {"city": city}}}
        rows += [{"messages": [*turns(Q), {"role": "assistant", "content": "", "tool_calls": [call]}]}]
    prepared = run_rows(tmp_path, rows, clean=[{"use": "dedupe"}], split=ALL_TRAIN)
    assert len(prepared.all()) == 2


def test_pairs_with_other_rejected_answers_and_other_tools_or_ratings_are_no_copies(tmp_path: Path) -> None:
    pair = {"prompt": Q, "chosen": A}
    rows = [pair | {"rejected": text} for text in ("no idea", "ask somebody else, please", "no idea")]
    prepared = run_rows(tmp_path, rows, clean=[{"use": "dedupe"}], split=ALL_TRAIN)
    assert len(prepared.all()) == 2
    rows = [{"prompt": Q, "completion": A, "tools": tools} for tools in ([TOOL], [], [TOOL])]
    assert len(run_rows(tmp_path, rows, clean=[{"use": "dedupe"}], split=ALL_TRAIN).all()) == 2
    rows = [{"prompt": Q, "completion": A, "label": good} for good in (False, True, True)]
    assert len(run_rows(tmp_path, rows, clean=[{"use": "dedupe"}], split=ALL_TRAIN).all()) == 1, "the good one stays"


# -- token ids -------------------------------------------------------------------------------------------


def test_token_ids_are_taken_as_they_are(tiny: Path) -> None:
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "attention_mask": [1, 1, 1, 1]}
    name, conversation = one(row)
    encoded = encoder(conversation)
    assert (name, encoded.ids, encoded.learn) == ("tokens", [5, 6, 7, 8], [False, False, True, True])
    assert list(encoder.many([conversation])) == [encoded]
    assert encoder(one({"input_ids": [5, 6]})[1]).learn == [True, True]
    assert encoder.spelled(conversation).answer == encoder.tokenizer.decode([5, 6, 7, 8])
    [problem] = encoder.many([one({"input_ids": [5, 10**6]})[1]])
    assert "LU-D057" in str(problem)


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": [5, 6], "labels": [5]},
        {"input_ids": [5, 6], "labels": [-100, 7]},
        {"input_ids": [5, 6], "attention_mask": [0, 1]},
    ],
)
def test_token_ids_that_contradict_themselves_are_faults(row: dict[str, Any]) -> None:
    assert fault(row)[0] == "LU-D111"


# -- the page --------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "row"), re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \|", PAGE, flags=re.M))
def test_the_rows_of_the_page_are_what_it_says(name: str, row: str) -> None:
    data = json.loads(row.replace('"Once upon a time ..."', '"Once upon a time"'))
    rows = [data | ({"label": "positive"} if name == "classification" else {}) for _ in range(10)]
    assert read(rows)[0].name == name


def test_the_roles_of_the_page_are_those_that_are_read() -> None:
    listed = dict(re.findall(r"^\| (system|user|assistant|tool) \| ([a-z_, ]+) \|", PAGE, flags=re.M))
    assert {name: role for role, names in listed.items() for name in names.split(", ")} == ROLE_NAMES


def test_a_row_of_texts_keeps_the_id_that_it_always_had() -> None:
    """Draws of sides and limits, kept encodings and votes go by it."""
    assert one({"prompt": "What is order 0?", "completion": "0 kettles, 0 lids"})[1].id == "b1b775f1c81279b7"
    assert one({"messages": turns("What is order 0?", "0 kettles, 0 lids")})[1].id == "b1b775f1c81279b7"
