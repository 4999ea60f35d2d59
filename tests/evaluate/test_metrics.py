"""Every built-in metric against its public reference, and what holds for all of them."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from luthier.evaluate import metrics
from luthier.evaluate.metrics import default_metrics
from luthier.evaluate.metrics.build import build
from luthier.metric import Metric
from luthier.plugins import METRICS
from luthier.release.wording import meaning
from luthier.settings import Use

from .samples import REAL, corpora, pairs, sample, stats, text, value

ANSWERED = ("exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "bleu", "chrf")
EDITS = ("ter",)
ALONE = ("answer_length", "repetition")
LIKELIHOOD = ("perplexity", "bits_per_byte")
IN_PERCENT = ("bleu", "chrf")


def make(name: str, **params: object) -> Metric:
    return build(Use(use=name, **params), (), None)


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
def test_ter_is_sacrebleu(rows: list[tuple[str, str]]) -> None:
    theirs = sacrebleu.corpus_ter([a for _, a in rows], [[r for r, _ in rows]]).score
    assert value(make("ter"), pairs(rows)) == pytest.approx(theirs, abs=1e-9)


def test_ter_of_real_texts() -> None:
    theirs = sacrebleu.corpus_ter([a for _, a in REAL], [[r for r, _ in REAL]]).score
    assert theirs > 5
    assert value(make("ter"), pairs(REAL)) == pytest.approx(theirs, abs=1e-9)
    assert not make("ter").higher_is_better


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


@pytest.mark.parametrize(
    ("reference", "answer", "one", "two", "longest"),
    [
        # by hand; words: 4 and 3, shared 3, pairs 1 of 3 and 2, in order 2
        ("Чайник вмещает литр воды.", "Литр воды, чайник!", 6 / 7, 2 / 5, 4 / 7),
        # each character is a word: 8 and 7, shared 5 (水 壶 装 升 水), pairs 水壶 升水, in order 水壶装升水
        ("水壶可以装一升水。", "水壶装两升水吗？", 10 / 15, 4 / 13, 10 / 15),
        # vowel signs belong to their letters: 5 and 4 words, shared 3, pairs 1 of 4 and 3, in order 3
        ("केतली में एक लीटर पानी", "केतली में दो लीटर", 6 / 9, 2 / 7, 6 / 9),
    ],
    ids=["Russian", "Chinese", "Hindi"],
)
def test_rouge_of_other_languages(reference: str, answer: str, one: float, two: float, longest: float) -> None:
    for name, expected in zip(("rouge1", "rouge2", "rougeL"), (one, two, longest), strict=True):
        assert value(make(name), [sample(answer, reference)]) == pytest.approx(expected, abs=1e-12), name


def test_rouge_does_not_part_the_words_of_thai() -> None:
    assert value(make("rouge1"), pairs([("กาต้มน้ำจุหนึ่งลิตร", "กาต้มน้ำจุสองลิตร")])) == 0.0, "so docs/metrics.md sends to chrF"
    assert value(make("chrf"), pairs([("กาต้มน้ำจุหนึ่งลิตร", "กาต้มน้ำจุสองลิตร")])) > 50


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


# -- answers alone ------------------------------------------------------------------------------------------------


def test_answer_length_counts_words() -> None:
    assert value(make("answer_length"), pairs([("", "one, two"), ("", ""), ("", "水壶 and four")])) == 2.0


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("one two three four five", 0.0),
        ("one two three", 0.0),
        ("", 0.0),
        ("no no no no no no", 2 / 3),
        ("Send it back to us. Send it back, to us!", 2 / 7),
    ],
)
def test_repetition(answer: str, share: float) -> None:
    assert value(make("repetition"), [sample(answer)]) == pytest.approx(share)
    assert not make("repetition").higher_is_better


# -- what holds for all -------------------------------------------------------------------------------------------


@given(st.lists(text().filter(lambda t: len(t.split()) >= 4 and any(c.isalpha() for c in t)), min_size=1, max_size=5))
def test_identity_is_perfect(texts: list[str]) -> None:
    samples = pairs([(t, t) for t in texts])
    for name in set(ANSWERED) - {"rouge2"}:
        assert value(make(name), samples) == pytest.approx(100.0 if name in IN_PERCENT else 1.0)


@given(corpora(), st.randoms(use_true_random=False))
def test_order_does_not_matter(rows: list[tuple[str, str]], random: object) -> None:
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    for name in (*ANSWERED, *EDITS):
        assert value(make(name), pairs(mixed)) == pytest.approx(value(make(name), pairs(rows)), abs=1e-9)


@given(corpora(), corpora())
def test_sums_of_parts_are_the_sums_of_the_whole(some: list[tuple[str, str]], others: list[tuple[str, str]]) -> None:
    for name in (*ANSWERED, *EDITS):
        metric = make(name)
        parts = stats(metric, pairs(some)).sum(axis=0) + stats(metric, pairs(others)).sum(axis=0)
        assert float(metric.combine(parts)) == pytest.approx(value(metric, pairs(some + others)), abs=1e-9)


@given(corpora())
def test_scales(rows: list[tuple[str, str]]) -> None:
    for name in ANSWERED:
        assert 0 <= value(make(name), pairs(rows)) <= (100 if name in IN_PERCENT else 1) + 1e-9


def test_plain_text_has_no_answer_to_score() -> None:
    plain = sample(reference="All of it is learned.", prompt="")
    assert all(make(name).stats(plain) is None for name in (*ANSWERED, *EDITS, *ALONE))
    assert all(make(name).stats(plain) is not None for name in LIKELIHOOD)
    assert all(make(name).stats(sample(n_tokens=0, n_bytes=0)) is None for name in LIKELIHOOD)


@pytest.mark.parametrize("task", ["classification", "answer", "dialogue", "text"])
def test_default_metrics_can_be_built(task: str) -> None:
    names = [use.use for use in default_metrics(task)]  # type: ignore[arg-type]
    assert len(set(names)) == len(names) and "perplexity" in names
    assert [build(Use(use=name), ("a", "b"), None).name for name in names] == names


@pytest.mark.skipif(not METRICS.names(), reason="luthier is not installed, so it declares no entry points")
def test_every_built_in_metric_is_declared() -> None:
    modules = [importlib.import_module(f"{metrics.__name__}.{m.name}") for m in pkgutil.iter_modules(metrics.__path__)]
    found = [f for module in modules for f in vars(module).values() if getattr(f, "__module__", "") == module.__name__]
    made = {f.__name__ for f in found if callable(f) and _is_metric(f)}
    assert made == set(METRICS.names())


def _is_metric(function: Callable[..., Any]) -> bool:
    if function.__name__.startswith("_") or isinstance(function, type) or function is build:
        return False
    gives = str(inspect.signature(function).return_annotation)
    takes = next(iter(inspect.signature(function).parameters), "")
    return gives == "Metric" or (takes == "sample" and gives.removesuffix(" | None") in ("bool", "int", "float"))


def test_every_metric_says_what_it_cannot_tell() -> None:
    for name in METRICS.names():
        assert len(METRICS.find(name, "").__doc__ or "") > 80, name


PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_every_metric_has_a_row_on_the_metrics_page() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\| [^|]{10,} \| [^|]{10,} \|$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert sorted(rows) == METRICS.names(), "what it tells, and what it cannot"


def test_every_metric_has_a_line_in_the_report() -> None:
    assert [name for name in METRICS.names() if meaning(name) == meaning("of my own")] == []
