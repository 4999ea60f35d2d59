"""No method touches what a person or a program relies on, whatever the text."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.prepare.augment.noise import noise
from luthier.prepare.augment.protected import broken, protected
from luthier.prepare.augment.random_edits import random_edits

from .rows import asked, needs_wordnet

SPANS = ["Anna Smith", "https://shop.example.com/a?id=7", "a.b+c@mail.example.org", "12/03/2024", "$12.50", "{name}",
         "{{ order.id }}", "<b>", "</b>", "`rm -rf`", '"Summer Sale"', "%(city)s", "PayPal", "IMG_2231.png", "@support",
         "[ORDER_ID]", "/etc/hosts", "3.5%", "A12-B", "www.example.de/x"]  # fmt: skip
WORDS = "please where can you find the small green parcel that was ordered and never came back to us again".split()
TEXTS = st.lists(st.sampled_from([*SPANS, *WORDS, *WORDS]), min_size=3, max_size=25).map(
    lambda parts: "Hello, " + " ".join(parts)
)
METHODS = {
    "deletion": random_edits(folder=Path(), operations=["deletion"], rate=0.5),
    "swap": random_edits(folder=Path(), operations=["swap"], rate=0.5),
    "noise": noise(rate=0.9),
}


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("I wrote to Anna.", {"Anna": "name"}),
        ("Anna wrote.", {"Anna": "name"}),  # by the list of first names
        ("Where is it? Nowhere.", {}),
        ("How To Reset My Password For The Online Bank", {}),  # a title: capitals say nothing
        ("WHY IS IT SO SLOW", {}),
        ("my iPhone and USB", {"iPhone": "name", "USB": "name"}),
        ("I'm OK", {}),
        ("see https://a.example/b.", {"https://a.example/b": "url"}),
        ("mail a.b@c.example, now", {"a.b@c.example": "email"}),
        ("pay 1,200.50 by 5:30pm!", {"1,200.50": "number", "5:30pm": "number"}),
        ('say "open the door" {slot}', {'"open the door"': "quote", "{slot}": "slot"}),
        ("it's 'fine'", {}),
    ],
)
def test_what_is_protected(text: str, kinds: dict[str, str]) -> None:
    assert {text[s.start : s.stop]: s.kind for s in protected(text)} == kinds


@settings(max_examples=150)
@given(text=TEXTS, seed=st.integers(0, 9))
def test_no_word_level_method_touches_a_protected_span(text: str, seed: int) -> None:
    for name, method in METHODS.items():
        for changed in asked(method, text, n=2, seed=seed):
            if changed != "nothing to change":
                assert broken(text, changed) is None, (name, text, changed)
                for span in SPANS:
                    assert changed.count(span) == text.count(span), (name, text, changed)


@needs_wordnet
@settings(max_examples=50)
@given(text=TEXTS, seed=st.integers(0, 9))
def test_insertion_goes_between_them(text: str, seed: int) -> None:
    for changed in asked(random_edits(folder=Path(), operations=["insertion"], rate=0.3), text, seed=seed):
        assert changed == "nothing to change" or all(changed.count(s) == text.count(s) for s in SPANS)


@settings(max_examples=300)
@given(st.text(max_size=200))
def test_spans_lie_in_the_text_in_order_and_apart(text: str) -> None:
    at = 0
    for span in protected(text):
        assert at <= span.start < span.stop <= len(text)
        at = span.stop
    assert broken(text, text) is None


@settings(max_examples=200)
@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=120), st.integers(0, 3))
def test_wild_texts_end_no_method(text: str, seed: int) -> None:
    for method in METHODS.values():
        for changed in asked(method, text or "x", seed=seed) if text.strip() else ():
            # What stands beside a span may make more of it, as "0 A£" without its "A" does: the filter's affair.
            at = 0
            for span in protected(text) if changed != "nothing to change" else ():
                at = changed.find(text[span.start : span.stop], at) + span.stop - span.start
                assert at >= span.stop - span.start, (text, changed, span)


@pytest.mark.parametrize("unit", ["a", "a.", "a.b", "1", "/", "{", "[A", "<", "@", "-", "`", '"', "A ", "\\", "1."])
def test_long_runs_take_no_long_time(unit: str) -> None:
    started = time.monotonic()
    protected(unit * 20_000)
    assert time.monotonic() - started < 20  # a deadline against quadratic search, which takes minutes


def test_what_was_lost_or_made_up_is_named() -> None:
    assert broken("I owe Anna 20 euros", "I owe Anna twenty euros") == "number"
    assert broken("I owe Anna money", "I owe anna money") == "name"
    assert broken("I owe money", "I owe 20 euros") == "number"
    assert broken("look", "look at http://evil.example") == "url"
    assert broken("I met Anna", "I met John", frozenset({"names"})) is None
    assert broken("Anna left.", "Then Anna left.") is None
