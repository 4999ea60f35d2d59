"""Clean: the recipe's text cleaners, run on each message of a row before it is encoded. Every change is counted.

    cleaning = Cleaning(recipe, folder)          each cleaner found, its parameters tried on an empty text
    cleaning.survey(rows)                        those that must see all texts first
    cleaning(conversation)                       a conversation of clean messages, or a Fault
    cleaning.hiding                              what keeps personal data out of rejects, findings and errors

Promises: cleaners run in the recipe's order; no message becomes blank, its row is rejected instead (LU-D120); no sample
of a change shows personal data. It knows no cleaner by name.
"""

from __future__ import annotations

import html
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from luthier.conversation import ROLES, Conversation, Message, with_messages
from luthier.errors import DataError, LuthierError, Problem, printable
from luthier.plugins import CLEANERS
from luthier.prepare import privacy
from luthier.prepare.cleaners import Traits, traits_of
from luthier.prepare.cleaners.characters import unicode
from luthier.prepare.rows import Fault, Row
from luthier.records import Cleaned
from luthier.settings import Cleaner, Recipe

N_SAMPLES, SAMPLE_TRIES = 3, 50
AROUND = 60
"""Characters of a sample before and after its first change."""
N_COUNTED = 20


@dataclass(slots=True)
class Done:
    """What a cleaner has done."""

    n_rows: int = 0
    n_texts: int = 0
    n_before: int = 0
    n_after: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[str, str]] = field(default_factory=list)
    tries: int = 0

    def wants_samples(self) -> bool:
        """Counts as a try: where nothing may be shown, looking for something that may comes to an end."""
        self.tries += 1
        return len(self.samples) < N_SAMPLES and self.tries <= SAMPLE_TRIES

    def add(self, later: Done) -> None:
        self.n_rows += later.n_rows
        self.n_texts += later.n_texts
        self.n_before += later.n_before
        self.n_after += later.n_after
        self.counts += later.counts
        self.samples = [*self.samples, *later.samples][:N_SAMPLES]


@dataclass(slots=True)
class Step:
    """One cleaner of the recipe, and what it has done."""

    name: str
    clean: Callable[..., str]
    params: dict[str, Any]
    roles: frozenset[str]
    traits: Traits
    where: str
    done: Done = field(default_factory=Done)

    def __call__(self, text: str, source: str = "") -> str:
        """Raises DataError LU-D122 for a cleaner that fails, or returns what is no text."""
        where = f"{source}: {self.where}" if source else self.where
        try:
            made = self.clean(text, **self.params)
        except LuthierError:
            raise
        except Exception as error:  # one's own cleaner may raise anything; its message may hold the text
            raise DataError.of("LU-D122", where, f"cleaner '{self.name}' failed: {type(error).__name__}") from error
        if not isinstance(made, str) or not _is_text(made):
            what = "half a character" if isinstance(made, str) else f"{type(made).__name__}, not a text"
            raise DataError.of("LU-D122", where, f"cleaner '{self.name}' returned {what}")
        return made

    def count(self, before: str, after: str) -> None:
        done = self.done
        done.n_texts += 1
        done.n_before += len(before)
        done.n_after += len(after)
        if self.traits.count:
            done.counts += self.traits.count(before, after)


@dataclass(frozen=True, slots=True)
class Change:
    step: Step
    place: int | None
    """The message's; None: a tag."""
    before: str
    after: str


class Hiding:
    """Keeps personal data out of what people read, and out of the rejects if the recipe wants it out of the data."""

    def __init__(self, steps: Iterable[Step], rejects: bool) -> None:
        self.steps = [step for step in steps if step.traits.hides]
        self.rows = rejects or bool(self.steps)
        """Whether rejects are hidden too."""

    def text(self, text: str) -> str:
        for step in self.steps:
            text = step(text)
        return privacy.masked(text)

    def finding(self, text: str) -> str:
        """As `text`, for what may quote a row and was cut: half a value cannot be found, so the quotation goes."""
        if self.rows and "..." in text:
            text = text.partition("'")[0] + "(not shown)"
        return self.text(text)

    def value(self, value: Any) -> Any:
        """JSON with every text, key and number in it hidden."""
        return _each_text(value, self.text)

    def row(self, row: Row) -> str | None:
        """What is kept of a rejected row; None for one that could not be read: what is in it cannot be told."""
        if not self.rows:
            return row.kept_raw()
        return json.dumps(self.value(row.data), ensure_ascii=False, default=str) if row.data else None

    def error(self, error: DataError) -> DataError:
        return type(error)(*(Problem(p.code, p.where, *map(self.finding, (p.found, p.advice))) for p in error.problems))


