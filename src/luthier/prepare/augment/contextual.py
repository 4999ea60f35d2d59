"""Contextual augmentation: a language model writes the request in other words, or other requests of the same label.

It is shown the request and, as examples of how people write, some of the training data: of the same label where answers
are labels. The examples of a row are those that come first in an order drawn by seed and the row's own id, so another
row in the data changes them only if it comes among these first. Replies are the likeliest ones (temperature 0), kept on
disk, and their tokens counted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from pathlib import Path
from random import Random
from typing import Literal

from luthier.conversation import Conversation, Message
from luthier.errors import DataError
from luthier.prepare.augment.asking import Asking, connect
from luthier.prepare.augment.contract import Asked, Told, Unmade, changeable, check_choice, replaced
from luthier.prepare.split import draw_key

POOL = 2_000
"""Of each label at most so many training rows are looked at for examples."""
MAX_EXAMPLE_CHARACTERS = 400
Task = Literal["paraphrase", "similar"]
_TASKS = {
    "paraphrase": "Rewrite the request below in {n} other ways. Keep exactly what is asked, and every name, number,"
    " link, {{slot}} and quotation as it is written.",
    "similar": "Write {n} other requests of the same kind as the one below, which would deserve the very same answer,"
    " on other details and in other words.",
}
_FORM = "One a line, numbered 1., 2. and so on, and nothing else."


def contextual(
    *,
    folder: Path,
    seed: int,
    labelled: bool,
    model: str,
    url: str | Sequence[str] | None = None,
    key_env: str | None = None,
    write: str = "paraphrase",
    examples: int = 4,
    max_new_tokens: int = 512,
    timeout_s: float = 60.0,
    at_once: int = 4,
) -> Contextual:
    """Args:
        folder: The recipe's.
        seed: The recipe's.
        labelled: Whether answers are labels.
        model: With `url` the model's name there, else a base model as in `model.base`, run on this machine.
        url: Where an OpenAI-compatible server answers, up to and with /v1; one or several.
        key_env: The environment variable that holds the key.
        write: paraphrase, or similar: other requests with the same label.
        examples: How many training rows are shown.
        max_new_tokens: Of a reply.
        timeout_s: Of one try.
        at_once: Requests in flight for each url.

    Raises DataError LU-D146; ModelError LU-M001, LU-M006.
    """
    check_choice("contextual", "write", [write], list(_TASKS))
    if write == "similar" and not labelled:
        found = "write: similar needs labels: another request deserves another answer"
        raise DataError.of("LU-D146", "data.augment: contextual.write", found, "write: paraphrase")
    asking = connect(
        "contextual", folder=folder, model=model, url=url, key_env=key_env, max_new_tokens=max_new_tokens,
        timeout_s=timeout_s, at_once=at_once,
    )  # fmt: skip
    return Contextual(asking, _TASKS[write], examples, seed, labelled)


class Contextual:
    def __init__(self, asking: Asking, task: str, n_examples: int, seed: int, labelled: bool) -> None:
        self._asking, self._task, self._n_examples = asking, task, n_examples
        self._seed, self._labelled = seed, labelled
        self._written: dict[str, list[str] | Unmade] = {}

    def __call__(self, conversation: Conversation, rng: Random) -> Iterator[Conversation | Unmade]:
        """The last thing that the user said, as the model wrote it."""
        written = self._written[conversation.id]
        if isinstance(written, Unmade):
            yield written
            return
        place = changeable(conversation)[-1]
        yield from (replaced(conversation, {place: text}) for text in written)

    def ahead(self, asked: Sequence[Asked], train: Sequence[Conversation]) -> None:
        pools = self._pools(train)
        able = [one for one in asked if _last_request(one.conversation) is not None]
        for one in asked:
            self._written[one.conversation.id] = Unmade("plain text")
        replies = self._asking([self._question(one, pools[self._label(one.conversation)]) for one in able])
        for one, reply in zip(able, replies, strict=True):
            lost = Unmade("no reply" if reply.failure is not None else "a reply without a request")
            self._written[one.conversation.id] = read_numbered(reply.text) or lost

    def told(self) -> Told:
        return Told(tokens=self._asking.tokens)

    def _label(self, conversation: Conversation) -> str:
        return conversation.answer if self._labelled else ""

    def _pools(self, train: Sequence[Conversation]) -> defaultdict[str, list[tuple[str, str]]]:
        """Label -> id and request of the rows that may be shown."""
        pools: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for c in train:
            request = _last_request(c)
            if request is not None and len(request) <= MAX_EXAMPLE_CHARACTERS:
                pools[self._label(c)].append((c.id, request))
        for label, pool in pools.items():
            pools[label] = nsmallest(POOL, pool, key=lambda row: draw_key(self._seed, row[0]))
        return pools

    def _question(self, asked: Asked, pool: Sequence[tuple[str, str]]) -> list[Message]:
        own = asked.conversation.id
        others = {row[1]: row for row in pool if row[0] != own}.values()
        shown = nsmallest(self._n_examples, others, key=lambda row: draw_key(self._seed, f"{own}:{row[0]}"))
        lines = "\n".join(f"- {' '.join(request.split())}" for _, request in shown)
        about = f"People write such requests:\n{lines}\n\n" if shown else ""
        task = self._task.format(n=asked.n)
        request = _last_request(asked.conversation)
        return [Message(role="user", content=f"{about}{task} {_FORM}\n\nRequest: {request}")]


def _last_request(conversation: Conversation) -> str | None:
    places = [i for i in changeable(conversation) if conversation.messages[i].role == "user"]
    return conversation.messages[places[-1]].content if places else None


def read_numbered(text: str) -> list[str]:
    """The items of a numbered list, without quotation marks around them; a reply that is one line is one item."""
    items = re.findall(r"^[ \t]*(?:\d+[.):]|[-*•])[ \t]*(\S.*?)[ \t]*$", text, flags=re.MULTILINE)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = items or (lines if len(lines) == 1 else [])
    return [m[1] if (m := re.fullmatch(r"[\"“](.*)[\"”]", item)) else item for item in found]
