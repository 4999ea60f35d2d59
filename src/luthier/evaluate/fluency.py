"""Fluency: how well the base model foresees the answers, read as plain text without their prompts.

Both models' answers are read by the same judge, the base model, so that the values compare. It is asked for each text
once and only where a recipe measures `fluency`. What reads well to it need not be right, nor fit the question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from luthier import kept
from luthier.decoder import Decoder, score_all
from luthier.encode import Encoded, Encoder
from luthier.errors import DataError
from luthier.machine import versions
from luthier.metric import Sample
from luthier.progress import Reporter


class Reader:
    """The base model as a reader of answers; loaded only where a text is new."""

    def __init__(
        self, model: str, load: Callable[[], nn.Module], encoder: Encoder, tokens_at_once: int, kept: Path
    ) -> None:
        """`model` is its fingerprint; what it made of texts is `kept` in a folder."""
        self._model, self._load, self._encoder = model, load, encoder
        self._tokens_at_once, self._kept = tokens_at_once, kept

    def __call__(self, samples: Sequence[Sample], report: Reporter) -> list[Sample]:
        """The samples with what was read in each answer; nothing is said of one that is empty or cannot be read."""
        texts = sorted({s.answer for s in samples if s.answer})
        key = [self._model, texts, versions(("luthier", "torch", "transformers"))]
        path = self._kept / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"
        if (content := kept.read(path)) is None:
            content = json.dumps(self._read(texts, report)).encode()
            kept.write(path, content)
        found = json.loads(content)
        return [replace(s, read=tuple(found[s.answer]) if s.answer in found else None) for s in samples]

    def _read(self, texts: Sequence[str], report: Reporter) -> dict[str, tuple[float, int]]:
        encoded = {text: made for text in texts if (made := self._encoded(text)) is not None}
        with report.bar("fluency: the base reads", len(encoded)) as advance:
            decoder = Decoder(self._load()) if encoded else None
            nats = score_all(decoder, [*encoded.values()], self._tokens_at_once, advance) if decoder else []
        return {text: (n, made.n_learned) for (text, made), n in zip(encoded.items(), nats, strict=True)}

    def _encoded(self, text: str) -> Encoded | None:
        try:
            return self._encoder.continuation("", text, "answer")
        except DataError:  # characters that no text should hold: it has no fluency to measure
            return None
