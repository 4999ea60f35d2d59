"""Answers against references: the same answer, shared words, shared characters, edits.

Equal to the field's own programs (SQuAD's evaluation, rouge-score, sacrebleu) to 1e-6, which tests hold.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any, Literal

import numpy as np

from luthier.evaluate.metrics.text import squad, squad_tokens, words
from luthier.metric import Floats, Metric, Sample, SumMetric, ratio


def exact_match(sample: Sample) -> bool | None:
    """Whether the answer is the reference, after SQuAD's normalisation (Rajpurkar et al. 2016, section 6.1).

    Strict about words and blind to case, punctuation and articles, so also to the point in "1.35". A right answer in
    other words counts as wrong.
    """
    return squad(sample.answer) == squad(sample.reference) if sample.prompt else None


def token_f1(sample: Sample) -> float | None:
    """F1 of the answer's words against the reference's, as bags (Rajpurkar et al. 2016, section 6.1).

    Gives credit for a partly right answer; does not see word order or negation. Two empty texts agree (SQuAD 2.0).
    """
    if not sample.prompt:
        return None
    answer, reference = Counter(squad_tokens(sample.answer)), Counter(squad_tokens(sample.reference))
    if not answer or not reference:
        return float(answer == reference)
    return 2 * (answer & reference).total() / (answer.total() + reference.total())


def rouge1(sample: Sample, stem: bool = False) -> float | None:
    """ROUGE-1 F-measure: shared words (Lin 2004), mean over samples, by Google's rouge-score.

    Tells whether the answer speaks of the same things, not whether what it says is true. Words are runs of letters
    of any script; `stem` takes rouge-score's English tokenizer instead, which lets "walked" match "walks".
    """
    return _rouge("rouge1", sample, stem)


def rouge2(sample: Sample, stem: bool = False) -> float | None:
    """ROUGE-2 F-measure: shared pairs of neighbouring words (Lin 2004); see `rouge1`. 0 for one-word answers."""
    return _rouge("rouge2", sample, stem)


def rougeL(sample: Sample, stem: bool = False) -> float | None:
    """ROUGE-L F-measure: longest common subsequence of words (Lin 2004, section 3); see `rouge1`.

    The whole answer is one sequence (rouge-score's `rougeL`, not `rougeLsum`).
    """
    return _rouge("rougeL", sample, stem)


def _rouge(kind: str, sample: Sample, stem: bool) -> float | None:
    if not sample.prompt:
        return None
    return float(_rouge_scorer(kind, stem).score(sample.reference, sample.answer)[kind].fmeasure)


class _Words:
    """rouge-score's own tokenizer would cut "café" to "caf" and drop Cyrillic altogether."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge_scorer(kind: str, stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: seconds, so only where it is used

    return RougeScorer([kind], use_stemmer=stem, tokenizer=None if stem else _Words())


def bleu(tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a") -> Metric:
    """Corpus BLEU (Papineni et al. 2002), 0 to 100, equal to `sacrebleu.corpus_bleu` (smoothing `exp`).

    Precision of 1- to 4-grams, summed over the corpus. Fit for comparing two systems on many texts; a poor judge of
    a single answer, and 0 wherever no answer has four tokens. `zh` for Chinese, `char` for scripts without spaces.
    """
    from sacrebleu.metrics.bleu import BLEU

    allowed = ("13a", "intl", "zh", "char", "none")  # sacrebleu's other tokenizers download a model
    if tokenize not in allowed:
        raise ValueError(f"tokenize: {tokenize!r}; allowed: {', '.join(allowed)}")
    scorer = BLEU(tokenize=tokenize, force=True)

    def stats(sample: Sample) -> tuple[float, ...] | None:
        if not sample.prompt:
            return None
        score = scorer.corpus_score([sample.answer], [[sample.reference]])
        return (score.sys_len, score.ref_len, *score.counts, *score.totals)

    return SumMetric("bleu", stats, _bleu)


def _bleu(sums: Floats) -> Floats:
    """(answer length, reference length, 4 matches, 4 totals) -> BLEU, as `sacrebleu.BLEU.compute_bleu`."""
    answer, reference = sums[..., 0], sums[..., 1]  # (...)
    matches, totals = sums[..., 2:6], sums[..., 6:10]  # (..., 4)
    missed = (matches == 0) & (totals > 0)
    halved = 2.0 ** -np.cumsum(missed, axis=-1)  # the n-th order without a match counts as 1 / 2^n matches
    with np.errstate(invalid="ignore", divide="ignore"):
        precisions = np.where(totals > 0, np.where(missed, halved, matches) / totals, 0.0)
        brevity = np.where(answer < reference, np.exp(1 - reference / answer), 1.0)
        score = 100 * brevity * np.exp(np.log(precisions).mean(axis=-1))
    return np.where(matches.any(axis=-1), score, 0.0)


_CHRF_ORDERS, _CHRF_BETA = 6, 2


def chrf() -> Metric:
    """chrF2 (Popovic 2015), 0 to 100, equal to `sacrebleu.corpus_chrf`: F2 of character 1- to 6-grams over the corpus.

    Kinder than BLEU to inflection, to short texts and to scripts without spaces; as blind to meaning.
    """

    def stats(sample: Sample) -> list[float] | None:
        if not sample.prompt:
            return None
        answer, reference = "".join(sample.answer.split()), "".join(sample.reference.split())
        found: list[float] = []
        for n in range(1, _CHRF_ORDERS + 1):
            ours, theirs = _ngrams(answer, n), _ngrams(reference, n)
            # An order that the reference is too short for counts no answers either.
            found += (ours.total() if theirs else 0, theirs.total(), (ours & theirs).total())
        return found

    return SumMetric("chrf", stats, _chrf)


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def _chrf(sums: Floats) -> Floats:
    """6 times (answer's, reference's, shared n-grams) -> chrF, as `sacrebleu.CHRF._compute_f_score`."""
    answer, reference, shared = (sums[..., i::3] for i in range(3))  # (..., 6)
    counted = (answer > 0) & (reference > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(counted, shared / answer, 0.0).sum(axis=-1) / counted.sum(axis=-1)
        recall = np.where(counted, shared / reference, 0.0).sum(axis=-1) / counted.sum(axis=-1)
        score = 100 * (1 + _CHRF_BETA**2) * precision * recall / (_CHRF_BETA**2 * precision + recall)
    return np.where(precision + recall > 0, score, 0.0)


def ter() -> Metric:
    """Translation edit rate (Snover et al. 2006), in percent, equal to `sacrebleu.corpus_ter`; lower is better.

    Insertions, deletions, substitutions and moves of runs of words that make the answer the reference, per reference
    word. Tells how much a person would have to edit. A right answer in other words costs as much as a wrong one, and
    answers that are far too long cost more than 100.
    """
    from sacrebleu.metrics.ter import TER

    scorer = TER()

    def stats(sample: Sample) -> tuple[float, float] | None:
        if not sample.prompt:
            return None
        score = scorer.corpus_score([sample.answer], [[sample.reference]])
        return score.num_edits, score.ref_length

    def combine(sums: Floats) -> Floats:
        edits, length = sums[..., 0], sums[..., 1]
        return np.where(length > 0, 100 * ratio(sums), np.where(edits > 0, 100.0, 0.0))

    return SumMetric("ter", stats, combine, higher_is_better=False)
