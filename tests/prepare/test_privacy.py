"""Personal data is found where it is, with its checksum, and not where it is not."""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.prepare import privacy

FOUND = {
    "email": ["bob.smith+x@mail.example.co.uk", "o'neil@x.org", "jürgen@müller.de"],
    "card": ["4111 1111 1111 1111", "378282246310005", "3782 822463 10005", "5555-5555-5555-4444", "30569309025904"],
    "iban": ["DE89 3704 0044 0532 0130 00", "gb82west12345698765432", "FR1420041010050500013M02606"],
    "ip": ["106.31.73.20", "192.168.1.17", "2001:db8::ff00:42:8329"],
    "ssn": ["460-89-9847", "460 89 9847"],
    "phone": ["+49 (0)30 1234567", "(905) 674-3793", "555-123-4567", "06 12 34 56 78", "345-899-3560x4587",
              "0961-7596216", "+1.415.555.0134", "020 7946 0958", "+447700 921 916", "0049 30 123456"],
    "key": ["AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "sk-proj-abc123def456ghi789jkl012",
            "xoxb-123456789012-abcdefG",
            "sk_live_abc123def456ghi7",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc-def",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "9f86d081884c7d659a2feaa0c55ad015",
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"],
    "credentials": ["bob:hunter2"],
}  # fmt: skip
WITHIN = {"credentials": "https://{}@host.example/x"}
NOT_FOUND = """icon@2x.png | git@github.com:owner/name | @app.route | a @ b.com | 4111111111111112
GB82WEST12345698765433 | version 1.2.3.4 | 127.0.0.1 | 12:30:45 | std::vector | 666-12-1234 | 2024-11-23 10:15
01.02.2024 15 | 1+2025550123 | order 9498777106 | ISBN 978-3-16-148410-0 | 3.14159265358 | 1,234,567,890
600 000 000 | $4000 2000 | 08 15 09 30
internationalization_of_configuration_names | 123e4567-e89b-12d3-a456-426614174000 | 1 2 3 4 5 6 7 8 9 10
https://task-management-2024-plan-overview.example.com/ | 0000 0000 0000 0000 | page 12 of 1345678901""".replace(
    "\n", " | "
)


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values])
def test_a_value_is_found_whole(kind: str, value: str) -> None:
    for text in ("{}", "It is {}.", "first\n{}\nlast", "({})", "a, {}, b"):
        text = text.format(WITHIN.get(kind, "{}")).format(value)
        (found,) = privacy.find(text)
        assert (found.kind, text[found.start : found.end]) == (kind, value), text


@pytest.mark.parametrize("text", NOT_FOUND.split(" | "))
def test_what_only_looks_like_it(text: str) -> None:
    assert privacy.find(text) == []


def test_what_is_said_to_be_a_telephone_is_one() -> None:
    assert privacy.counted("call me at 467 3395") == Counter(phone=1)
    assert privacy.counted("Phone:\n60-56-85-91") == Counter(phone=1)
    assert privacy.counted("room 467 3395") == Counter()


def test_values_side_by_side_are_all_found() -> None:
    text = "4111 1111 1111 1111 378282246310005 ann@x.com;bob@x.com 555-123-4567 555-123-4568 1.2.3.4,5.6.7.8"
    assert privacy.counted(text) == Counter(card=2, email=2, phone=2, ip=2)


@given(st.integers(10**11, 10**18))
def test_one_wrong_digit_is_no_card(number: int) -> None:
    good = next(f"{number}{d}" for d in range(10) if privacy.luhn(f"{number}{d}"))
    assert not any(privacy.luhn(good[:i] + str((int(good[i]) + 1) % 10) + good[i + 1 :]) for i in range(len(good)))


PIECES = st.sampled_from(
    [
        "4111111111111111",
        "+49 30 1234567",
        "a@b.de",
        "://",
        ":",
        "@",
        "1.2.3.4",
        "::",
        "DE89370400440532013000",
        " ",
        "-",
        "0",
        "<",
        "_",
    ]
)


@settings(max_examples=300)
@given(st.lists(PIECES | st.text(max_size=2), max_size=12).map("".join))
def test_values_lie_in_order_and_masking_leaves_none(text: str) -> None:
    values = privacy.find(text)
    assert all(a.end <= b.start for a, b in pairwise(values))
    assert all(text[v.start : v.end] for v in values)
    assert privacy.find(privacy.masked(text)) == []


# -- measured on real texts: docs/cleaning.md ------------------------------------------------------------

OF_PRESIDIO = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "US_SSN": "ssn",
}
OF_PRESIDIO["IP_ADDRESS"] = "ip"


def rows(folder: Path) -> Iterator[dict[str, object]]:
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def test_recall_and_precision_on_labelled_texts(data_dir: Path) -> None:
    named, hit, false = Counter[str](), Counter[str](), Counter[str]()
    for row in rows(data_dir / "presidio_pii"):
        found = privacy.find(str(row["text"]))
        right = set()
        for span in row["spans"]:  # type: ignore[attr-defined]
            if kind := OF_PRESIDIO.get(span["type"]):
                named[kind] += 1
                whole = [v for v in found if v.kind == kind and v.start <= span["start"] and span["end"] <= v.end]
                hit[kind] += bool(whole)
                right |= {v.start for v in whole}
        false += Counter(v.kind for v in found if v.start not in right)
    assert named == Counter(card=65, email=49, phone=43, iban=15, ssn=10, ip=5)
    assert hit == Counter(card=62, email=49, phone=41, iban=15, ssn=10, ip=5)
    assert false == Counter()


