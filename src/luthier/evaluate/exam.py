"""The exam: one set of questions, put to every model in the same way, and the answers on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from luthier.batch import make_batch, split_by_tokens
from luthier.conversation import Conversation, Message, make_conversation
from luthier.decoder import Decoder, score
from luthier.encode import Encoded, Encoder
from luthier.evaluate.compare import Answers
from luthier.generate import generate
from luthier.machine import versions
from luthier.metric import Sample
from luthier.progress import Reporter
from luthier.recipe import Recipe


class Exam:
    """Held-out conversations, whose last turn is to be answered, and the general probe's documents.

    Where the task has `labels`, each is also scored as the answer to each conversation.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Any,
        conversations: Sequence[Conversation],
        probe: Sequence[Conversation],
        labels: tuple[str, ...] = (),
    ) -> None:
        self._encoder = encoder = Encoder(tokenizer)
        self._recipe, self._tokenizer, self._labels = recipe, tokenizer, labels
        self._conversations, self._probe = conversations, probe
        self._encoded = [encoder(c) for c in conversations]
        self._probe_encoded = [encoder(c) for c in probe]
        self._asked = [i for i, c in enumerate(conversations) if c.prompt]
        self._prompts = [encoder.prompt(conversations[i].prompt) for i in self._asked]
        # The token that ends a turn in the data is the one that ends an answer.
        self._end_ids = {tokenizer.eos_token_id} | {e.ids[_last_learned(e)] for e in self._encoded}

    def key(self, model: str) -> str:
        """Hash of all that decides the answers of the model with this fingerprint."""
        asked = [[c.id, c.source, c.tags, e.ids] for c, e in self._everything]
        packages = versions(("luthier", "torch", "transformers"))
        what = [model, asked, self._labels, self._recipe.evaluate.max_new_tokens, packages]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def _everything(self) -> list[tuple[Conversation, Encoded]]:
        return [
            *zip(self._conversations, self._encoded, strict=True),
            *zip(self._probe, self._probe_encoded, strict=True),
        ]

    def take(self, decoder: Decoder, name: str, report: Reporter) -> Answers:
        """The model's greedy answers, and its likelihood of the references, of the labels and of the probe."""
        answers = [""] * len(self._conversations)
        with report.bar(f"{name}: answers", len(self._prompts)) as advance:
            written = generate(
                decoder,
                self._prompts,
                max_new_tokens=self._recipe.evaluate.max_new_tokens,
                end_ids=self._end_ids,
                advance=advance,
            )
        for i, ids in zip(self._asked, written, strict=True):
            answers[i] = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        nats = self._nats(decoder, self._encoded, f"{name}: likelihood", report)
        choices = self._choices(decoder, f"{name}: labels", report)
        general = self._nats(decoder, self._probe_encoded, f"{name}: general texts", report)
        return Answers(
            name,
            [_sample(*x) for x in zip(self._conversations, self._encoded, nats, answers, choices, strict=True)],
            [_sample(c, e, x, "", None) for c, e, x in zip(self._probe, self._probe_encoded, general, strict=True)],
        )

    def _choices(self, decoder: Decoder, name: str, report: Reporter) -> list[Mapping[str, float] | None]:
        """For each conversation that asks something, the nats of each label as its answer.

        The tree holds each prompt once and what labels share once: 77 labels cost their own tokens, not 77 prompts.
        """
        choices: list[Mapping[str, float] | None] = [None] * len(self._conversations)
        if n := len(self._labels):
            nats = self._nats(decoder, self._labelled, name, report)
            for at, i in enumerate(self._asked):
                choices[i] = dict(zip(self._labels, nats[at * n : (at + 1) * n], strict=True))
        return choices

    @cached_property
    def _labelled(self) -> list[Encoded]:
        """Each prompt with each label as the only thing learned, prompt by prompt, cut where the turn ends."""
        found = []
        for i in self._asked:
            prompt = [m.model_copy(update={"learn": False}) for m in self._conversations[i].prompt]
            for label in self._labels:
                answer = Message(role="assistant", content=label)
                encoded = self._encoder(make_conversation([*prompt, answer], self._conversations[i].source))
                stop = _last_learned(encoded) + 1
                found.append(replace(encoded, ids=encoded.ids[:stop], learn=encoded.learn[:stop]))
        return found

    def _nats(self, decoder: Decoder, encoded: Sequence[Encoded], name: str, report: Reporter) -> list[float]:
        """Summed negative log-likelihood of each conversation's learned tokens."""
        decoder.model.eval()
        place = {id(e): i for i, e in enumerate(encoded)}
        nats = [0.0] * len(encoded)
        with report.bar(name, len(encoded)) as advance:
            for group in split_by_tokens(encoded, self._recipe.train.tokens_per_micro_batch, share=decoder.shares):
                batch = make_batch(group, share=decoder.shares).to(decoder.device)
                for example, value in zip(group, score(decoder, batch).tolist(), strict=True):
                    nats[place[id(example)]] = value
                advance(len(group))
        return nats


def dump_answers(answers: Answers) -> bytes:
    """JSON lines: the held-out samples, then the probe's, each marked."""
    marked = [("test", s) for s in answers.samples] + [("general", s) for s in answers.general]
    return "".join(json.dumps({"of": of, **asdict(s)}) + "\n" for of, s in marked).encode()


def load_answers(name: str, path: Path, cluster_by: str | None) -> Answers:
    """What `dump_answers` wrote; held-out samples are clustered by family, or by the tag `cluster_by`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sides: dict[str, list[Sample]] = {"test": [], "general": []}
    for row in rows:
        sides[row.pop("of")].append(Sample(**row))
    if cluster_by is not None:
        sides["test"] = [replace(s, cluster=str(s.tags.get(cluster_by, s.cluster))) for s in sides["test"]]
    return Answers(name, sides["test"], sides["general"])


def _last_learned(encoded: Encoded) -> int:
    return max(t for t, learned in enumerate(encoded.learn) if learned)


def _sample(
    conversation: Conversation, encoded: Encoded, nats: float, answer: str, choices: Mapping[str, float] | None
) -> Sample:
    return Sample(
        id=f"{conversation.id} {conversation.source}",
        cluster=conversation.family,
        prompt="\n".join(f"{m.role}: {m.content}" for m in conversation.prompt if m.role != "system"),
        reference=conversation.answer,
        answer=answer,
        nats=nats,
        n_tokens=encoded.n_learned,
        n_bytes=sum(len(m.content.encode()) for m in conversation.messages if m.learned),
        tags=conversation.tags,
        choices=choices,
    )
