"""Conversations go to disk and come back; equal ones have equal ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.conversation import (
    ROLES,
    SIDES,
    Conversation,
    Message,
    make_conversation,
    read_conversations,
    write_conversations,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["\r\n", "\r", "\u2028", "\u0085", "\x00", '"', "\\", "\ufeff", "👩‍👩‍👧‍👦"]
)
MESSAGES = st.lists(
    st.builds(Message, role=st.sampled_from(ROLES), content=TEXT, learn=st.none() | st.booleans()),
    min_size=1,
    max_size=5,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


def chat(*texts: str) -> list[Message]:
    roles = ("system", "user", "assistant")
    return [Message(role=r, content=t) for r, t in zip(roles, texts, strict=True)]  # type: ignore[arg-type]


@given(st.lists(st.tuples(MESSAGES, st.dictionaries(TEXT, VALUES, max_size=2)), max_size=4))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[list[Message], dict]]
) -> None:  # type: ignore[type-arg]
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    written = [make_conversation(m, f"data.jsonl:{i}", tags) for i, (m, tags) in enumerate(rows)]
    write_conversations(path, written)
    assert list(read_conversations(path)) == written
    assert path.read_bytes().count(b"\n") == len(rows)


@given(MESSAGES)
def test_an_id_is_the_hash_of_the_messages(messages: list[Message]) -> None:
    one = make_conversation(messages, "a.jsonl:1", {"kind": 1})
    two = make_conversation(tuple(messages), "b.jsonl:9", {"kind": 2}, family="other")
    assert one.id == two.id == one.family and two.family == "other"
    assert len(one.id) == 16
    assert make_conversation([*messages, Message(role="user", content="more")], "a.jsonl:1").id != one.id


def test_whether_a_message_is_learned_is_part_of_what_it_is() -> None:
    plain = chat("Be kind.", "Hi", "Hello")
    marked = [*plain[:2], plain[2].model_copy(update={"learn": False})]
    assert make_conversation(plain, "").id != make_conversation(marked, "").id


def test_the_boundary_between_messages_is_part_of_the_id() -> None:
    def of(*contents: str) -> str:
        return make_conversation([Message(role="user", content=c) for c in contents], "").id

    assert len({of("ab", "c"), of("a", "bc"), of("abc"), of("abc", "")}) == 4


@pytest.mark.parametrize(
    ("role", "learned"), [("user", False), ("system", False), ("tool", False), ("assistant", True)]
)
def test_assistants_are_learned_unless_said_otherwise(role: str, learned: bool) -> None:
    for learn in (None, True, False):
        assert Message(role=role, content="x", learn=learn).learned is (learned if learn is None else learn)  # type: ignore[arg-type]
    assert Message(role="text", content="x").learned


def test_prompt_and_answer() -> None:
    conversation = make_conversation(chat("Be kind.", "Hi", "Hello"), "")
    assert [m.content for m in conversation.prompt] == ["Be kind.", "Hi"]
    assert (conversation.answer, conversation.prompt_text) == ("Hello", "Hi")
    text = make_conversation([Message(role="text", content="Once.")], "")
    assert (text.prompt, text.answer, text.prompt_text) == ((), "Once.", "")


def test_nothing_of_a_conversation_can_be_changed_or_added() -> None:
    conversation = make_conversation(chat("Be kind.", "Hi", "Hello"), "")
    with pytest.raises(ValidationError):
        conversation.family = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        conversation.messages[0].content = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Conversation.model_validate({**conversation.model_dump(), "wight": 2})
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "robot", "content": "x"})


def test_the_sides_of_a_split() -> None:
    assert SIDES == ("train", "validation", "test")
