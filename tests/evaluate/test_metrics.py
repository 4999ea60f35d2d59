"""Every built-in metric against its public reference, and what holds for all of them."""

from __future__ import annotations

import math
import warnings
from itertools import product

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score, recall_score

from luthier.errors import UserError
from luthier.evaluate import metrics
from luthier.evaluate.build import build
from luthier.metric import Metric, Sample
from luthier.plugins import METRICS
from luthier.recipe import Use

from .samples import REAL, corpora, pairs, sample, stats, text, value

LABELS = ("alpha", "beta", "gamma", "delta")
ANSWERED = ("exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "bleu", "chrf")
LABELLED = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "invalid_label")
LIKELIHOOD = ("perplexity", "bits_per_byte")
IN_PERCENT = ("bleu", "chrf")


def make(name: str, **params: object) -> Metric:
    return build(Use(use=f"luthier.evaluate.metrics:{name}", **params), LABELS if name in LABELLED else (), None)


def answered(rows: list[tuple[str, str]]) -> list[Sample]:
    """Samples of (true label, answer)."""
    return pairs(rows)


labelled = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "none of it"))), min_size=1, max_size=30
)
in_ascii = text().map(lambda t: t.encode("ascii", "ignore").decode())


# -- parity -------------------------------------------------------------------------------------------------------


@given(corpora())
def test_bleu_is_sacrebleu(rows: list[tuple[str, str]]) -> None:
    theirs = sacrebleu.corpus_bleu([a for _, a in rows], [[r for r, _ in rows]]).score
    assert value(make("bleu"), pairs(rows)) == pytest.approx(theirs, abs=1e-9)


@given(corpora())
def test_chrf_is_sacrebleu(rows: list[tuple[str, str]]) -> None:
    theirs = sacrebleu.corpus_chrf([a for _, a in rows], [[r for r, _ in rows]]).score
    assert value(make("chrf"), pairs(rows)) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("tokenize", ["13a", "intl", "zh", "char", "none"])
def test_bleu_of_real_texts(tokenize: str) -> None:
    theirs = sacrebleu.corpus_bleu([a for _, a in REAL], [[r for r, _ in REAL]], tokenize=tokenize).score
    assert theirs > 5
    assert value(make("bleu", tokenize=tokenize), pairs(REAL)) == pytest.approx(theirs, abs=1e-9)


def test_chrf_of_real_texts() -> None:
    theirs = sacrebleu.corpus_chrf([a for _, a in REAL], [[r for r, _ in REAL]]).score
    assert value(make("chrf"), pairs(REAL)) == pytest.approx(theirs, abs=1e-9)


@given(corpora())
def test_bleu_and_chrf_combine_many_sums_at_once(rows: list[tuple[str, str]]) -> None:
    for name in IN_PERCENT:
        metric = make(name)
        found = stats(metric, pairs(rows))
        sums = np.random.default_rng(0).multinomial(len(rows), [1 / len(rows)] * len(rows), size=(3, 5)) @ found
        alone = [[float(metric.combine(row)) for row in rows] for rows in sums]
        np.testing.assert_allclose(metric.combine(sums), alone, rtol=1e-12)


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
@pytest.mark.parametrize("stem", [False, True])
@given(rows=st.lists(st.tuples(in_ascii, in_ascii), min_size=1))
@settings(max_examples=30)
def test_rouge_is_rouge_score_on_ascii(kind: str, stem: bool, rows: list[tuple[str, str]]) -> None:
    scorer = RougeScorer([kind], use_stemmer=stem)
    theirs = np.mean([scorer.score(reference, answer)[kind].fmeasure for reference, answer in rows])
    assert value(make(kind, stem=stem), pairs(rows)) == pytest.approx(theirs, abs=1e-12)


def test_rouge_of_real_texts() -> None:
    for kind, (reference, answer) in product(("rouge1", "rouge2", "rougeL"), REAL):
        if reference.isascii() and answer.isascii():
            theirs = RougeScorer([kind]).score(reference, answer)[kind].fmeasure
            assert value(make(kind), [sample(answer, reference)]) == pytest.approx(theirs, abs=1e-12)


def test_rouge_reads_other_scripts() -> None:
    assert RougeScorer(["rouge1"]).score("вода", "вода")["rouge1"].fmeasure == 0  # what the default would say
    for name in ("rouge1", "rougeL"):
        assert value(make(name), pairs([("Чайник вмещает воду", "чайник, воду")])) == pytest.approx(0.8)
        assert value(make(name), pairs([("水壶", "水")])) == pytest.approx(2 / 3)


@given(labelled)
@settings(max_examples=60)
def test_label_metrics_are_those_of_scikit_learn(rows: list[tuple[str, str]]) -> None:
    true, answers = [r for r, _ in rows], [a for _, a in rows]
    occurring = sorted(set(true))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a label is never answered
        theirs = [accuracy_score(true, answers), balanced_accuracy_score(true, answers)]
        for name, score in {"precision": precision_score, "recall": recall_score, "f1": f1_score}.items():
            macro = score(true, answers, labels=occurring, average="macro", zero_division=0)
            micro = score(true, answers, labels=list(LABELS), average="micro", zero_division=0)
            one = score(true, answers, labels=[true[0]], average=None, zero_division=0)[0]
            assert value(make(name), answered(rows)) == pytest.approx(macro, abs=1e-12)
            assert value(make(name, average="micro"), answered(rows)) == pytest.approx(micro, abs=1e-12)
            assert value(make(name, label=true[0]), answered(rows)) == pytest.approx(one, abs=1e-12)
    for name, expected in zip(("accuracy", "balanced_accuracy"), theirs, strict=True):
        assert value(make(name), answered(rows)) == pytest.approx(expected, abs=1e-12)
    assert value(make("invalid_label"), answered(rows)) == pytest.approx(answers.count("none of it") / len(rows))


