"""The general probe: short texts of many kinds that ship with Luthier, for perplexity before and after.

They were written for this purpose, so no base model was trained on them, and they are not samples of the
base model, on which any change looks worse.
"""

from __future__ import annotations

import json
from importlib.resources import files

from luthier.conversation import Conversation, Message, make_conversation


def probe_documents(limit: int | None = None) -> list[Conversation]:
    """The documents as plain text, spread over the kinds if `limit` asks for fewer."""
    lines = files("luthier").joinpath("probe", "general.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines]
    n = min(limit or len(documents), len(documents))
    chosen = [documents[i * len(documents) // n] for i in range(n)]
    return [
        make_conversation([Message(role="text", content=d["text"])], f"probe:{d['id']}", {"kind": d["kind"]})
        for d in chosen
    ]
