"""What the advice knows of data and distance: how much there is to learn, and how far it is from what the base does.

    n rows, D hidden size, L labels

Distance is measured in three ways: the base's nll on this data against general text, and, where answers are labels, the
share that it chooses rightly before any training and the share that a linear classifier reads off its hidden states.
Rows are drawn by the recipe's seed: files come sorted. Every fact is one that a rule reads (`advise_rules.FACTS`).
Knows nothing of techniques.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from luthier.batch import make_batch, split_by_tokens
from luthier.conversation import Conversation, read_conversations
from luthier.decoder import Decoder, score_all
from luthier.encode import Encoded, Encoder
from luthier.evaluate.suites.general import probe_documents
from luthier.prepare.split import draw_key
from luthier.records import AuditReport
from luthier.settings import Recipe
from luthier.train.data import StepData

ROWS = 48
"""By which the nll on this data, and that on general text, are told."""
LABEL_ROWS, LABELS_SCORED = 48, 2_000
"""Rows whose labels are all scored; with many labels, fewer rows."""
PROBE_ROWS, PROBE_ROWS_A_LABEL, PROBE_TESTS = 640, 16, 128
RIDGE = 1.0
"""Times the number of rows: the classifier's penalty on standardised states."""


class _Row(Protocol):
    @property
    def id(self) -> str: ...


RowT = TypeVar("RowT", bound=_Row)


def measure(recipe: Recipe, prepared: Path, data: StepData, decoder: Decoder, tokenizer: Any) -> dict[str, float]:
    """Facts of the prepared data in this folder, which `data` holds encoded; the decoder is the base's."""
    encoder, at_once = Encoder(tokenizer), recipe.train.tokens_per_micro_batch
    nll_data = _nll(decoder, drawn(data.validation, recipe.seed)[:ROWS], at_once)
    texts = [encoder(c) for c in probe_documents(ROWS)]
    n_learned = sum({e.id: e.n_learned for e in data.train}.values())
    rules = recipe.release.rules
    facts = {
        "n_train": float(len(data.train)),
        "to_learn_bits": n_learned * nll_data / math.log(2),
        "gap_nats": nll_data - _nll(decoder, texts, at_once),
        "keeps_general": float(any(r.metric == "general_perplexity" and r.must == "not_regress" for r in rules)),
    }
    audit = AuditReport.read(prepared / "audit.json")
    if audit.task != "classification" or len(audit.labels) < 2:
        return facts
    train, validation = (_labelled(prepared / f"{side}.jsonl", audit, recipe.seed) for side in ("train", "validation"))
    if validation:
        facts["zero_shot"] = zero_shot(decoder, encoder, validation, audit.labels, at_once)
    if validation and len({c.answer for c in train}) > 1:
        facts["probe"] = probe(decoder, encoder, train, validation, audit.labels, at_once)
    return facts


def drawn(rows: Sequence[RowT], seed: int) -> list[RowT]:
    """In an order drawn by the seed."""
    return sorted(rows, key=lambda row: draw_key(seed, f"advice:{row.id}"))


def _labelled(side: Path, audit: AuditReport, seed: int) -> list[Conversation]:
    """Its rows that ask for a label, in drawn order: texts may be replayed beside them."""
    return drawn([c for c in read_conversations(side) if c.prompt and c.answer in audit.labels], seed)


def _nll(decoder: Decoder, examples: Sequence[Encoded], at_once: int) -> float:
    """Nats a learned token: total over total."""
    return float(sum(score_all(decoder, examples, at_once)) / sum(e.n_learned for e in examples))


def zero_shot(
    decoder: Decoder, encoder: Encoder, rows: Sequence[Conversation], labels: Sequence[str], at_once: int
) -> float:
    """Balanced share of rows whose own label is the likeliest answer, each label scored as a whole answer."""
    rows = rows[: max(min(LABEL_ROWS, LABELS_SCORED // len(labels)), 1)]
    asked = [encoder(_answered(row, label)) for row in rows for label in labels]
    nats = torch.tensor(score_all(decoder, asked, at_once)).view(len(rows), len(labels))
    return _balanced([labels[i] for i in nats.argmin(1).tolist()], [row.answer for row in rows])


def _balanced(said: Sequence[str], true: Sequence[str]) -> float:
    """Mean over the labels of the share that is right: always the commonest label is worth nothing here."""
    shares = [[s == t for s, t in zip(said, true, strict=True) if t == label] for label in sorted(set(true))]
    return fmean(map(fmean, shares))


def _answered(row: Conversation, label: str) -> Conversation:
    *before, last = row.messages
    return row.model_copy(update={"messages": (*before, last.model_copy(update={"content": label}))})


@torch.no_grad()
def probe(
    decoder: Decoder,
    encoder: Encoder,
    train: Sequence[Conversation],
    tests: Sequence[Conversation],
    labels: Sequence[str],
    at_once: int,
) -> float:
    """Balanced share of the tests whose label ridge regression tells from the state before the answer.

    A linear probe (Alain & Bengio 2017, arXiv 1610.01644); it learns from at most 16 training rows a label, 640 in all.
    """
    train = train[: min(PROBE_ROWS, PROBE_ROWS_A_LABEL * len(labels))]
    tests = tests[:PROBE_TESTS]
    states = _states(decoder, [encoder(c) for c in (*train, *tests)], at_once)  # (n, D)
    seen, asked = states[: len(train)], states[len(train) :]
    mean, spread = seen.mean(0), seen.std(0) + 1e-6
    seen, asked = (seen - mean) / spread, (asked - mean) / spread
    own = torch.tensor([labels.index(c.answer) for c in train])
    targets = torch.nn.functional.one_hot(own, len(labels)).double()
    shift = targets.mean(0)
    kernel = seen @ seen.T + RIDGE * len(seen) * torch.eye(len(seen), dtype=seen.dtype)
    scores = asked @ seen.T @ torch.linalg.solve(kernel, targets - shift) + shift  # (tests, L)
    return _balanced([labels[i] for i in scores.argmax(1).tolist()], [c.answer for c in tests])


def _states(decoder: Decoder, examples: Sequence[Encoded], at_once: int) -> Tensor:
    """The hidden state that predicts the first learned token of each example: (n, D) float64."""
    cut = []
    for i, e in enumerate(examples):
        first = e.learn.index(True, 1)
        cut.append(Encoded(e.ids[: first + 1], [False] * first + [True], str(i), e.source))
    found = torch.empty(len(cut), decoder.body.config.get_text_config().hidden_size, dtype=torch.float64)
    with decoder.entered():
        for group in split_by_tokens(cut, at_once, share=decoder.shares):
            batch = make_batch(group, share=decoder.shares).to(decoder.device)
            rows = torch.tensor([int(e.id) for e in group])[batch.example.cpu()]
            found[rows] = decoder.hidden(batch).index_select(0, batch.edge).double().cpu()
    return found
