"""Small conversations with ragged masks, prepared as the prepare room leaves them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import recipe as recipes
from luthier.conversation import Conversation, Message, make_conversation, write_conversations
from luthier.settings import Recipe


class NoKeeper:
    """Keeps nothing of a training."""

    def save(self, step: int, progress: dict[str, Any], best_step: int) -> None: ...

    def restore(self, step: int) -> None: ...


WORDS = "the kettle lid is blue and holds seven cups of tea while rain falls on the green garden shed".split()


def conversations(n: int, seed: int = 0) -> list[Conversation]:
    """Half of them open with one system text; answers have 1 to 12 words."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        messages = [
            Message(role="user", content=" ".join(rng.choices(WORDS, k=rng.randint(1, 9)))),
            Message(role="assistant", content=" ".join(rng.choices(WORDS, k=rng.randint(1, 12)))),
        ]
        if i % 2:
            messages.insert(0, Message(role="system", content="You are the assistant of a garden shop. Be brief."))
        found.append(make_conversation(messages, f"rows.jsonl:{i + 1}"))
    return found


def prepared(folder: Path, n: int = 40) -> Path:
    """A folder with the three sides."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = conversations(n + 16)
    sides: dict[str, Sequence[Conversation]] = {"train": rows[:n], "validation": rows[n : n + 8], "test": rows[n + 8 :]}
    for side, members in sides.items():
        write_conversations(folder / f"{side}.jsonl", members)
    return folder


def make_recipe(**train: Any) -> Recipe:
    """A recipe of two epochs for the tiny model; `train` overrides its training settings."""
    method = train.pop("adapt", {"method": "lora", "rank": 4})
    settings = {"epochs": 2, "examples_per_step": 8, "learning_rate": 1e-2, "save_every_s": 0.0} | train
    tree = {
        "name": "tiny",
        "data": {"sources": [{"path": "rows.jsonl"}]},
        "model": {"adapt": method},
        "train": settings,
        "release": {"rules": [{"metric": "perplexity", "must": "beat_baseline"}]},
    }
    return recipes.validate(tree, "test recipe", Path())
