"""The exam: suites of questions, put to every model in the same way, and the answers on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from luthier.conversation import Conversation
from luthier.decoder import Decoder, score_all
from luthier.documents import windows
from luthier.encode import Encoded, Encoder
from luthier.errors import DataError, did_you_mean, printable
from luthier.evaluate.compare import Answers
from luthier.evaluate.suites.suite import Item, Suite, Text
from luthier.generate import drawn, generate, greedy
from luthier.machine import versions
from luthier.metric import Sample
from luthier.progress import Advance, Reporter

TEST = "test"


@dataclass(frozen=True, slots=True)
class Drawing:
    """How answers are written: the likeliest token each time, or drawn."""

    temperature: float = 0.0
    draws: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts to be answered, and how; one that is drawn several times stands there as often."""

    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    end_ids: frozenset[int]
    drawing: Drawing
    tokenizer: Any

    def answer(self, ids: Sequence[int]) -> Answer:
        """Of the ids before its end."""
        return Answer(self.tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids) >= self.max_new_tokens)


class Scorer:
    """One model's likelihoods. What several suites ask alike, such as a test row beside its misspelt form, is scored
    once."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._known: dict[bytes, float] = {}

    def __call__(self, encoded: Sequence[Encoded], tokens_at_once: int, name: str, report: Reporter) -> list[float]:
        """Summed negative log-likelihood of each one's learned tokens."""
        keys = [_what_is_scored(e) for e in encoded]
        new = {key: e for key, e in zip(keys, encoded, strict=True) if key not in self._known}
        if new:
            with report.bar(name, len(new)) as advance:
                nats = score_all(self.decoder, [*new.values()], tokens_at_once, advance)
            self._known |= zip(new, nats, strict=True)
        return [self._known[key] for key in keys]


def _what_is_scored(encoded: Encoded) -> bytes:
    """A hash of the tokens up to the last learned one, and of which of them are learned."""
    stop = encoded.last_learned + 1
    return hashlib.sha256(json.dumps([encoded.ids[:stop], encoded.learn[:stop]]).encode()).digest()


class Answer(NamedTuple):
    text: str
    cut: bool = False
    """Not ended within `max_new_tokens`."""


Write = Callable[[Decoder, Asked, Advance], list[Answer]]
"""The answers of the model to all prompts, in order."""


def write_here(decoder: Decoder, asked: Asked, advance: Advance) -> list[Answer]:
    """The answers of the model on this machine."""
    how = asked.drawing
    written = generate(
        decoder,
        asked.prompts,
        max_new_tokens=asked.max_new_tokens,
        end_ids=asked.end_ids,
        advance=advance,
        choose=drawn(how.temperature, how.seed) if how.temperature else greedy,
    )
    return [asked.answer(ids) for ids in written]


class Exam:
    """One suite, encoded: what is scored by likelihood, what is to be answered, and which choices there are.

    `tests` are conversations of the training data's form: the token that ends a turn in them is the one that ends an
    answer. A document of more than `window` tokens is scored in windows, as it is learned. Likelihoods are per token of
    the exam `like`, so that models of two tokenizers compare; None: of this one.
    """

    def __init__(
        self,
        suite: Suite,
        encoder: Encoder,
        *,
        tests: Sequence[Conversation],
        max_new_tokens: int,
        tokens_at_once: int,
        drawing: Drawing | None = None,
        window: int | None = None,
        like: Exam | None = None,
    ) -> None:
        self.suite, self._like = suite, like or self
        self._tokenizer, self._max_new_tokens, self._tokens_at_once = encoder.tokenizer, max_new_tokens, tokens_at_once
        self._scored = encoder.all(i.conversation for i in suite.items) if suite.scored else []
        self._windows = [
            windows(e, window if i.conversation.is_document else None)
            for e, i in zip(self._scored, suite.items, strict=bool(self._scored))
        ]
        self._asked = [n for n, i in enumerate(suite.items) if suite.written and i.conversation.prompt]
        self._prompts = [encoder.prompt(c.prompt, c.tools) for c in (suite.items[n].conversation for n in self._asked)]
        self._choices = _choices(encoder, suite.items)
        self._drawing = drawing or Drawing()
        self._end_ids = _end_ids(encoder, tests) if self._asked else set()

    def key(self, model: str, writer: str = "") -> str:
        """Hash of all that decides the answers of the model with this fingerprint.

        `writer`: the model's name at the servers that write them.
        """
        of = [(item.conversation, list(item.choices)) for item in self.suite.items]
        asked = [[c.id, c.source, c.family, c.tags, choices] for c, choices in of]
        scored = [e.ids for cut in self._windows for e in cut]
        ids = [scored, self._prompts, [[e.ids for e in c] for c in self._choices]]
        packages = versions(("luthier", "torch", "transformers"))
        how = [sorted(self._end_ids), self._max_new_tokens, asdict(self._drawing)] if self._prompts else []
        how += [writer] if writer and self._prompts else []
        what = [model, asked, ids, how, packages, [f.name for f in fields(Sample)]]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    def take(self, scorer: Scorer, name: str, report: Reporter, write: Write = write_here) -> list[Sample]:
        """The model's answers, and its likelihood of the references and of the choices.

        One sample an item, or as many as answers were drawn: `ID #2` is the second of an item.
        """
        items, shown = self.suite.items, f"{name}: {self.suite.name}"
        of_text = f"{shown}, likelihood"
        answers = self._written(scorer.decoder, f"{shown}, answers", report, write) if self._prompts else {}
        scored = iter(scorer([e for cut in self._windows for e in cut], self._tokens_at_once, of_text, report))
        nats = [sum(next(scored) for _ in cut) for cut in self._windows] or [0.0] * len(items)
        flat = [e for choices in self._choices for e in choices]
        of_choices = iter(scorer(flat, self._tokens_at_once, f"{shown}, choices", report))
        found = []
        for n, item in enumerate(items):
            choices = {name: next(of_choices) for name in item.choices} or None
            for k, answer in enumerate(answers.get(n, [Answer("")]), 1):
                made = sample_of(item, n_tokens=self._like._learned(n), nats=nats[n], answer=answer, choices=choices)
                found.append(made if k == 1 else replace(made, id=f"{made.id} #{k}"))
        return found

    def _written(self, decoder: Decoder, name: str, report: Reporter, write: Write) -> dict[int, list[Answer]]:
        """Item -> its answers, one of each draw."""
        prompts = self._prompts * self._drawing.draws
        asked = Asked(prompts, self._max_new_tokens, frozenset(self._end_ids), self._drawing, self._tokenizer)
        with report.bar(name, len(prompts)) as advance:
            answers = write(decoder, asked, advance)
        return {n: answers[at :: len(self._prompts)] for at, n in enumerate(self._asked)}

    def _learned(self, n: int) -> int:
        """Learned tokens of an item: of its conversation, or else of its first choice."""
        if self._scored:
            return self._scored[n].n_learned
        return self._choices[n][0].n_learned if self._choices[n] else 0


