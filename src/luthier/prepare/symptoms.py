"""Symptoms: what is looked for in each clean row: characters that no keyboard wrote, wrong decoding, personal data.

Mojibake is known by its look alone, so that the audit says the same whether ftfy is installed or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from luthier.conversation import Conversation
from luthier.errors import printable
from luthier.prepare import privacy
from luthier.prepare.rows import Fault, Warn

INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, escapes of terminals, and marks that turn the direction of text."""


def _bytes_as(*encodings: str) -> str:
    """A class of the characters that these encodings take the second and later bytes of UTF-8 for."""
    later = bytes(range(0x80, 0xC0))
    return f"[{re.escape(''.join(sorted({*''.join(later.decode(name, 'ignore') for name in encodings)})))}]"


NEXT, CYRILLIC_NEXT = _bytes_as("latin-1", "cp1252"), _bytes_as("cp1251")
MOJIBAKE = re.compile(
    f"Ã{NEXT}|Â[\xa0-\xbf]|â[\x80-\x84€]{NEXT}|ï»¿|ï¿½|ð[\x9fŸ]{NEXT}{{2}}"  # accents, punctuation, marks, emoji
    f"|(?:[Â-ß]{NEXT}){{3,}}|(?:[à-ï]{NEXT}{{2}}){{2,}}"  # Greek and Cyrillic; Chinese and Japanese
    f"|(?:[РС]{CYRILLIC_NEXT}){{2,}}|\ufffd"  # Cyrillic in Windows-1251; what nothing brings back
)


def damaged(conversation: Conversation, warn: Warn) -> None:
    """Warn LU-D008 of characters that cannot be seen, LU-D043 of wrong decoding: once a row."""
    for message in conversation.messages:
        if message.content.isascii() and message.content.isprintable():
            continue
        if match := INVISIBLE.search(message.content):
            found = f"a character that cannot be seen: {printable(match[0])}"
            warn("LU-D008", conversation.source, found, "data.clean: [mojibake, unicode] mends or removes it")
            break
    for message in conversation.messages:
        if not message.content.isascii() and (match := MOJIBAKE.search(message.content)):
            found = f"decoded wrongly: {printable(match[0])}"
            warn("LU-D043", conversation.source, found, "data.clean: [mojibake] mends what can be mended")
            break


def personal(conversation: Conversation, policy: Literal["warn", "reject", "allow"], warn: Warn) -> None:
    """Warn LU-D044 of personal data, or raise it as a Fault: kinds and counts, no value. Tags are looked at too."""
    if policy == "allow":
        return
    said = (m.text for m in (*conversation.messages, *conversation.rejected))
    counts = privacy.counted(*said, *texts_in(conversation.tags))
    if not counts:
        return
    found = "personal data: " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    advice = "data.clean: [redact] replaces it; data.personal_data: allow says that it is meant"
    if policy == "reject":
        raise Fault("LU-D044", "", found, advice)
    warn("LU-D044", conversation.source, found, advice)


def texts_in(value: Any) -> Iterator[str]:
    """All texts, keys and numbers in JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)
