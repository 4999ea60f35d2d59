"""What a judge is asked, and how its reply is read.

What is judged is quoted as material between lines that begin with a mark. Mark and verdict code are hashes that the
material does not contain, so no answer can end its quotation or hold a verdict: a judge that repeats "grade: 5" has
said nothing. Beginnings of control tokens are broken by a space, because some servers would read them. What remains is
persuasion: no form keeps a judge from believing what it reads. All questions of a judge begin alike, up to the mark, so
that a prefix tree or a server's cache computes it once. This module knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from luthier.conversation import Message

By = Literal["reply", "likelihood"]
Form = Literal["rubric", "pairwise"]

CLOSING: Mapping[By, str] = {
    "reply": "Think it over in a few sentences at most. Then end your reply with one line of exactly this form, the "
    "dots being your verdict, {options}:\nverdict {code}: ...",
    "likelihood": "Reply with your verdict alone, {options}.",
}
REMINDER = (
    "That has no verdict that can be read. Reply with one line alone, of exactly this form, the dots being your "
    "verdict, {options}:\nverdict {code}: ..."
)
TITLES = {
    "reference": "reference answer, which need not be the only good one",
    "first": "first answer",
    "second": "second answer",
}
CONTROL = re.compile(r"<(?=[|｜]|/?(?:s|bos|eos|pad|unk|think|start_of_turn|end_of_turn)>)|\[(?=/?(?:INST|SYS)\])")
"""Where a control token of the usual chat templates would begin."""


@dataclass(frozen=True, slots=True)
class Question:
    messages: tuple[Message, ...]
    code: str
    """Begins the line that holds the verdict."""
    options: Mapping[str, float]
    """Verdict as it is said -> its value."""

    @property
    def key(self) -> str:
        """Hash of all that is asked."""
        return hashlib.sha256(json.dumps([m.content for m in self.messages]).encode()).hexdigest()

    def again(self, reply: str) -> tuple[Message, ...]:
        """What to say to a reply that cannot be read."""
        reminder = REMINDER.format(options=_listed(self.options), code=self.code)
        said = Message(role="assistant", content=reply or "(nothing)")
        return (*self.messages, said, Message(role="user", content=reminder))

    def read(self, reply: str) -> float | None:
        """The value of the verdict in the reply's last line, `verdict CODE: OPTION`; None for anything else.

        A reply with two different verdicts has none: it may quote one of them.
        """
        lines = [line.strip(" \t*`.").casefold() for line in reply.strip().splitlines()]
        start = f"verdict {self.code}:"
        said = [line.removeprefix(start).strip() for line in lines if line.startswith(start)]
        return self.options.get(said[0]) if len({*said}) == 1 and lines[-1].startswith(start) else None


def make_question(
    form: Literal["rubric", "pairwise"],
    by: By,
    criteria: str,
    options: Mapping[str, float],
    material: Mapping[str, str],
) -> Question:
    """The judge's whole prompt, as one message, because some templates take no system text.

    Args:
        form: Whose prompt: `prompts/FORM.txt`.
        by: How the verdict will be read.
        criteria: What the judge goes by, in the recipe's words.
        options: Verdict as it is said -> its value.
        material: What is judged: `request`, `reference`, and `answer` or `first` and `second`.
    """
    quoted = {what: CONTROL.sub(lambda begun: f"{begun.group()} ", text) for what, text in material.items()}
    mark, code = _marks(criteria, quoted)
    listed = _listed(options)
    parts = [f"{mark} {TITLES.get(what, what)}:\n{text}\n{mark} end" for what, text in quoted.items()]
    content = prompt(form).format(
        question=criteria,
        options=listed,
        low=min(options, key=options.__getitem__),
        high=max(options, key=options.__getitem__),
        mark=mark,
        material="\n\n".join(parts),
        closing=CLOSING[by].format(options=listed, code=code),
    )
    return Question((Message(role="user", content=content.strip()),), code, options)


@cache
def prompt(form: Form) -> str:
    return files("luthier").joinpath("evaluate", "prompts", f"{form}.txt").read_text(encoding="utf-8")


def _marks(criteria: str, quoted: Mapping[str, str]) -> tuple[str, str]:
    """A mark and a code that stand in none of the texts; the same for the same texts."""
    whole = "\n".join((criteria, *quoted.values())).lower()
    attempt = 0
    while True:
        digest = hashlib.sha256(json.dumps([attempt, criteria, dict(quoted)]).encode()).hexdigest()
        mark, code = digest[:12], digest[12:20]
        if mark not in whole and code not in whole:
            return mark, code
        attempt += 1


def _listed(options: Mapping[str, float]) -> str:
    words: Sequence[str] = [*options]
    return f"{', '.join(words[:-1])} or {words[-1]}"
