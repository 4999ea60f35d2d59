"""`evaluate`: base and tuned model on the same held-out conversations, compared pair by pair.

The functions load on first use: a recipe is checked by importing the metrics, which need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.evaluate.run import compare_answers, evaluate, foresee

__all__ = ["compare_answers", "evaluate", "foresee"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'luthier.evaluate' has no attribute '{name}'")
    from luthier.evaluate import run

    return getattr(run, name)
