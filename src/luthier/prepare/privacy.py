"""Privacy: personal data in a text, found by patterns, checksums and issuers' rules.

    email card iban ip ssn phone        of people
    key credentials                     of machines: keys and tokens, a name and password within a URL

Promises:
- What has a checksum is checked: cards by Luhn and issuer, IBANs by mod 97 and the country's length.
- Of two readings that overlap, the surer one holds: a card is no phone number.
- The time is linear in the text, whatever the text is.

What it cannot find: names, addresses and birthdays (see `presidio.py`), numbers that are written in words or in other
digits than 0-9, and what a text hides on purpose ("bob at example dot com"). Keys are in `secret_keys.py`. It knows
nothing of rows.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from luthier.prepare import secret_keys

Kind = Literal["email", "phone", "card", "iban", "ip", "ssn", "key", "credentials"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WIDTHS = (128, 1024)
"""Characters in which a value is looked for that touches another: it is believed where as many more follow it."""


class Value(NamedTuple):
    """One value, at `text[start:end]`."""

    start: int
    end: int
    kind: str
    canonical: str
    """The same for all spellings of one value: without separators, in one case."""


def find(text: str) -> list[Value]:
    """All values, in their order; none overlaps another."""
    kept: list[Value] = []
    for finder in _finders(text):
        for value in finder(text):
            at = bisect(kept, value)
            if (at == 0 or kept[at - 1].end <= value.start) and (at == len(kept) or value.end <= kept[at].start):
                kept.insert(at, value)
    return kept


def replaced(text: str, find: Callable[[str], Sequence[Value]], by: Callable[[Value], str]) -> str:
    """The text with each value replaced, until nothing is left to find."""
    while values := find(text):
        parts, at = [], 0
        for value in values:
            if value.start >= at:
                parts += [text[at : value.start], by(value)]
                at = value.end
            # What touches a value may be one when that is gone: thousands of numbers in a row would be as many rounds.
            while touching := _touching(text[at : at + WIDTHS[-1]], find):
                parts.append(by(touching))
                at += touching.end - 1
        text = "".join((*parts, text[at:]))
    return text


def _touching(text: str, find: Callable[[str], Sequence[Value]]) -> Value | None:
    """The value with which the text begins, behind a placeholder's last character."""
    if not text or not (text[0].isalnum() or text[0] in "+("):
        return None
    for width in WIDTHS:  # few are long, and thousands in a row would all be read as often as they fit into one width
        first = next(iter(find(f">{text[:width]}")), None)
        if first and first.start == 1 and 2 * first.end < width:
            return first
    return None


def masked(text: str) -> str:
    """The text as it may be shown: `<EMAIL>` for each address."""
    return replaced(text, find, lambda value: f"<{value.kind.upper()}>")


def counted(*texts: str) -> Counter[str]:
    """How many values of each kind."""
    return Counter(value.kind for text in texts for value in find(text))


# -- e-mail and URLs --------------------------------------------------------------------------------------

DOMAIN = re.compile(r"@([\w-]{1,63}+(?:\.[\w-]{1,63}+)++)")
LOCAL = re.compile(r"[\w.%+'-]{1,64}\Z")
NO_DOMAINS = {"png", "jpg", "jpeg", "gif", "svg", "webp"}
"""Endings of files that are written like addresses: icon@2x.png."""
USERINFO = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}://([^\s/<>\"'@:]{1,128}:[^\s/<>\"']{1,256})@")


def _emails(text: str) -> Iterator[Value]:
    if "@" not in text:
        return
    for match in DOMAIN.finditer(text):  # from the @ to both sides: a long word before it is looked at once
        local = LOCAL.search(text, max(0, match.start() - 64), match.start())
        labels = match[1].split(".")
        while labels and not _is_top(labels[-1]):
            labels.pop()
        start = match.start() - len(local[0].lstrip(".'%+-")) if local else match.start()
        end = match.start(1) + len(".".join(labels))
        if len(labels) < 2 or start == match.start() or labels[-1].lower() in NO_DOMAINS:
            continue
        if text[start : match.start()] == "git" and text[end : end + 1] == ":":  # git@github.com:owner/name
            continue
        yield Value(start, end, "email", text[start:end].casefold())


