"""Candidates and rules of the advice, as data: what may be chosen, what speaks for and against it, and who says so.

A rule is a condition on facts that were measured (`FACTS`), an effect on some candidates, a reason and a source; one
that has no source has no place here. It puts candidates out, or moves them up or down by points. What has most points
is tried first, and among equals what stands first in `CANDIDATES`. Knows nothing of how facts are measured.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.settings import Adapt, Full, Lora, Partial, Peft

Facts = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A technique that may be chosen."""

    name: str
    adapt: Callable[[int], Adapt]
    """Of a model with so many layers."""


CANDIDATES = (
    Candidate("lora-16", lambda _: Lora()),
    Candidate("lora-4", lambda _: Lora(rank=4)),
    Candidate("lora-64", lambda _: Lora(rank=64)),
    Candidate("lora-16-upper", lambda n: Lora(last_layers=max(n // 2, 1))),
    Candidate("full", lambda _: Full(method="full")),
    Candidate("last-layers", lambda n: Partial(method="partial", last_layers=max(n // 8, 1))),
    Candidate("ia3", lambda _: Peft(method="peft", type="IA3")),
)
"""The best known first. One alpha for all ranks: LoRA's best rate then hardly depends on the rank (`rates.py`)."""

FACTS = {
    "n_train": "training rows",
    "to_learn_bits": "bits to learn: learned tokens of distinct rows, times the base's nll of them in bits",
    "capacity_bits": "bits that the technique's weights can hold, 2 each",
    "gap_nats": "nll of the base on this data, above its nll on general text (nats a token)",
    "zero_shot": "labels: share that the base chooses rightly before any training, mean over labels",
    "probe": "labels: share that a linear classifier on the base's hidden states gets right, mean over labels",
    "keeps_general": "1 if a release rule asks that general perplexity does not rise",
    "peak_bytes": "predicted peak memory",
    "computed_again": "1 if it fits only with layers computed again, which `train.recompute_layers: auto` then does",
    "available_bytes": "nine tenths of the memory that is available",
    "minutes": "predicted time of training",
    "max_train_minutes": "model.adapt.max_train_minutes, or train.max_minutes",
}
"""Every fact that a rule may ask for, in words. What is not known meets no condition."""

Op = Literal["<", "<=", ">", ">="]
_OPS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class When:
    """A fact against a number, or against another fact."""

    fact: str
    op: Op
    value: float | str

    def met(self, facts: Facts) -> bool:
        left = facts.get(self.fact)
        right = facts.get(self.value) if isinstance(self.value, str) else self.value
        return left is not None and right is not None and _OPS[self.op](left, right)

    def __str__(self) -> str:
        return f"{self.fact} {self.op} {self.value}"


@dataclass(frozen=True, slots=True)
class AdviceRule:
    name: str
    about: tuple[str, ...]
    """Candidates; empty: all of them."""
    when: tuple[When, ...]
    """All of them must be met."""
    points: int | None
    """None: what meets it is out."""
    why: str
    source: str


_SMALL = ("lora-4", "lora-16-upper", "ia3")
RULES = (
    AdviceRule(
        "fits", (), (When("peak_bytes", ">", "available_bytes"),), None,
        "its predicted peak is more than nine tenths of the memory that is available",
        "prediction by luthier.cost, corrected by the trial step; benchmarks/advise.py measures how good it is",
    ),
    AdviceRule(
        "in time", (), (When("minutes", ">", "max_train_minutes"),), None,
        "its predicted time is more than training may take",
        "prediction by luthier.cost, corrected by the trial step; benchmarks/advise.py measures how good it is",
    ),
    AdviceRule(
        "computed again", (), (When("computed_again", ">=", 1),), 0,
        "too large for the memory as a whole: memory and time are foretold with every layer computed again",
        "Chen et al. 2016, arXiv 1604.06174: memory for time, and the same gradients",
    ),
    AdviceRule(
        "capacity", (), (When("capacity_bits", "<", "to_learn_bits"),), -3,
        "the data hold more than its weights can: it would fall behind",
        "2 bits a weight: Allen-Zhu & Li 2024, arXiv 2404.05405; adapters below the data's size fall behind: "
        "Schulman et al. 2025, LoRA Without Regret (thinkingmachines.ai)",
    ),
    AdviceRule(
        "a default that holds", ("lora-16",), (), 1,
        "with data that it can hold, LoRA in all layers learns as full fine-tuning does",
        "Schulman et al. 2025, LoRA Without Regret; Hu et al. 2021, arXiv 2106.09685, 7.2: small ranks suffice",
    ),
    AdviceRule(
        "forgetting", ("full", "last-layers"), (When("keeps_general", ">=", 1),), -2,
        "the release asks that general text is not forgotten, and whole weights forget more than LoRA",
        "Biderman et al. 2024, arXiv 2405.09673, 4.2: LoRA forgets less than full finetuning",
    ),
    AdviceRule(
        "much and far", ("full", "lora-64"), (When("n_train", ">=", 50_000), When("gap_nats", ">=", 0.5)), 2,
        "much data, far from what the base has read: LoRA of low rank learns less there",
        "Biderman et al. 2024, arXiv 2405.09673, 4.1 (100,000 rows and more of code and mathematics)",
    ),
    AdviceRule(
        "few rows", ("ia3", "lora-4"), (When("n_train", "<", 100),), 2,
        "fewer weights overfit less, and are quicker",
        "Liu et al. 2022, arXiv 2205.05638 (IA3 with 20 to 70 examples)",
    ),
    AdviceRule(
        "features are there", _SMALL, (When("probe", ">=", 0.9),), 1,
        "a linear classifier reads the labels off the frozen base: little has to change",
        "Peters et al. 2019, arXiv 1903.05987; Kumar et al. 2022, arXiv 2202.10054: good features are worth keeping",
    ),
    AdviceRule(
        "features are missing", ("lora-16-upper", "last-layers", "ia3"), (When("probe", "<", 0.6),), -2,
        "a linear classifier cannot read the labels off the frozen base: lower layers must learn too",
        "Peters et al. 2019, arXiv 1903.05987: adapting all layers wins where the task is far from pre-training",
    ),
    AdviceRule(
        "known already", _SMALL, (When("zero_shot", ">=", 0.95),), 1,
        "the base chooses nearly all labels rightly already: there is little to learn",
        "Kumar et al. 2022, arXiv 2202.10054: large updates distort features that fit already",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rules say of a candidate."""

    points: int
    out: bool
    met: tuple[str, ...]
    """Names of the rules that are met, in their order."""


def judge(candidate: str, facts: Facts, rules: Sequence[AdviceRule] = RULES) -> Judgement:
    """A rule about the candidate whose conditions are all met counts."""
    met = [r for r in rules if (not r.about or candidate in r.about) and all(w.met(facts) for w in r.when)]
    points = sum(r.points for r in met if r.points is not None)
    return Judgement(points, any(r.points is None for r in met), tuple(r.name for r in met))


def markdown() -> str:
    """The rules as the table of docs/advise.md."""
    lines = ["| rule | when | effect | why | source |", "|---|---|---|---|---|"]
    for rule in RULES:
        when = " and ".join(f"`{w}`" for w in rule.when) or "always"
        about = ", ".join(rule.about) or "each candidate"
        effect = f"{about}: {'out' if rule.points is None else f'{rule.points:+d}'}"
        lines.append(f"| {rule.name} | {when} | {effect} | {rule.why} | {rule.source} |")
    return "\n".join(lines)
