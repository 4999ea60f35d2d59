"""Similarity by sentence embeddings: what it sees, what it cannot see, and that it is the authors' model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from luthier import embed as module
from luthier.embed import PACKAGE, embed
from luthier.errors import ModelError
from luthier.evaluate.compare import Answers, compare_models
from luthier.evaluate.metrics.build import build
from luthier.metric import Metric
from luthier.settings import Recipe, Use

from .samples import pairs, sample, text, value

RETURNS = "You can return it within 30 days."
FIGURES = {
    "You cannot return it within 30 days.": 0.94,
    "You can return it within 3 days.": 0.94,
    "You may send it back for a month.": 0.77,
    "Send it back in the first month and we refund you.": 0.66,
    "The kettle is made of copper.": 0.03,
}


def make(name: str) -> Metric:
    return build(Use(use=name), (), None)


def test_what_similarity_cannot_tell() -> None:
    found = {answer: value(make("similarity"), [sample(answer, RETURNS)]) for answer in FIGURES}
    assert found == pytest.approx(FIGURES, abs=0.006)
    fee = "The fee is 5 euros."
    assert value(make("similarity"), [sample("The fee is 50 euros.", fee)]) == pytest.approx(0.885, abs=0.002)
    assert value(make("similarity"), [sample("The fee is not 5 euros.", fee)]) == pytest.approx(0.931, abs=0.002)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for answer, figure in FIGURES.items():
        assert f"| {answer} | {figure:.2f} |" in page


def test_relevance_sees_the_topic_and_prefers_an_echo() -> None:
    asked = "Is the lid dishwasher-safe?"
    answers = [asked, "The lid may go into the dishwasher.", "Paris is the capital of France.", "Yes."]
    echo, right, astray, short = (value(make("relevance"), [sample(a, prompt=asked)]) for a in answers)
    assert echo == pytest.approx(1, abs=1e-5) and echo > right > 0.6 and astray < 0.15 and short < 0.15


def test_it_is_what_sentence_transformers_gives() -> None:
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec(PACKAGE)
    assert spec and spec.origin
    theirs = SentenceTransformer(str(Path(spec.origin).parent / "model"))
    texts = [RETURNS, *FIGURES, "", "水壶", "word " * 200]
    expected = theirs.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(embed(texts), expected, atol=1e-5)


@given(text())
@settings(max_examples=10)
def test_vectors_have_length_one_whatever_they_are_batched_with(one: str) -> None:
    together = embed([one, RETURNS, one])
    module._known.clear()
    alone = embed([one])
    np.testing.assert_allclose(together[0], together[2])
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert embed([]).shape == (0, together.shape[1])


def test_the_end_of_a_long_text_counts() -> None:
    long = "The kettle is made of copper. " * 60  # over 256 tokens
    plain, other = embed([long, long + "Refunds take five days to reach the bank. " * 60])
    assert plain @ other < 0.95


def test_all_texts_are_embedded_before_the_first_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    real = module._pooled
    monkeypatch.setattr(module, "_pooled", lambda texts: batches.append(len(texts)) or real(texts))
    monkeypatch.setattr(module, "_known", {})
    tuned = pairs([("one litre", f"about {i} litres") for i in range(5)])
    base = pairs([("one litre", f"some {i} pints") for i in range(5)])
    rules = [{"metric": "similarity", "must": "beat_baseline"}]
    recipe = Recipe.model_validate({"name": "r", "data": {"sources": [{"path": "x"}]}, "release": {"rules": rules}})
    report = compare_models(
        Answers("t", tuned), Answers("b", base), metrics=[make("similarity")], recipe=recipe, task="answer"
    )
    assert batches == [11] and report.metrics["similarity"].delta > 0


def test_without_its_package_the_metric_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> Any:
        return None

    module._model.cache_clear()
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    assert not module.available()
    with pytest.raises(ModelError, match=r"LU-M002 .*\n.*pip install -c constraints.txt '\.\[meaning\]'"):
        make("similarity").stats(sample("a", "b"))
