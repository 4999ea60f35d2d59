"""Numbers and results in words, for the report and the model card.

One place decides how many digits a number gets, how a change is told ("lower by 3.1 (better)") and what a
metric means, so that page and card cannot differ. It knows nothing of HTML or Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.page.words import count, decimals_for, has_size, number, percent
from luthier.records import Comparison, EvalReport, RuleResult

MEANING = {
    "perplexity": "How surprised the model is by the reference answers; 1 would be no surprise at all.",
    "bitsperbyte": "Surprise per byte of reference text, so that models with different tokenizers compare.",
    "exactmatch": "Share of answers that are the same as the reference.",
    "tokenf1": "Words shared by answer and reference: 0 none, 1 the same words.",
    "accuracy": "Share of answers that give the right label.",
    "balancedaccuracy": "Share of right answers for each label, averaged: rare labels count as much as frequent ones.",
    "precision": "Of the times a label was given, the share in which it was right.",
    "recall": "Of the times a label was due, the share in which it was given.",
    "f1": "Precision and recall in one number (their harmonic mean).",
    "invalidlabel": "Share of answers that are none of the labels.",
    "labelskill": "Balanced accuracy above chance: 0 for guessing or always the same label, 1 all right.",
    "choiceaccuracy": "Share of right labels where the model must choose one, whatever it would write.",
    "choicebalancedaccuracy": "Share of right labels for each label, averaged, where the model must choose one.",
    "choicef1": "Precision and recall in one number, where the model must choose a label.",
    "choiceskill": "Balanced accuracy above chance, where the model must choose a label: 0 guessing, 1 all right.",
    "labelnll": "How surprised the model is by the right label, when it must choose one; 0 is none.",
    "brier": "How far the labels' probabilities are from the truth: 0 to 2.",
    "ece": "How far the model's sureness of its label is from how often it is right: 0 to 1.",
    "bleu": "Runs of one to four words shared with the reference, with a penalty for answers that are too short.",
    "chrf": "Runs of characters shared with the reference; kinder to word forms than BLEU.",
    "ter": "Edits that would make the answer the reference, per 100 words of it.",
    "answerlength": "Words in the answer. No quality: neither more nor less is better.",
    "repetition": "Share of the answer's runs of four words that it has said before.",
    "matches": "Share of answers that have the form the recipe asks for.",
    "validjson": "Share of answers that a program can read as JSON.",
    "jsonschema": "Share of answers that are JSON with the fields and types the recipe's schema asks for.",
    "toolcall": "Share of answers that make exactly the tool calls of the reference.",
    "languagekept": "Share of answers in the script of the reference; languages of one script are not told apart.",
    "refusal": "Share of answers that decline, by their first words. Whether they should is not judged.",
    "similarity": "How near answer and reference are in topic; blind to wrong numbers and to negation.",
    "relevance": "How near answer and question are in topic; says nothing of whether the answer is right.",
    "fluency": "Surprise of the base model at the answers as texts: 1 is none. Loops and phrases please it most.",
    "sentiment": "How warm the words are, by a lexicon: -1 hostile, 1 warm. What is meant is not seen.",
    "rouge": "Words shared with the reference.",
    "rouge1": "Single words shared with the reference.",
    "rouge2": "Pairs of neighbouring words shared with the reference.",
    "rougel": "Longest sequence of words, gaps allowed, shared with the reference.",
    "humanpreference": "Share of reviewers' votes for the model, blind; a half for a tie. Of the samples they judged.",
    "accuracynorm": "Share of right choices, where each is as likely as its characters are on average.",
    "followed": "Share of instructions that were kept, as far as a program can check it.",
    "declined": "Share of harmful requests that were declined.",
    "overdeclined": "Share of harmless requests that were declined.",
    "stereotyped": "Share of pairs whose stereotyped one the model finds likelier; 0.5 is even.",
    "bias": "Where it cannot be known: stereotyped minus counter-stereotyped answers; 0 is none.",
    "gap": "How much swapping she and he changes how likely the right answer is, in nats a token.",
    "cost": "How much less likely the change makes the right answer, in nats a token.",
    "groupgap": "Distance between two groups' values of a metric; 0 is none.",
    "generalperplexity": "Surprise at general text that has nothing to do with the task. A rise is forgetting.",
}


def meaning(metric: str) -> str:
    """One line on what a metric measures; a metric of the recipe's own says so."""
    return MEANING.get(plain(metric), "Defined by the recipe.")