@pytest.mark.parametrize(("name", "n"), [("banking77", 13083), ("sgd_dialogues", 12419)])
def test_no_false_hit_in_what_customers_say(data_dir: Path, name: str, n: int) -> None:
    def said(row: dict[str, object]) -> list[str]:
        chat = row.get("messages")
        return [m["content"] for m in chat if m["role"] == "user"] if isinstance(chat, list) else [str(row["text"])]

    texts = [text for row in rows(data_dir / name) for text in said(row)]
    assert len(texts) == n
    assert [text for text in texts if privacy.find(text)] == []


def planted(rng: random.Random) -> tuple[str, str]:
    """A kind and a random value of it, written in one of its ways."""

    def digits(n: int) -> str:
        return "".join(rng.choice("0123456789") for _ in range(n))

    def checked(prefix: str, n: int) -> str:
        start = prefix + digits(n - len(prefix) - 1)
        return next(start + str(d) for d in range(10) if privacy.luhn(start + str(d)))

    kind = rng.choice(privacy.KINDS)
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=8))
    number = checked(rng.choice(["4", "51", "2221", "6011"]), 16)
    bank = "37040044" + digits(10)
    token = "".join(rng.choices(string.ascii_letters + string.digits, k=40)) + "1aA"
    made = {
        "email": [f"{letters}.{digits(2)}@{letters[:5]}.com", f"{letters}@mail.{letters[:4]}.co.uk"],
        "card": [number, " ".join(number[i : i + 4] for i in range(0, 16, 4)), checked("34", 15)],
        "iban": ["DE" + next(f"{c:02}" for c in range(2, 99) if privacy.mod97(f"DE{c:02}{bank}")) + bank],
        "ip": [".".join(str(rng.randint(1, 254)) for _ in range(4)), f"2001:db8:{digits(3)}::{digits(2)}a"],
        "ssn": [f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"],
        "phone": [f"+49 {rng.randint(150, 179)} {digits(7)}", f"({rng.randint(201, 989)}) {digits(3)}-{digits(4)}",
                  f"0{rng.randint(1, 9)} {digits(2)} {digits(2)} {digits(2)} {digits(2)}"],
        "key": [f"ghp_{token[:36]}", f"sk-proj-{token}", "AKIA" + "".join(rng.choices("ABCDEF234567", k=16)), token],
        "credentials": [f"{letters}:{token[:9]}"],
    }  # fmt: skip
    return kind, rng.choice(made[kind])


def test_recall_of_planted_values(data_dir: Path) -> None:
    """About 400 of each kind, between the words of real questions."""
    rng = random.Random(7)
    texts = [str(row["text"]) for row in rows(data_dir / "banking77")]
    named, hit = Counter[str](), Counter[str]()
    for _ in range(3200):
        kind, value = planted(rng)
        words = rng.choice(texts).split()
        words.insert(rng.randrange(len(words) + 1), WITHIN.get(kind, "{}").format(value))
        text = " ".join(words)
        named[kind] += 1
        at = text.index(value)
        hit[kind] += any(v.kind == kind and v.start <= at and at + len(value) <= v.end for v in privacy.find(text))
    missed = {kind: named[kind] - hit[kind] for kind in named if hit[kind] < named[kind]}
    assert set(named) == set(privacy.KINDS) and min(named.values()) > 350
    assert missed == {"phone": 2}


@pytest.mark.parametrize("one", ["+49 30 1234567", "(020) 7946 0958"])
def test_values_that_touch_each_other_are_found_when_the_one_before_is_gone(one: str) -> None:
    text = f"Call {one * 40} now, or {one} {one}."
    step_by_step = text
    while values := privacy.find(step_by_step):
        first = values[0]
        step_by_step = f"{step_by_step[: first.start]}<{first.kind.upper()}>{step_by_step[first.end :]}"
    assert privacy.masked(text) == step_by_step and one not in privacy.masked(text)


def test_thousands_of_values_in_a_row_take_no_round_each() -> None:
    """A round looks at the whole text."""
    looked = []

    def counted(text: str) -> list[privacy.Value]:
        looked.append(len(text))
        return privacy.find(text)

    text = "+49 30 1234567" * 3000
    assert privacy.replaced(text, counted, lambda _: "<P>") == "<P>" * 3000
    assert sum(looked) < 12 * len(text)


PIECES = [*"0123456789", *".:-/ ()+x@aF\n\u00a0\u2010", "::", "192.168.", "ssn ", "GB82", "4111", "00", "tel "]


@example("467 3395")
@example("fe80::1:2")
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_what_is_looked_for_first_is_in_whatever_is_found(text: str) -> None:
    """Texts without it are passed over."""
    if any(pattern.search(text) for pattern in (privacy.CARD, privacy.SSN, privacy.BARE_SSN, privacy.RUN)):
        assert privacy.LONG.search(text) and privacy.DIGITS.search(text)
    if privacy.IBAN.search(text):
        assert privacy.IBAN_BEGINS.search(text)
    if privacy.IPV4.search(text):
        assert privacy.DOTTED.search(text) and privacy.DIGITS.search(text)
    if privacy.IPV6.search(text):
        assert text.count(":") > 2