def _choices(encoder: Encoder, items: Sequence[Item]) -> list[list[Encoded]]:
    """What is scored of each item's choices: text after a beginning, or a chat up to where its last turn ends."""
    chats = iter(encoder.all(c for item in items for c in item.choices.values() if isinstance(c, Conversation)))

    def scored(choice: Conversation | Text, item: Item) -> Encoded:
        if isinstance(choice, Text):
            return encoder.continuation(choice.before, choice.scored, item.conversation.source)
        encoded = next(chats)
        stop = encoded.last_learned + 1
        return replace(encoded, ids=encoded.ids[:stop], learn=encoded.learn[:stop])

    return [[scored(choice, item) for choice in item.choices.values()] for item in items]


def _end_ids(encoder: Encoder, tests: Sequence[Conversation]) -> set[int]:
    return {encoder.tokenizer.eos_token_id} | {e.ids[e.last_learned] for e in encoder.all(tests)}


def dump_samples(samples: Sequence[Sample], of: str) -> bytes:
    """JSON lines, each marked with the suite it is `of`."""
    return "".join(json.dumps({"of": of, **asdict(s)}) + "\n" for s in samples).encode()


def check_clusters(cluster_by: str | None, tests: Sequence[Conversation]) -> list[str]:
    """A note where some test conversations have no such tag. Raises DataError LU-D102 where none has it."""
    missing = sum(cluster_by not in c.tags for c in tests)
    if cluster_by is None or not missing:
        return []
    if missing == len(tests):
        found = f"no test conversation has a tag called '{printable(cluster_by)}'"
        tags = {printable(tag) for c in tests for tag in c.tags}
        raise DataError.of("LU-D102", "evaluate.cluster_by", found, did_you_mean(cluster_by, tags))
    return [f"evaluate.cluster_by: {missing} of {len(tests)} test conversations have no such tag; they go by family"]


def load_answers(name: str, path: Path, cluster_by: str | None) -> Answers:
    """What `dump_samples` wrote of all suites; test samples are clustered by family, or by the tag `cluster_by`."""
    taken: dict[str, list[Sample]] = {TEST: []}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        taken.setdefault(row.pop("of"), []).append(Sample(**row))
    if cluster_by is not None:
        taken[TEST] = [replace(s, cluster=str(s.tags.get(cluster_by, s.cluster))) for s in taken[TEST]]
    return Answers(name, taken.pop(TEST), taken)


def sample_of(item: Item, *, n_tokens: int, nats: float, answer: Answer, choices: Mapping[str, float] | None) -> Sample:
    """An item with what one model made of it."""
    conversation = item.conversation
    return Sample(
        id=f"{conversation.id} {conversation.source}",
        cluster=conversation.family,
        prompt="\n".join(f"{m.role}: {m.text}" for m in conversation.prompt if m.role != "system"),
        reference=conversation.answer,
        answer=answer.text,
        nats=nats,
        n_tokens=n_tokens,
        n_bytes=sum(len(m.text.encode()) for m in conversation.messages if m.learned),
        tags=conversation.tags,
        choices=choices,
        cut=answer.cut,
    )
