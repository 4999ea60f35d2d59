"""Many conversations at once, and those that are read from a file, are what the encoder makes of each alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_templates import FAMILIES, Family, tokenizer_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from luthier import encode
from luthier.conversation import (
    Conversation,
    Message,
    line_of,
    make_conversation,
    read_conversations,
    write_conversations,
)
from luthier.encode import Encoded, Encoder
from luthier.encoded import EncodedRows, packed, read_side, write_side
from luthier.errors import DataError
from luthier.models import find_base, load_tokenizer

MAX_TOKENS = 60
WORDS = ("kettle", "lid", " ", "\n", "<|im_end|>", "<think>", "🇺🇦", "水壶", "\uf8f0", "x" * 9)


def row(*texts: str, system: str | None = None, number: int = 0) -> Conversation:
    """Turns of user and assistant in alternation; plain text where there is one text alone."""
    roles = ("user", "assistant") * len(texts) if len(texts) > 1 else ("text",)
    messages = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=False)]  # type: ignore[arg-type]
    first = [Message(role="system", content=system)] if system is not None else []
    return make_conversation([*first, *messages], f"rows.jsonl:{number}")


def mixed(n: int) -> list[Conversation]:
    """Good rows, and among them some that cannot be encoded: too long, nothing to learn, private characters, copies."""
    bad = {
        3: row("Well?", "word " * 99),
        5: row("Well?", ""),
        7: row("Well?", "a\uf8f0b"),
        8: row("one text"),
        9: row(""),
    }
    return [
        make_conversation(bad[i % 16].messages, f"rows.jsonl:{i}")
        if i % 16 in bad
        else row(f"How much is item {i // 2}?", f"It is {i // 2} euros.", number=i)
        for i in range(n)
    ]


def one_by_one(encoder: Encoder, rows: list[Conversation]) -> list[Encoded | tuple[str, ...]]:
    return [alone(encoder, conversation) for conversation in rows]


def alone(encoder: Encoder, conversation: Conversation) -> Encoded | tuple[str, ...]:
    try:
        return encoder(conversation)
    except DataError as error:
        return said(error)


def said(error: DataError) -> tuple[str, ...]:
    return tuple(map(str, error.problems))


def at_once(encoder: Encoder, rows: list[Conversation]) -> list[Encoded | tuple[str, ...]]:
    return [said(one) if isinstance(one, DataError) else one for one in encoder.many(rows)]


@pytest.fixture
def encoder(tiny: Path) -> Encoder:
    return Encoder(load_tokenizer(find_base(str(tiny))), MAX_TOKENS)


# -- many at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            row,
            st.lists(st.sampled_from(WORDS), max_size=6).map("".join),
            st.lists(st.sampled_from(WORDS), max_size=6).map("".join),
            system=st.none() | st.sampled_from(["Be brief.", "<|im_start|>"]),
        ),
        max_size=9,
    )
)
def test_many_are_what_each_is_alone_errors_too(family: Family, tiny: Path, rows: list[Conversation]) -> None:
    encoder = Encoder(tokenizer_of(family, tiny), MAX_TOKENS)
    assert at_once(encoder, rows) == one_by_one(encoder, rows)


@pytest.mark.parametrize("n", [0, 1, encode.GROUP - 1, encode.GROUP, encode.GROUP + 1, 3 * encode.GROUP + 5])
def test_any_number_of_rows_keeps_its_order(encoder: Encoder, n: int) -> None:
    rows = mixed(n)
    assert at_once(encoder, rows) == one_by_one(encoder, rows)


def test_all_raises_the_first_error_and_gives_everything_where_there_is_none(encoder: Encoder) -> None:
    rows = mixed(encode.GROUP + 40)
    with pytest.raises(DataError) as caught:
        encoder.all(rows[encode.GROUP :])
    assert said(caught.value) == alone(encoder, rows[encode.GROUP + 3])
    good = [r for r in rows if isinstance(alone(encoder, r), Encoded)]
    assert encoder.all(good) == [encoder(r) for r in good]


def test_an_error_of_the_source_comes_through(encoder: Encoder) -> None:
    def broken() -> object:
        yield row("a", "b")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(encoder.many(broken()))  # type: ignore[arg-type]


# -- a side's file ----------------------------------------------------------------------------------------


def good(encoder: Encoder, n: int) -> list[Conversation]:
    return [r for r in mixed(n) if isinstance(alone(encoder, r), Encoded)]


def written(folder: Path, encoder: Encoder, rows: list[Conversation]) -> Path:
    """The side of these rows as prepare leaves it."""
    encoded = (encoder(row) for row in rows)
    pairs = ((line_of(row), packed(e.ids, e.learn)) for row, e in zip(rows, encoded, strict=True))
    write_side(folder, "train", pairs, encoder)
    return folder / "train.tokens"


def test_what_prepare_has_encoded_is_read_and_not_encoded_again(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = good(encoder, 300)
    expected = [encoder(r) for r in rows]
    written(tmp_path, encoder, rows)
    monkeypatch.delattr(Encoder, "_text")
    found = read_side(tmp_path, "train", Encoder(encoder.tokenizer))
    assert list(found) == expected and found[5:9] == expected[5:9] and found[-1] == expected[-1]
    assert found.lengths.tolist() == [len(e.ids) for e in expected]
    assert found.max_tokens == MAX_TOKENS, "by which it was prepared"
    assert found.is_document.tolist() == [r.messages[0].role == "text" for r in rows]
    assert list(read_conversations(tmp_path / "train.jsonl")) == rows


def test_a_folder_without_the_file_gets_it(encoder: Encoder, tmp_path: Path) -> None:
    rows = good(encoder, 80)
    content = written(tmp_path, encoder, rows).read_bytes()
    (tmp_path / "train.tokens").unlink()
    assert list(read_side(tmp_path, "train", encoder)) == [encoder(r) for r in rows]
    assert (tmp_path / "train.tokens").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "train.tokens"}


def test_an_error_of_a_row_is_raised_and_leaves_no_file(encoder: Encoder, tmp_path: Path) -> None:
    write_conversations(tmp_path / "train.jsonl", mixed(20))
    with pytest.raises(DataError, match=r"LU-D046 rows.jsonl:3"):
        read_side(tmp_path, "train", encoder)
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl"}


def test_a_file_of_other_rows_or_of_another_encoder_is_made_anew(encoder: Encoder, tmp_path: Path) -> None:
    rows = good(encoder, 40)
    written(tmp_path, encoder, rows)
    write_conversations(tmp_path / "train.jsonl", rows[::-1])
    assert list(read_side(tmp_path, "train", encoder)) == [encoder(r) for r in rows[::-1]]
    other = load_tokenizer(find_base(encoder.tokenizer.name_or_path))
    other.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    plain = Encoder(other, MAX_TOKENS)
    assert list(read_side(tmp_path, "train", plain)) == [plain(r) for r in rows[::-1]]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_that_is_cut_or_no_such_file_is_made_anew(encoder: Encoder, tmp_path: Path, data: st.DataObject) -> None:
    rows = good(encoder, 40)
    path = written(tmp_path, encoder, rows)
    whole = path.read_bytes()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    path.write_bytes(data.draw(st.sampled_from([cut, cut + os.urandom(40), b"\0" * 80, whole + b"x"])))
    assert list(read_side(tmp_path, "train", encoder)) == [encoder(r) for r in rows]
    assert path.read_bytes() == whole


def test_rows_that_some_methods_made_are_left_out(encoder: Encoder, tmp_path: Path) -> None:
    made = [None, "synonyms", "typos", None, "synonyms"]
    rows = [row(f"Item {i}?", "Yes.").model_copy(update={"made_by": by}) for i, by in enumerate(made)]
    written(tmp_path, encoder, rows)
    for without in (frozenset[str](), frozenset({"synonyms"}), frozenset({"typos", "other"})):
        found = read_side(tmp_path, "train", encoder, without)
        assert list(found) == [encoder(r) for r in read_conversations(tmp_path / "train.jsonl", without)]
        assert len(found.lengths) == len(found.weights) == len(found)


def test_an_empty_side_has_a_file_too(encoder: Encoder, tmp_path: Path) -> None:
    written(tmp_path, encoder, [])
    assert EncodedRows.open(tmp_path / "train.jsonl", encoder) is not None
    assert list(read_side(tmp_path, "train", encoder)) == []


# -- whose tokens they are --------------------------------------------------------------------------------


def test_the_fingerprint_is_of_all_that_decides_tokens(tiny: Path) -> None:
    def fingerprint(change: Callable[[object], None] = lambda _: None, limit: int | None = None) -> str:
        tokenizer = load_tokenizer(find_base(str(tiny)))
        change(tokenizer)
        return Encoder(tokenizer, limit).fingerprint()

    def template(text: str) -> Callable[[object], None]:
        return lambda tokenizer: setattr(tokenizer, "chat_template", text)

    changes = [
        template("{{ messages[0]['content'] }}"),
        template("{{ strftime_now('%d') }}"),
        lambda t: t.add_tokens([AddedToken("<new>", special=False)]),  # type: ignore[attr-defined]
        lambda t: setattr(t, "eos_token", "<|endoftext|>"),
    ]
    made = [fingerprint(), *map(fingerprint, changes)]
    assert len(set(made)) == len(made)
    assert fingerprint() == fingerprint(limit=7) == made[0]


def test_a_template_that_writes_the_date_is_another_one_tomorrow(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow:
        @staticmethod
        def today() -> Tomorrow:
            return Tomorrow()

        def isoformat(self) -> str:
            return "2100-01-01"

    tokenizer = load_tokenizer(find_base(str(tiny)))
    plain = Encoder(tokenizer).fingerprint()
    tokenizer.chat_template += "{{ strftime_now('%d') }}"
    dated = Encoder(tokenizer).fingerprint()
    monkeypatch.setattr(encode, "date", Tomorrow)
    assert Encoder(tokenizer).fingerprint() != dated
    assert Encoder(load_tokenizer(find_base(str(tiny)))).fingerprint() == plain