class Cleaning:
    """Raises RecipeError LU-R010 to LU-R012 and DataError LU-D108 (a package is missing) before a row is read."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        named = [(i, use) for i, use in enumerate(recipe.data.clean) if isinstance(use, Cleaner)]
        self.steps = [_step(use, f"data.clean.{i}", recipe.seed, folder) for i, use in named]
        self.hiding = Hiding(self.steps, rejects=recipe.data.personal_data == "reject")
        self.rejects = bool(self.steps) or recipe.data.personal_data == "reject"
        """Whether a row may be rejected here."""
        for step in self.steps:
            step("")
        self._made_of = recipe, folder

    def __reduce__(self) -> tuple[Callable[..., Cleaning], tuple[Any, ...]]:
        recipe, folder = self._made_of
        # Functions of a module beside the recipe are not known by name elsewhere: they are found there anew.
        return _again, (recipe, folder.absolute(), [step.params for step in self.steps])

    def again(self) -> Cleaning:
        """The same cleaners, with what the survey told them, that have done nothing yet."""
        return _again(*self._made_of, [step.params for step in self.steps])

    def add(self, done: Iterable[Done]) -> None:
        """What the steps have done to the rows that follow."""
        for step, later in zip(self.steps, done, strict=True):
            step.done.add(later)

    def survey(self, rows: Callable[[], Iterable[Conversation]]) -> None:
        """Show `rows`, as the steps before leave them, to each step that must see all texts before the first."""
        for i, step in enumerate(self.steps):
            if step.traits.survey:
                found = (self._through(self.steps[:i], m) for c in rows() for m in c.messages if m.role in step.roles)
                step.params |= step.traits.survey((text for text in found if text.strip()), **step.params)

    def _through(self, steps: Iterable[Step], message: Message) -> str:
        text = message.content
        for step in steps:
            text = step(text) if message.role in step.roles else text
        return text

    def __call__(self, conversation: Conversation) -> Conversation:
        """The conversation cleaned, with the id of its new content. Raises Fault LU-D120 for a text that is gone."""
        if not self.steps:
            return conversation
        if conversation.tokens:
            raise Fault("LU-D120", "", "token ids cannot be cleaned", "clean the texts before they are tokenised")
        changes: list[Change] = []
        said = (*conversation.messages, *conversation.rejected)
        cleaned = [self._message(m, m.role, i, conversation.source, changes) for i, m in enumerate(said)]
        tags = self._hidden(conversation.tags, changes)
        if not changes:
            return conversation
        for change in changes:
            change.step.count(change.before, change.after)
        for step in {id(change.step): change.step for change in changes}.values():
            step.done.n_rows += 1
        self._sample(changes, [m.content for m in cleaned])
        return _with(conversation, cleaned, tags)

    def request(self, conversation: Conversation) -> Conversation:
        """A request that is no row: a text as the user's turn, and nothing is counted. Raises Fault LU-D120."""
        roles = {"text": "user"}
        messages = [
            self._message(m, roles.get(m.role, m.role), i, conversation.source, [])
            for i, m in enumerate(conversation.messages)
        ]
        return _with(conversation, messages, self._hidden(conversation.tags, []))

    def _message(self, message: Message, role: str, place: int, source: str, changes: list[Change]) -> Message:
        text = message.content
        for step in self.steps:
            if role not in step.roles:
                continue
            before, text = text, step(text, source)
            if before.strip() and not text.strip():
                found = f"cleaner '{step.name}' leaves nothing of {len(before):,} characters"
                advice = "bind the cleaner to other roles, or leave the row out"
                raise Fault("LU-D120", f"messages[{place}]", found, advice)
            if text != before:
                changes.append(Change(step, place, before, text))
        calls = tuple(
            call.model_copy(update={"arguments": self._hidden(call.arguments, changes)}) for call in message.tool_calls
        )
        return message.model_copy(update={"content": text, "tool_calls": calls})

    def _hidden(self, value: dict[str, Any], changes: list[Change]) -> dict[str, Any]:
        """What is no text of a message, columns and arguments of calls, is only kept from being read."""

        def changed(step: Step, text: str) -> str:
            made = step(text)
            if made != text:
                changes.append(Change(step, None, text, made))
            return made

        for step in self.hiding.steps:
            value = _each_text(value, partial(changed, step))
        return value

    def _sample(self, changes: list[Change], final: list[str]) -> None:
        """Keep what may be shown: of a row with personal data anywhere on its way, only what is left in the end."""
        wanting = [c for c in changes if c.place is not None and c.step.done.wants_samples()]
        if not wanting or not all(map(self._may_be_shown, final)):
            return
        hidden = any(c.step.traits.hides for c in changes)
        for change in wanting:
            if change.step.traits.hides and change.place is not None:
                change.step.done.samples.append(("(not shown)", _end_of(change, final[change.place])))
            elif not hidden and self._may_be_shown(change.before) and self._may_be_shown(change.after):
                change.step.done.samples.append(_difference(change.before, change.after))

    def _may_be_shown(self, text: str) -> bool:
        """Whether nothing personal is found in the text, nor in what a later cleaner or a browser would make of it."""
        readings = {text, unicode(html.unescape(text)), unquote(text)}
        return all(self.hiding.text(reading) == reading for reading in readings)

    def done(self) -> tuple[Cleaned, ...]:
        """What each cleaner did, for the audit."""
        return tuple(
            Cleaned(
                cleaner=step.name,
                roles=tuple(role for role in ROLES if role in step.roles),
                rows=step.done.n_rows,
                texts=step.done.n_texts,
                characters=(step.done.n_before, step.done.n_after),
                counts={
                    printable(self.hiding.text(what), 200): n for what, n in step.done.counts.most_common(N_COUNTED)
                },
                samples=tuple(step.done.samples[:N_SAMPLES]),
            )
            for step in self.steps
        )


