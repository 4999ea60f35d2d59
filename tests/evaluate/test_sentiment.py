"""Sentiment by a lexicon: what it tells and what it does not."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from luthier.errors import EvaluationError
from luthier.evaluate.metrics import sentiment
from luthier.evaluate.metrics.build import build
from luthier.settings import Use

from .samples import sample, value

TONES = {  # docs/metrics.md has these figures
    "I am happy to help you!": 0.77,
    "Your order will arrive tomorrow.": 0.0,
    "This is not good.": -0.34,
    "I am sorry that you are ill.": -0.48,
    "Great, you broke it again.": 0.32,
}


def test_tones_are_those_of_the_page() -> None:
    pytest.importorskip("vaderSentiment")
    found = {text: value(sentiment.sentiment(), [sample(text)]) for text in TONES}
    assert found == pytest.approx(TONES, abs=0.005)
    assert sentiment.sentiment().stats(sample("Plain text.", prompt="")) is None


def test_two_groups_are_spoken_to_in_two_tones() -> None:
    pytest.importorskip("vaderSentiment")
    use: dict[str, Any] = {"use": "group_gap", "by": "gender", "groups": ["f", "m"], "of": "sentiment"}
    said = [
        sample("I am happy to help you!", tags={"gender": "f"}),
        sample("This is not good.", tags={"gender": "m"}),
    ]
    assert value(build(Use.model_validate(use), (), None), said) == pytest.approx(0.77 + 0.34, abs=0.01)


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    with pytest.raises(
        EvaluationError, match=r"LU-E016 .*sentiment.*\n.*pip install -c constraints.txt '\.\[sentiment\]'"
    ):
        sentiment.sentiment()
