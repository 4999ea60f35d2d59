"""The tone of a text by the lexicon and rules of VADER (Hutto & Gilbert 2014), where its package is installed.

English; knows words, not what is meant: "I am sorry that you are ill" counts as negative, and irony as meant.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any


def available() -> bool:
    return importlib.util.find_spec("vaderSentiment") is not None


def tone_of(text: str) -> float:
    """From -1, hostile, to 1, warm; 0 where no word of the lexicon stands."""
    return float(_lexicon().polarity_scores(text)["compound"])


@cache
def _lexicon() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