def _again(recipe: Recipe, folder: Path, params: list[dict[str, Any]]) -> Cleaning:
    cleaning = Cleaning(recipe, folder)
    for step, given in zip(cleaning.steps, params, strict=True):
        step.params = given
    return cleaning


def _with(conversation: Conversation, said: list[Message], tags: dict[str, Any]) -> Conversation:
    """The same conversation with other messages, rejected ones at their end, and tags."""
    n = len(conversation.messages)
    return with_messages(conversation, said[:n], rejected=tuple(said[n:]), tags=tags, family=None)


def _step(use: Cleaner, where: str, seed: int, folder: Path) -> Step:
    function = CLEANERS.find(use.use, where, folder)
    traits, params = traits_of(function), use.params
    if "seed" in inspect.signature(function).parameters:
        params.setdefault("seed", seed)
    return Step(use.use, function, params, frozenset(use.roles or traits.roles), traits, where)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """JSON with `change` made to every text, key and number in it; a number stays one unless it is changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): _each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(inner, change) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = str(value)
        return value if (made := change(shown)) == shown else made
    return value


def _is_text(text: str) -> bool:
    """Whether it can be written: half a character cannot."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _difference(before: str, after: str) -> tuple[str, str]:
    """Both around the first place where they differ, as they may be shown."""
    at = next(i for i, (a, b) in enumerate(zip_longest(before, after)) if a != b)
    return _around(before, at), _around(after, at)


def _end_of(change: Change, final: str) -> str:
    """What a hidden text became, around the place if it is still the same."""
    at = next(i for i, (a, b) in enumerate(zip_longest(change.before, change.after)) if a != b)
    return _around(final, at if final == change.after else 0)


def _around(text: str, at: int) -> str:
    start, end = max(0, at - AROUND), at + AROUND
    cut = "..." * (start > 0) + text[start:end] + "..." * (end < len(text))
    return printable(cut, 4 * AROUND)
