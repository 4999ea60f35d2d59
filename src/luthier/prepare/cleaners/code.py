"""Code in Markdown, which no cleaner touches: fenced blocks, and `spans` within a line."""

from __future__ import annotations

import re
from collections.abc import Callable

FENCE = re.compile(r"^ {0,3}(`{3,}+|~{3,}+)[^\n`]*+$", re.MULTILINE)
SPAN = re.compile(r"(?<!`)(``?)(?!`)[^`\n]++\1(?!`)")
PRIVATE = range(0xE000, 0xF900)
"""Characters that stand for nothing: one that the text lacks marks where its code was."""


def around_code(text: str, change: Callable[[str], str]) -> str:
    """What `change` makes of the text, its code left alone: `change` sees a mark in place of each piece of code."""
    if "`" not in text and "~~~" not in text:
        return change(text)
    code = _code(text)
    mark = next(chr(c) for c in PRIVATE if chr(c) not in text)
    parts, at = [], 0
    for i, (start, end) in enumerate(code):
        parts += [text[at:start], f"{mark}{i}{mark}"]
        at = end
    changed = change("".join((*parts, text[at:])))
    return re.sub(f"{mark}([0-9]+){mark}", lambda m: text[slice(*code[int(m[1])])], changed)


def _code(text: str) -> list[tuple[int, int]]:
    """Where code is, in order. A fence that nobody closes reaches to the end (CommonMark 4.5)."""
    found: list[tuple[int, int]] = []
    opened: re.Match[str] | None = None
    at = 0
    for fence in FENCE.finditer(text):
        if opened is None:
            found += [span.span() for span in SPAN.finditer(text, at, fence.start())]
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[0].strip().strip("`~"):
            found.append((opened.start(), fence.end()))
            opened, at = None, fence.end()
    if opened is not None:
        return [*found, (opened.start(), len(text))]
    return [*found, *(span.span() for span in SPAN.finditer(text, at))]
