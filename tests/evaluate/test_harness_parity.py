"""Multiple choice gives lm-evaluation-harness's log-likelihoods and grades, choice by choice."""

from __future__ import annotations

import random
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.decoder import Decoder
from luthier.models import find_base, load_model, load_tokenizer

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "evaluate.py"
WORDS = "the kettle holds two litres of water and a garden grows slowly in every warm northern valley".split()


def questions(n: int) -> list[dict[str, Any]]:
    """Questions that begin alike, with choices of different lengths, some of which begin alike."""
    rng = random.Random(0)
    found = []
    for _ in range(n):
        choices = [" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for _ in range(3)]
        choices.append(choices[0] + " " + rng.choice(WORDS))
        asked = "Question: " + " ".join(rng.choices(WORDS, k=rng.randint(3, 20))) + "?"
        found.append({"prompt": asked, "choices": choices, "label": rng.randrange(4)})
    return found


def test_log_likelihoods_and_grades_are_the_harness_own(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    benchmark = runpy.run_path(str(BENCHMARK))
    base, asked = find_base(str(tiny)), questions(20)
    model, tokenizer = load_model(base, torch.device("cpu"), torch.float32), load_tokenizer(base)
    ours = benchmark["choices"](Decoder(model), tokenizer, asked)
    theirs, grades = benchmark["Harness"](model, tokenizer, asked, tmp_path)(8)
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    assert benchmark["graded"](asked, ours) == grades
    assert 0 < sum(grades["acc"]) < 20  # a comparison of all wrong with all wrong would say little
