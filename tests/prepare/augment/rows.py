"""What the tests of `augment` share: conversations, candidates of a method, and what the machine must have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from luthier.conversation import Conversation, Message, make_conversation
from luthier.prepare.augment.contract import Asked, Augment, Unmade

WORDNET = Path("/usr/share/wordnet/index.noun")
needs_wordnet = pytest.mark.skipif(not WORDNET.is_file(), reason="apt-get install wordnet-base")
needs_apertium = pytest.mark.skipif(
    not all(Path(f"/usr/share/apertium/modes/{m}.mode").is_file() for m in ("en-eo", "eo-en", "eng-spa", "spa-eng")),
    reason="apt-get install apertium apertium-eo-en apertium-eng-spa",
)


def talk(*texts: str, source: str = "x.jsonl:1") -> Conversation:
    roles = ["user", "assistant"] * len(texts)
    return make_conversation(
        [Message(role=r, content=t) for r, t in zip(roles, texts, strict=False)],  # type: ignore[arg-type]
        source,
    )


def plain(text: str) -> Conversation:
    return make_conversation([Message(role="text", content=text)], "x.jsonl:1")


def made(augment: Augment, conversation: Conversation, n: int = 1, seed: int = 0) -> Iterator[Conversation | Unmade]:
    if ahead := getattr(augment, "ahead", None):
        ahead([Asked(conversation, Random(seed), n)], [conversation])
    return islice(augment(conversation, Random(seed)), n)


def asked(augment: Augment, text: str, n: int = 1, seed: int = 0) -> list[str]:
    """What a method makes of a question: texts, or why there is none."""
    found = made(augment, talk(text, "yes"), n, seed)
    return [one.reason if isinstance(one, Unmade) else one.messages[0].content for one in found]