def _is_top(label: str) -> bool:
    """Whether it may be a top-level domain."""
    return (len(label) > 1 and label.isalpha()) or label.lower().startswith("xn--")


def _credentials(text: str) -> Iterator[Value]:
    if "://" in text:
        for match in USERINFO.finditer(text):
            yield Value(match.start(1), match.end(1), "credentials", match[1])


def _keys(text: str) -> Iterator[Value]:
    for start, end in secret_keys.find(text):
        yield Value(start, end, "key", text[start:end])


# -- numbers with checksums -------------------------------------------------------------------------------

SPACE = " \u00a0\u202f\u2009"
HYPHEN = "\u2010-\u2013\\-"
CARD = re.compile(rf"(?<![\w.])[0-9](?:[{SPACE}{HYPHEN}]?[0-9]){{11,60}}+(?![0-9])")
ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),  # Visa
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"6011|64[4-9]|65"), (16, 19)),  # Discover
    (re.compile(r"35"), (16, 17, 18, 19)),  # JCB
    (re.compile(r"2131|1800"), (15,)),  # JCB, old
    (re.compile(r"30[0-5]|309|36|3[89]"), (14, 16, 19)),  # Diners
    (re.compile(r"62"), (16, 17, 18, 19)),  # UnionPay
    (re.compile(r"5018|5020|5038|5893|6304|6759|676[1-3]"), tuple(range(12, 20))),  # Maestro
)
GROUPINGS = re.compile(r"(?:4 ){2,4}[1-4]|4 6 [45]|5 5 [56]")
"""How digits of a card are grouped in print."""


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: whether the last digit checks the others."""
    doubled = (sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def is_card(digits: str) -> bool:
    issued = any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in ISSUERS)
    return issued and len(set(digits)) > 1 and luhn(digits)


def _cards(text: str) -> Iterator[Value]:
    for run in CARD.finditer(text):
        groups = [(m.start(), m.end()) for m in re.finditer("[0-9]+", run[0])]
        done = 0
        for first in range(len(groups)):
            for last in _ends(groups, first):
                if first >= done and (digits := _card_of(run[0], groups[first : last + 1])):
                    yield Value(run.start() + groups[first][0], run.start() + groups[last][1], "card", digits)
                    done = last + 1


def _ends(groups: list[tuple[int, int]], first: int) -> range:
    """Where a card that begins with group `first` may end: the longest first."""
    size = groups[first][1] - groups[first][0]
    if size in (4, 5):
        return range(min(len(groups), first + 5) - 1, first + 1, -1)
    return range(first, first + (size >= 12))


def _card_of(text: str, groups: list[tuple[int, int]]) -> str:
    """The digits, if these groups are a card's."""
    digits = "".join(text[start:end] for start, end in groups)
    grouped = " ".join(str(end - start) for start, end in groups)
    return digits if (len(groups) == 1 or GROUPINGS.fullmatch(grouped)) and is_card(digits) else ""


IBAN = re.compile(rf"(?<![A-Za-z0-9])[A-Za-z]{{2}}[0-9]{{2}}(?:[{SPACE}{HYPHEN}]?[A-Za-z0-9]){{11,32}}")
IBAN_BEGINS = re.compile(r"[0-9](?<=[A-Za-z]{2}[0-9])[0-9]")
"""Looked for from its digits: texts are full of letters."""
IBAN_LENGTHS = {
    code: int(length)
    for length, codes in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC",
        32: "LC", 33: "RU",
    }.items()
    for code in codes.split()
}  # fmt: skip
"""Characters of an IBAN by country (SWIFT's registry)."""


