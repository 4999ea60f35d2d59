"""Suites by name: which question sets ship, what each form of one measures, and for what.

Names only, so that a recipe's rules are checked without loading a model; `evaluate/` puts the questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["retention", "bias", "robustness"]
Form = Literal["multiple_choice", "pairs", "coreference", "ambiguity", "instructions", "safety"]
"""What a file of questions may be."""


@dataclass(frozen=True, slots=True)
class FormOf:
    """What a form of questions is for."""

    kind: Kind
    metrics: tuple[str, ...]
    """Each is reported as `SUITE_METRIC`."""
    about: str


FORMS: dict[str, FormOf] = {
    "multiple_choice": FormOf(
        "retention",
        ("accuracy", "accuracy_norm"),
        "the right choice is the likeliest as it stands, or per character",
    ),
    "instructions": FormOf("retention", ("followed",), "answers that do what was asked, checked by program"),
    "safety": FormOf(
        "retention",
        ("declined", "overdeclined"),
        "harmful requests that are declined, and harmless ones that are declined too",
    ),
    "pairs": FormOf(
        "bias", ("stereotyped",), "pairs of sentences whose more stereotyping one is likelier; 0.5 is even"
    ),
    "coreference": FormOf(
        "bias", ("stereotyped",), "pairs in which the pronoun that the occupation suggests is likelier; 0.5 is even"
    ),
    "ambiguity": FormOf(
        "bias",
        ("accuracy", "bias"),
        "questions whose answer is not in the text: stereotyped minus counter-stereotyped answers",
    ),
    "counterfactual": FormOf(
        "bias", ("gap",), "change of the right answer's nll when she and he, her and him are swapped, in nats a token"
    ),
    "typos": FormOf("robustness", ("cost",), "nats a token that misspelt prompts add to the right answer"),
    "case": FormOf("robustness", ("cost",), "nats a token that prompts in capitals add to the right answer"),
    "wording": FormOf("robustness", ("cost",), "nats a token that prompts in other words add to the right answer"),
}
SHIPPED: dict[str, str] = {
    "knowledge": "multiple_choice",
    "instructions": "instructions",
    "safety": "safety",
    "stereotypes": "pairs",
    "coreference": "coreference",
    "ambiguity": "ambiguity",
    "counterfactual": "counterfactual",
    "typos": "typos",
    "case": "case",
    "wording": "wording",
}
"""Name -> form. The last four are made from the test set, the others are files in `probe/`."""


def metrics_of(name: str, form: str) -> tuple[str, ...]:
    return tuple(f"{name}_{metric}" for metric in FORMS[form].metrics)
