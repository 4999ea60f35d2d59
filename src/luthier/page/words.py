"""Numbers and texts as pages and cards show them: one place decides how many digits a number gets.

It knows nothing of HTML or Markdown, nor of results.
"""

from __future__ import annotations

import math
import re

JOINERS = "\u200c\u200d"  # shape Persian and Indic words and emoji; they hide nothing


def visible(text: str) -> str:
    """Text as it may be shown: control, bidirectional and other invisible characters as escapes.

    Line ends, tabs, wide and no-break spaces and the joiners of scripts and emoji stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t\xa0\u3000" or c in JOINERS else c.encode("unicode_escape").decode()
        for c in text.replace("\r\n", "\n")
    )


def number(value: float, decimals: int | None = None) -> str:
    """`1,234.5`; without `decimals`, three significant digits. Minus is the true sign."""
    if decimals is None:
        decimals = 0 if float(value).is_integer() else decimals_for(abs(value), significant=3)
    shown = f"{value:,.{decimals}f}"
    if not has_size(shown):
        shown = shown.removeprefix("-")
    return shown.replace("-", "−")


def has_size(shown: str) -> bool:
    """Whether a shown number is not zero."""
    return any(c in "123456789" for c in shown)


def decimals_for(width: float, significant: int = 2) -> int:
    """Decimals that show `width` with so many significant digits: 0.063 -> 3, 12.4 -> 0; 3 for no width."""
    return min(max(significant - 1 - math.floor(math.log10(width)), 0), 8) if width else 3


def fact(value: str | int | float | None) -> str:
    """A cell of a table of facts: `1,234`, `0.0009`; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return (f"{value:,}" if isinstance(value, int) else f"{value:.3g}").replace("-", "−")


def percent(fraction: float) -> str:
    """`95 %`, `3.5 %`: at most three significant digits; the space does not break."""
    return f"{fraction * 100:.3g}\xa0%"


def share(span: tuple[float, float, float]) -> str:
    """A share with its interval: `83 % (61 to 94)`, in whole per cent."""
    value, low, high = (f"{100 * part:.0f}" for part in span)
    return f"{value}\xa0% ({low} to {high})"


def count(n: float, noun: str, plural: str = "") -> str:
    """`1 sample`, `1,200 samples`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def sentence(text: str) -> str:
    """`text` with a full stop, true minus signs, and a capital unless it starts with a name like `rougeL`."""
    text = re.sub(r"(?<!\S)-(?=\d)", "−", text.strip())
    first = text.split(" ", 1)[0]
    if first.isalpha() and first.islower():
        text = text[0].upper() + text[1:]
    return text if not text or text.endswith((".", "!", "?", ":")) else text + "."


def duration(seconds: float) -> str:
    """`4.2 s`, `12 min 3 s`, `5 h 2 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