def mod97(iban: str) -> bool:
    """ISO 7064 MOD 97-10, as an IBAN without separators has it."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def _ibans(text: str) -> Iterator[Value]:
    if not IBAN_BEGINS.search(text):
        return
    for match in IBAN.finditer(text):
        length = IBAN_LENGTHS.get(match[0][:2].upper(), 99)
        places = [m.start() for m in re.finditer("[A-Za-z0-9]", match[0])][:length]
        end = match.start() + places[-1] + 1
        iban = "".join(match[0][i] for i in places).upper()
        if len(iban) == length and not text[end : end + 1].isalnum() and mod97(iban):
            yield Value(match.start(), end, "iban", iban)


# -- numbers without --------------------------------------------------------------------------------------

OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = re.compile(rf"(?<![\w.-])(?:{OCTET}\.){{3}}{OCTET}(?![\w-])(?!\.[0-9])")
DOTTED = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")
IPV6 = re.compile(r"(?<![\w:.])(?=[A-Fa-f:]*+[0-9])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){3,7}+(?![\w:])")
VERSION = re.compile(r"(?:\bv|version|release|build|firmware|update|python|chrome|section|§)[ .:=]*\Z", re.IGNORECASE)
NOBODY = {"0.0.0.0", "127.0.0.1"}
SSN = re.compile(r"(?<![\w.-])(?!000|666|9)[0-9]{3}([- ])(?!00)[0-9]{2}\1(?!0000)[0-9]{4}(?![\w-])(?!\.[0-9])")
BARE_SSN = re.compile(
    r"(?:\bssn\b|social security)[^0-9\n]{0,30}((?!000|666|9)[0-9]{3}(?!00)[0-9]{2}(?!0000)[0-9]{4})(?![\w-])",
    re.IGNORECASE,
)


def _ips(text: str) -> Iterator[Value]:
    for match in IPV4.finditer(text) if DOTTED.search(text) else ():
        if (
            match[0] in NOBODY
            or match[0].startswith("255.")
            or VERSION.search(text, max(0, match.start() - 12), match.start())
        ):
            continue
        yield Value(match.start(), match.end(), "ip", match[0])
    for match in IPV6.finditer(text) if text.count(":") > 2 else ():
        try:
            address = ipaddress.IPv6Address(match[0])
        except ValueError:  # a time, or a part of one
            continue
        if not address.is_loopback:
            yield Value(match.start(), match.end(), "ip", address.compressed)


def _ssns(text: str) -> Iterator[Value]:
    for match in SSN.finditer(text):
        yield Value(match.start(), match.end(), "ssn", re.sub("[- ]", "", match[0]))
    for match in BARE_SSN.finditer(text):
        yield Value(match.start(1), match.end(1), "ssn", match[1])


# -- telephones -------------------------------------------------------------------------------------------

RUN = re.compile(
    rf"(?<![\w.,/=#$€£-])(?:\+|\(\+?)?[0-9](?:[{SPACE}{HYPHEN}./()]{{0,3}}+[0-9]){{6,60}}+"
    r"(?![0-9%€£$])(?!(?!x[0-9]|ext)\w)"
)
MOST_GROUPS = 8
EXTENSION = re.compile(r" ?(?:x|ext\.?|extension) ?[0-9]{1,5}\b", re.IGNORECASE)
SAID = re.compile(
    r"\b(?:(?:my|his|her|our|their|your|new|work|home|contact) number|phone|telephone|tel|mobile|cell(?:phone)?|"
    r"call(?:ing)?(?: me| us)?|ring|reach (?:me|us)|whatsapp|fax|sms|"
    r"telefon|handy|mobil|t[eé]l[eé]phone|portable|m[oó]vil|tel[eé]fono|cellulare|telefoon)"
    r"(?: ?(?:number|no\.?|nr\.?|nummer|num[eé]ro))?(?: (?:is|was|at|on|ist|est|es|under|to))?(?: now)?[\s.:=#-]*\(?\Z",
    re.IGNORECASE,
)
"""What says that a telephone number follows: then any seven digits are one."""
FORMS = (
    r"(?:\+|00 ?)[1-9][0-9 ]{6,20}",  # international
    r"(?:1 )?[2-9][0-9]{2} [0-9]{3} [0-9]{4}",  # North America
    r"0[1-9][0-9]{8,9}",  # with a trunk prefix, unparted
    r"0[1-9][0-9]{0,4}(?: [0-9]{2,4}){1,3} [0-9]{2,4}|0[1-9][0-9]{1,4} [0-9]{6,8}",  # and parted
    r"[67][0-9]{2}(?: [0-9]{3}){2}|[679][0-9]{2}(?: [0-9]{2}){3}",  # Spain
    r"[6-9][0-9]{4} [0-9]{5}",  # India
)
FORM = re.compile("|".join(f"(?:{form})" for form in FORMS))
"""Digits as groups that single spaces part; every form has 8 to 15 of them."""
DATE = re.compile(
    r"(?:0?[1-9]|[12][0-9]|3[01]) (?:0?[1-9]|[12][0-9]|3[01]) (?:19|20)[0-9]{2}|(?:19|20)[0-9]{2} [01]?[0-9] "
)


def _phones(text: str) -> Iterator[Value]:
    for run in RUN.finditer(text):
        groups = list(re.finditer("[0-9]+", run[0]))
        said = SAID.search(text, max(0, run.start() - 40), run.start()) is not None
        first = 0
        while first < len(groups):
            plus = "+" * ("+" in run[0][: groups[0].start()] and first == 0)
            last = _last_of_phone(run[0], groups, first, plus, said and first == 0)
            if last is None:
                first += 1
                continue
            start, end = groups[first].start() if first else _opening(run[0]), groups[last].end()
            yield _phone(text, run.start() + start, run.start() + end, plus)
            first = last + 1


def _last_of_phone(run: str, groups: list[re.Match[str]], first: int, plus: str, said: bool) -> int | None:
    """The last group of the longest telephone number that begins with group `first`; only spaces part two numbers."""
    if first and not _apart(run, groups, first):
        return None
    for last in range(min(len(groups), first + MOST_GROUPS) - 1, first - 1, -1):
        if last + 1 < len(groups) and not _apart(run, groups, last + 1):
            continue
        if _is_phone(plus, " ".join(group[0] for group in groups[first : last + 1]), said):
            return last
    return None


def _apart(run: str, groups: list[re.Match[str]], i: int) -> bool:
    return bool(set(SPACE + "(/").intersection(run[groups[i - 1].end() : groups[i].start()]))


def _opening(run: str) -> int:
    """Where a number in a run begins: a bracket that nothing closes is not its own."""
    return 1 if run[0] == "(" and run.count("(") > run.count(")") else 0


def _phone(text: str, start: int, end: int, plus: str) -> Value:
    digits = re.sub("[^0-9]", "", text[start:end])
    more = EXTENSION.match(text, end)
    international = plus or digits.startswith("00")
    return Value(start, more.end() if more else end, "phone", "+" * bool(international) + digits.removeprefix("00"))


def _is_phone(plus: str, digits: str, said: bool) -> bool:
    n = len(digits) - digits.count(" ")
    if not 7 <= n <= 15 or DATE.match(digits):
        return False
    if said:
        return True
    fits = n >= 8 + (digits[0] == "0") and not digits.endswith(" 000 000")
    return fits and FORM.fullmatch(plus + digits) is not None


DIGITS = re.compile(r"[0-9](?:[^0-9]{0,4}[0-9]){3}")
LONG = re.compile(rf"[0-9](?:[{SPACE}{HYPHEN}./()]{{0,3}}+[0-9]){{6}}")
"""Seven digits, parted as those of one number are: cards, social security and telephone numbers have them."""


def _finders(text: str) -> Iterator[Callable[[str], Iterator[Value]]]:
    """Those that may find something, in the order in which they are believed: a number that may be a card is a card.

    Most texts have no number that is long enough, which is seen far sooner than that each of them finds none.
    """
    yield from (_keys, _credentials, _emails)
    if DIGITS.search(text) is None and text.count(":") < 3:  # what each of the others needs
        return
    is_long = LONG.search(text) is not None
    yield _ibans
    if is_long:
        yield _cards
    yield _ips
    if is_long:
        yield from (_ssns, _phones)