def test_a_label_that_does_not_occur_has_no_value() -> None:
    assert math.isnan(value(make("f1", label="delta"), answered([("alpha", "alpha")])))


def test_perplexity_and_bits_per_byte_are_totals_over_totals() -> None:
    samples = [sample(nats=2.0, n_tokens=1, n_bytes=4), sample(nats=1.0, n_tokens=5, n_bytes=8)]
    assert value(make("perplexity"), samples) == pytest.approx(math.exp(3 / 6))
    assert value(make("bits_per_byte"), samples) == pytest.approx(3 / 12 / math.log(2))
    assert not make("perplexity").higher_is_better and not make("bits_per_byte").higher_is_better


def test_hopeless_perplexity_is_infinite_without_a_warning() -> None:
    assert value(make("perplexity"), [sample(nats=1e6)]) == math.inf


@pytest.mark.parametrize(
    ("reference", "answer", "exact", "overlap"),
    [
        ("the kettle", "Kettle!", 1.0, 1.0),
        ("1.35 litres", "1.35 pints", 0.0, 0.5),
        ("cat cat dog", "cat dog dog", 0.0, 2 / 3),
        ("", "", 1.0, 1.0),
        ("word", "", 0.0, 0.0),
        ("A", "", 0.0, 0.0),
        ("1.35", "135", 1.0, 1.0),  # SQuAD's own blind spot, said in the docstring
    ],
)
def test_squad_metrics(reference: str, answer: str, exact: float, overlap: float) -> None:
    assert value(make("exact_match"), [sample(answer, reference)]) == exact
    assert value(make("token_f1"), [sample(answer, reference)]) == pytest.approx(overlap)


# -- what holds for all -------------------------------------------------------------------------------------------


@given(st.lists(text().filter(lambda t: len(t.split()) >= 4 and any(c.isalpha() for c in t)), min_size=1, max_size=5))
def test_identity_is_perfect(texts: list[str]) -> None:
    samples = pairs([(t, t) for t in texts])
    for name in set(ANSWERED) - {"rouge2"}:
        assert value(make(name), samples) == pytest.approx(100.0 if name in IN_PERCENT else 1.0)


@given(st.lists(st.sampled_from(LABELS), min_size=1))
def test_identity_is_perfect_for_labels(true: list[str]) -> None:
    for name in LABELLED:
        assert value(make(name), answered([(t, t) for t in true])) == (0.0 if name == "invalid_label" else 1.0)


@given(corpora(), st.randoms(use_true_random=False))
def test_order_does_not_matter(rows: list[tuple[str, str]], random: object) -> None:
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    for name in ANSWERED:
        assert value(make(name), pairs(mixed)) == pytest.approx(value(make(name), pairs(rows)), abs=1e-9)


@given(corpora(), corpora())
def test_sums_of_parts_are_the_sums_of_the_whole(some: list[tuple[str, str]], others: list[tuple[str, str]]) -> None:
    for name in ANSWERED:
        metric = make(name)
        parts = stats(metric, pairs(some)).sum(axis=0) + stats(metric, pairs(others)).sum(axis=0)
        assert float(metric.combine(parts)) == pytest.approx(value(metric, pairs(some + others)), abs=1e-9)


@given(corpora())
def test_scales(rows: list[tuple[str, str]]) -> None:
    for name in ANSWERED:
        assert 0 <= value(make(name), pairs(rows)) <= (100 if name in IN_PERCENT else 1) + 1e-9


def test_plain_text_has_no_answer_to_score() -> None:
    plain = sample(reference="All of it is learned.", prompt="")
    assert all(make(name).stats(plain) is None for name in ANSWERED)
    assert all(make(name).stats(plain) is not None for name in LIKELIHOOD)
    assert all(make(name).stats(sample(n_tokens=0, n_bytes=0)) is None for name in LIKELIHOOD)


def test_a_reference_that_is_no_label_is_an_error() -> None:
    for name in set(LABELLED) - {"invalid_label"}:
        with pytest.raises(UserError, match=r"LU-E006 sample s7: the reference 'epsilon' is no label"):
            make(name).stats(sample("alpha", "epsilon", id="s7"))


@pytest.mark.parametrize("task", ["classification", "answer", "dialogue", "text"])
def test_default_metrics_can_be_built(task: str) -> None:
    names = [use.use for use in metrics.default_metrics(task)]  # type: ignore[arg-type]
    assert len(set(names)) == len(names) and "perplexity" in names
    assert [make(name).name for name in names] == names


@pytest.mark.skipif(not METRICS.names(), reason="luthier is not installed, so it declares no entry points")
def test_every_built_in_metric_is_declared() -> None:
    declared = {name for name in METRICS.names() if METRICS.find(name, "").__module__ == metrics.__name__}
    assert declared == {*ANSWERED, *LABELLED, *LIKELIHOOD}


def test_every_metric_says_what_it_cannot_tell() -> None:
    for name in (*ANSWERED, *LABELLED, *LIKELIHOOD):
        assert len(getattr(metrics, name).__doc__) > 80, name
