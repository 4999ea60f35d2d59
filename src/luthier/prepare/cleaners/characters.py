"""Characters: what cannot be seen, odd spaces, damage by wrong decoding, typographic quotes and list marks."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from luthier.errors import DataError, extra
from luthier.prepare.cleaners.code import around_code

ANSI = re.compile(r"\x1b\[[0-?]*+[ -/]*+[@-~]|\x1b\][^\x07\x1b\n]*+(?:\x07|\x1b\\)")
BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
INVISIBLE = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u2060-\u2064\u206a-\u206f\u3164\ufeff\uffa0\ufff9-\ufffc]"
    "|[\ufdd0-\ufdef\ufffe\uffff]"
)
"""Zero-width spaces, fillers, soft hyphens, byte order marks, deprecated format characters; what is no character."""
TAGS = re.compile("(\U0001f3f4[\U000e0020-\U000e007f]++)|[\U000e0000-\U000e007f]++")
"""Invisible copies of ASCII; only the flags of regions are made of them."""
JOINERS = re.compile(r"(?:\A|(?<=[\x00-\x7f\s]))[\u200c\u200d]++|[\u200c\u200d]++(?=[\x00-\x7f\s]|\Z)")
"""Where they join nothing: within Persian, Indic and emoji they are text."""
OVERRIDES = re.compile("[\u202a-\u202e]")
MARKS = re.compile("[\u061c\u200e\u200f\u2066-\u2069]")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def unicode(text: str) -> str:
    """The text in normal form C, with plain spaces and line breaks, and without what cannot be seen.

    Out go control characters and terminal sequences, zero-width characters (joiners only where they join nothing),
    hidden tag characters, and marks that turn the direction of text; in a text with Hebrew or Arabic letters only the
    embeddings and overrides, which can make it look like another one. Unicode Standard Annexes 9 and 15.
    """
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text)
    text = CONTROL.sub("", BREAKS.sub("\n", ANSI.sub("", text)))
    text = OVERRIDES.sub("", INVISIBLE.sub("", text))
    if not RIGHT_TO_LEFT.search(text):
        text = MARKS.sub("", text)
    text = TAGS.sub(lambda match: match[1] or "", text)
    text = JOINERS.sub("", SPACES.sub(" ", text))
    return unicodedata.normalize("NFC", text)


TRAILING = re.compile(r"(?<=[^ \t\n])[ \t]++(?=\n)|(?<![^\n])[ \t]++(?=\n)")
WITHIN = re.compile(r"(?<=[^ \t\n])(?: [ \t]++|\t[ \t]++)(?=[^ \t\n])")
EMPTY_LINES = re.compile(r"\n{3,}+")


def white_space(text: str) -> str:
    """The text without white space at its ends and at the ends of lines; at most one space or empty line in between.

    Indentation stays, a single tab between two words too, and so does code in Markdown.
    """
    text = text.replace("\r\n", "\n").strip()
    return around_code(text, lambda part: EMPTY_LINES.sub("\n\n", WITHIN.sub(" ", TRAILING.sub("", part))))


def mojibake(text: str) -> str:
    """The text with wrong decoding undone: `fÃ¼r` is `für`. By ftfy (Speer 2019), which changes what is sure.

    Raises DataError LU-D108 where ftfy is not installed.
    """
    fixed: str = _fix_encoding()(text)
    return fixed


@cache
def _fix_encoding() -> Any:
    try:
        from ftfy import fix_encoding
    except ImportError:
        raise DataError.of("LU-D108", "cleaner 'mojibake'", "needs ftfy", extra("encoding")) from None
    return fix_encoding


QUOTES = str.maketrans({**dict.fromkeys("“”„‟", '"'), **dict.fromkeys("‘’‚‛", "'")})
BULLET = re.compile(r"^([ \t]*)[•‣◦▪▫●○∙⁃*+·-][ \t]+(?=\S)", re.MULTILINE)
NUMBER = re.compile(r"^([ \t]*[0-9]{1,3})\)[ \t]+(?=\S)", re.MULTILINE)


def quotes(text: str) -> str:
    """The text with straight quotes and apostrophes. Code in Markdown stays as it is, and so do « »."""
    return around_code(text, lambda part: part.translate(QUOTES))


def lists(text: str) -> str:
    """The text with list items as Markdown writes them: "- " for bullets and "*", "1. " for "1) ". Code stays."""
    return around_code(text, lambda part: NUMBER.sub(r"\1. ", BULLET.sub(r"\1- ", part)))
