"""Many conversations at once, and those that were encoded before, are what the encoder makes of each alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_templates import FAMILIES, Family, tokenizer_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from luthier import encode, encoded
from luthier.conversation import Conversation, Message, make_conversation, write_conversations
from luthier.encode import Encoded, Encoder
from luthier.encoded import remembered
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
def encoder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """With a cache of its own, in which little is kept too."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoded, "MIN_TOKENS", 1)
    return Encoder(load_tokenizer(find_base(str(tiny))), MAX_TOKENS)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places of the rows that an encoder really encodes from now on."""
    places: list[str] = []
    real: Callable[[Encoder, Conversation], object] = Encoder._text

    def text(self: Encoder, conversation: Conversation) -> object:
        places.append(conversation.source)
        return real(self, conversation)

    monkeypatch.setattr(Encoder, "_text", text)
    return places


def packs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "encoded").glob("*/*"))


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


# -- kept -------------------------------------------------------------------------------------------------


def test_what_was_encoded_is_not_encoded_again_and_is_the_same(encoder: Encoder, rendered: list[str]) -> None:
    rows = mixed(600)
    expected = one_by_one(encoder, rows)
    with remembered(encoder):
        assert at_once(encoder, rows) == expected
    rendered.clear()
    moved = [make_conversation(r.messages, f"elsewhere.jsonl:{r.source}") for r in reversed(rows)]
    again = Encoder(encoder.tokenizer, MAX_TOKENS)
    with remembered(again):
        found = at_once(again, moved)
    bad = {c.source for c in moved if isinstance(alone(encoder, c), tuple)}
    assert set(rendered[: len(bad)]) == bad, "only what has no tokens to keep is tried again"
    assert found == one_by_one(encoder, moved)


def test_another_limit_finds_the_same_tokens_and_refuses_by_itself(encoder: Encoder, rendered: list[str]) -> None:
    rows = [row("Well?", "word " * n, number=n) for n in range(1, 20)]
    with remembered(encoder):
        encoder.all(rows)
    strict = Encoder(encoder.tokenizer, 30)
    rendered.clear()
    with remembered(strict):
        found = at_once(strict, rows)
    assert not rendered
    assert found == one_by_one(strict, rows)
    assert {type(one) for one in found} == {Encoded, tuple}


def test_without_the_context_nothing_is_kept_or_found(encoder: Encoder, tmp_path: Path, rendered: list[str]) -> None:
    rows = mixed(20)
    with remembered(encoder):
        at_once(encoder, rows)
    rendered.clear()
    at_once(encoder, rows)
    assert len(rendered) == len(rows)


def test_what_is_asked_for_again_meanwhile_is_not_encoded_again(encoder: Encoder, rendered: list[str]) -> None:
    rows = [r for r in mixed(60) if isinstance(alone(encoder, r), Encoded)]
    expected = [encoder(r) for r in rows]
    with remembered(encoder):
        assert encoder.all(rows) == expected
        rendered.clear()
        assert encoder.all([*rows[10:], *rows[:10]]) == [*expected[10:], *expected[:10]]
    assert not rendered


def test_little_is_not_kept(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "MIN_TOKENS", 10_000)
    with remembered(encoder):
        at_once(encoder, mixed(20))
    assert not packs(tmp_path)


def test_what_was_encoded_before_an_error_is_kept(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(DataError), remembered(encoder):
        encoder.all(mixed(20))
    assert len(packs(tmp_path)) == 1
    assert encoder.memory is None


def test_new_rows_alone_are_added(encoder: Encoder, tmp_path: Path, rendered: list[str]) -> None:
    rows = [row(f"Item {i}?", "Yes.", number=i) for i in range(40)]
    for n in (30, 40):
        rendered.clear()
        with remembered(encoder):
            encoder.all(rows[:n])
    assert rendered == [r.source for r in rows[30:]]
    assert len(packs(tmp_path)) == 2


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


# -- damage, room and company -----------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_pack_is_noticed_and_made_anew(encoder: Encoder, tmp_path: Path, data: st.DataObject) -> None:
    rows = [r for r in mixed(40) if isinstance(alone(encoder, r), Encoded)]
    expected = [encoder(r) for r in rows]
    with remembered(encoder):
        encoder.all(rows)
    [pack] = packs(tmp_path)
    content = bytearray(pack.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[where] ^= data.draw(st.integers(1, 255))
    else:
        del content[where:]
    whole = pack.read_bytes()
    pack.write_bytes(content)
    for _ in range(2):
        with remembered(encoder):
            assert encoder.all(rows) == expected
    assert [p.read_bytes() for p in packs(tmp_path)] == [whole]


def test_what_is_no_pack_is_cleared_away(encoder: Encoder, tmp_path: Path) -> None:
    rows = [row("Item?", "Yes.")]
    with remembered(encoder):
        encoder.all(rows)
    [pack] = packs(tmp_path)
    for name, content in (("a", b""), ("b", b"short"), ("c", b"\0" * 80), ("d", b"\xff" * 4000)):
        (pack.parent / f"{name}.pack").write_bytes(content)
    with remembered(encoder):
        assert encoder.all(rows) == [encoder(rows[0])]
    assert packs(tmp_path) == [pack]


def test_packs_that_were_not_used_for_longest_leave(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "MAX_PACKS", 2)
    for i in range(3):
        with remembered(encoder):
            encoder.all([row(f"Item {i}?", "Yes.")])
        for age, pack in enumerate(sorted(packs(tmp_path), key=lambda p: -p.stat().st_mtime_ns)):
            os.utime(pack, ns=(0, 10**18 - age))  # as if all this had been long ago
        if i == 1:
            with remembered(encoder):
                encoder.all([row("Item 0?", "Yes.")])  # the older one is used
    kept = [row(f"Item {i}?", "Yes.") for i in range(3)]
    with remembered(encoder):
        assert encoder.memory is not None
        assert encoder.memory.find([r.id for r in kept]).keys() == {kept[0].id, kept[2].id}
    monkeypatch.setattr(encoded, "MAX_BYTES", max(p.stat().st_size for p in packs(tmp_path)) + 8)
    with remembered(encoder):
        encoder.all([row("Item 9?", "Yes.")])
    [kept_one] = packs(tmp_path)
    monkeypatch.setattr(encoded, "MAX_BYTES", 40)  # of which a new one would have more by itself
    with remembered(encoder):
        encoder.all([row("Item 10, which is longer than all the others?", "Yes.")])
    assert packs(tmp_path) == [kept_one]


def test_a_pack_that_cannot_be_opened_now_stays(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("Item?", "Yes.")]
    with remembered(encoder):
        encoder.all(rows)
    [pack] = packs(tmp_path)

    def too_many_open(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(encoded.np, "memmap", too_many_open)
        with remembered(encoder):
            assert encoder.memory is not None and not encoder.memory.find([rows[0].id])
    assert packs(tmp_path) == [pack]


def test_a_place_where_nothing_can_be_written_costs_nothing_but_time(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file"))
    with remembered(encoder):
        assert encoder.all([row("Item?", "Yes.")])


PROCESS = """
import sys
from pathlib import Path
from luthier import encoded
from luthier.conversation import read_conversations
from luthier.encode import Encoder
from luthier.models import find_base, load_tokenizer
encoded.MIN_TOKENS = 1
encoder = Encoder(load_tokenizer(find_base(sys.argv[1])))
rows = list(read_conversations(Path(sys.argv[2])))
for start in range(0, len(rows), 50):
    with encoded.remembered(encoder):
        assert encoder.all(rows[: start + 50]) == [encoder(r) for r in rows[: start + 50]]
"""


def test_two_processes_that_write_and_delete_at_once_read_nothing_wrong(tiny: Path, tmp_path: Path) -> None:
    write_conversations(tmp_path / "rows.jsonl", [row(f"Item {i}?", f"It is {i}.", number=i) for i in range(500)])
    command = [sys.executable, "-c", PROCESS.replace("MIN_TOKENS = 1", "MIN_TOKENS, encoded.MAX_PACKS = 1, 2")]
    environment = os.environ | {"LUTHIER_CACHE": str(tmp_path / "cache")}
    both = [
        subprocess.Popen([*command, tiny, tmp_path / "rows.jsonl"], env=environment, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    ended = [(process.communicate(timeout=300)[1].decode(), process.returncode) for process in both]
    assert [code for _, code in ended] == [0, 0], ended
    assert 1 <= len(packs(tmp_path)) <= 3