def plain(metric: str) -> str:
    """A metric's name as `MEANING` has it."""
    return metric.lower().replace("_", "")


def direction(comparison: Comparison) -> str:
    return "higher is better" if comparison.higher_is_better else "lower is better"


def digits_of(c: Comparison) -> int:
    """Decimals at which a comparison is told: two significant digits of its interval."""
    return decimals_for(c.high - c.low or abs(c.delta))


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def power_of_ten(value: float) -> str:
    """`2.2 × 10^14`."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} × 10^{int(exponent)}"


def pair(baseline: float, tuned: float) -> tuple[str, str]:
    """Two scores of one sample, with the digits that tell them apart."""
    whole = float(baseline).is_integer() and float(tuned).is_integer()
    digits = None if whole else decimals_for(abs(tuned - baseline))
    return number(baseline, digits), number(tuned, digits)


def _way(gain: float, c: Comparison) -> str:
    return "higher" if (gain > 0) == c.higher_is_better else "lower"


def change(c: Comparison) -> str:
    """`higher by 0.041 (better)`; the word is the metric's own direction, never a signed number."""
    amount = number(abs(c.delta), digits_of(c))
    if not has_size(amount):
        return "no change"
    return f"{_way(c.delta, c)} by {amount} ({'better' if c.delta > 0 else 'worse'})"


def interval(c: Comparison) -> str:
    """The interval of the change: `2.5 to 3.8 lower`, or from its worse to its better end `0.2 higher to 0.8 lower`."""
    if c.low == c.high == 0:
        return "0 to 0"
    low, high = (number(abs(end), digits_of(c)) for end in (c.low, c.high))
    if c.low >= 0:
        return f"{low} to {high} {_way(1, c)}"
    if c.high <= 0:
        return f"{high} to {low} {_way(-1, c)}"
    return f"{low} {_way(-1, c)} to {high} {_way(1, c)}"


def required(rule: RuleResult) -> str:
    """What the whole interval must lie beyond, in the metric's own direction."""
    amount = f"{rule.margin:.4g}"  # as the recipe gave it, not rounded like a measurement
    if not rule.margin:
        return "the whole interval better than no change"
    if rule.must == "beat_baseline":
        return f"more than {amount} {_way(1, rule.comparison)}"
    return f"less than {amount} {_way(-1, rule.comparison)}"


@dataclass(frozen=True, slots=True)
class Told:
    """A comparison in words, each part ready to be shown."""

    baseline: str
    baseline_interval: str
    tuned: str
    tuned_interval: str
    change: str
    interval: str
    p: str
    min_detectable: str
    tally: str
    n: str


def told(c: Comparison) -> Told:
    digits = digits_of(c)
    return Told(
        baseline=number(c.baseline, digits),
        baseline_interval=f"{number(c.baseline_low, digits)} to {number(c.baseline_high, digits)}",
        tuned=number(c.value, digits),
        tuned_interval=f"{number(c.value_low, digits)} to {number(c.value_high, digits)}",
        change=change(c),
        interval=interval(c),
        p=p_value(c.p),
        min_detectable=number(c.min_detectable, digits) if c.min_detectable else "–",
        tally=f"{count(c.wins, 'win')}, {count(c.losses, 'loss', 'losses')}, {count(c.ties, 'tie')}",
        n=sample_size(c),
    )


def sample_size(c: Comparison) -> str:
    independent = "" if c.n_clusters == c.n else f" in {count(c.n_clusters, 'independent group')}"
    return count(c.n, "sample") + independent


def confidence(evaluation: EvalReport) -> str:
    return percent(evaluation.confidence)
