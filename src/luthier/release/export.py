"""Export: the trained model as files that plain transformers and peft load, checked to behave as the original."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.bottleneck import is_bottleneck
from luthier.errors import Stopped
from luthier.files import fresh_folder
from luthier.models import Base, load_model, load_tokenizer, quiet_transformers
from luthier.saved import is_adapter, load_adapted, load_merged

MERGE_TOLERANCE = 1e-5
"""Largest difference of merged float32 logits, relative to the largest logit."""


def export(
    base: Base, trained: Path, out: Path, kinds: Sequence[str], prompts: Sequence[list[int]]
) -> dict[str, float]:
    """Write the exports of `kinds` beside the adapter; returns the parity measured for each.

    Every artifact is loaded again by transformers or peft alone (bottleneck adapters, which neither has, by this
    package), and its logits on `prompts` are compared with those of the model that training left. Raises Stopped
    LU-S010 if they differ by more than allowed.
    """
    original = _original(base, trained)
    expected = [_logits(original, p) for p in prompts]
    parity = {"adapter" if is_adapter(trained) else "model": _gap(_reloaded(base, trained), prompts, expected)}
    if "merged" in kinds and is_adapter(trained):
        merged = load_merged(load_model(base, torch.device("cpu"), torch.float32), trained)
        with fresh_folder(out / "merged") as building:
            merged.save_pretrained(building)  # type: ignore[operator]
            load_tokenizer(base).save_pretrained(building)
        parity["merged"] = _gap(_plain(out / "merged"), prompts, expected)
    for kind, gap in parity.items():
        allowed = MERGE_TOLERANCE if kind == "merged" else 0.0
        if gap > allowed:
            raise Stopped.of(
                "LU-S010", kind, f"the export's logits differ by {gap:.1e}, more than {allowed:.0e} of the largest"
            )
    return parity


def _original(base: Base, trained: Path) -> Any:
    """The trained model on the CPU in float32, as evaluation loads it, but unmerged."""
    model = load_model(base, torch.device("cpu"), torch.float32)
    return load_adapted(model, trained) if is_adapter(trained) else load_merged(model, trained)


def _reloaded(base: Base, trained: Path) -> Any:
    """The same files through nothing but transformers and peft, where these can load them."""
    if not is_adapter(trained):
        return _plain(trained)
    if is_bottleneck(trained):
        return load_adapted(_plain(base.folder), trained)
    from peft import PeftModel

    with quiet_transformers():
        return PeftModel.from_pretrained(_with_rows_for(trained, _plain(base.folder)), trained).eval()


def _plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _with_rows_for(trained: Path, model: Any) -> Any:
    """The model with embeddings for all tokens of the tokenizer that lies beside an adapter, as its card says."""
    from transformers import AutoTokenizer

    n = len(AutoTokenizer.from_pretrained(trained))
    if n > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(n, mean_resizing=False)  # the adapter has the rows
    return model


@torch.no_grad()
def _logits(model: Any, prompt: list[int]) -> Tensor:
    """(T, V)"""
    return model(torch.tensor([prompt])).logits[0]  # type: ignore[no-any-return]


def _gap(model: Any, prompts: Sequence[list[int]], expected: Sequence[Tensor]) -> float:
    """Largest absolute difference of logits, relative to the largest logit."""
    return max(
        float((_logits(model, p) - e).abs().max() / e.abs().max()) for p, e in zip(prompts, expected, strict=True)
    )
