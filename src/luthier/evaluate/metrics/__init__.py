"""The built-in metrics: score functions of one sample, and factories of metrics that are functions of sums.

By the model's probabilities (`likelihood.py`), by words and characters shared with the reference (`overlap.py`), of
labels, of the answer's form, of calls of tools, refusals, meaning, tone, and gaps between groups; docs/metrics.md lists
all. Metrics of generated answers apply where something was asked (`Sample.prompt`), never to plain text. BLEU, chrF and
TER are reported from 0 to 100, as their users know them; everything else from 0 to 1, or in its own unit. None needs
torch. How a recipe names one, own metrics included, is `build.py`'s affair.
"""

from __future__ import annotations

from luthier.records import Task
from luthier.settings import Use


def default_metrics(task: Task) -> tuple[Use, ...]:
    """What is measured when the recipe names no metric."""
    names = {
        "classification": "accuracy balanced_accuracy precision recall f1 label_skill invalid_label "
        "choice_accuracy choice_balanced_accuracy choice_f1 choice_skill label_nll brier ece perplexity",
        "answer": "perplexity exact_match token_f1 rouge1 rouge2 rougeL bleu chrf",
        "dialogue": "perplexity exact_match token_f1 rouge1 rouge2 rougeL bleu chrf",
        "text": "perplexity bits_per_byte",
    }[task]
    return tuple(Use(use=name) for name in names.split())
