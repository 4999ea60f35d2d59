"""Control strings inside a text, broken so that no tokenizer and no template takes them for tokens.

A guard is a private-use character that is put into each control string, and at the edges of a text whose end or
beginning is a piece of one. `encode.py` takes the guards out again once the template's own tokens are told apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# Private-use code points: absent from real text; a row that holds them is refused (LU-D052).
GUARD, OPEN, CLOSE = "\uf8f0", "\uf8f1", "\uf8f2"


def any_of(words: set[str]) -> re.Pattern[str]:
    """Longest first: `<think>` must not hide `<think>x`."""
    return re.compile("|".join(map(re.escape, sorted(words, key=lambda w: (-len(w), w)))) or r"(?!)")


@dataclass(frozen=True, slots=True)
class Guard:
    """Breaks every control string inside a text, and every piece of one at its edges.

    A template that joins `<|im_` from one message with `end|>` from its own text would make a token.
    """

    whole: re.Pattern[str]
    beginnings: frozenset[str]
    ends: frozenset[str]
    longest: int
    joined: str

    @classmethod
    def against(cls, words: set[str]) -> Guard:
        cuts = [(w, n) for w in words for n in range(1, len(w))]
        return cls(
            any_of(words),
            frozenset(w[:n] for w, n in cuts),
            frozenset(w[n:] for w, n in cuts),
            max(map(len, words), default=0),
            OPEN.join(words),
        )

    def __call__(self, content: str) -> str:
        content = self.whole.sub(lambda m: m.group()[0] + GUARD + m.group()[1:], content)
        body = content.strip()
        lengths = range(1, min(self.longest, len(body) + 1))
        inside = 0 < len(body) < self.longest and body in self.joined
        if inside or any(body[-n:] in self.beginnings for n in lengths):
            content = content.replace(body, body + GUARD, 1)
        if any(body[:n] in self.ends for n in lengths):
            content = content.replace(body, GUARD + body, 1)
        return content

    def inside(self, value: Any) -> Any:
        """JSON with every text in it guarded, the names of its objects too."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(name): self.inside(inner) for name, inner in value.items()}
        return [self.inside(inner) for inner in value] if isinstance(value, list | tuple) else value
