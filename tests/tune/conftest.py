"""A project whose nested parts are large enough to choose and to report by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RECIPE = """
name: tiny
seed: 3
data:
  sources: [{{path: rows.jsonl}}]
  split: {{by: row, valid_fraction: 0.1, test_fraction: 0.15, near_duplicate_similarity: 1.0}}
  slices: [topic]
model: {{base: "{base}", adapt: {{method: lora, rank: 4}}}}
train: {{epochs: 1, examples_per_step: 12, learning_rate: 1e-2}}
evaluate: {{max_new_tokens: 2, probe_documents: 20, metrics: [token_f1, perplexity, {{use: "own:has_number"}}]}}
release: {{rules: [{{metric: perplexity, must: beat_baseline}}]}}
"""
OWN = "def has_number(sample):\n    return any(c.isdigit() for c in sample.answer)\n"
COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "pink")
THINGS = ("kettle", "lamp", "spade", "apron", "pot", "knife", "bench", "hose", "bin", "rake", "sieve", "jug")


@pytest.fixture
def project(tmp_path: Path, tiny: Path) -> Path:
    rows = [
        {
            "prompt": f"What colour is the {thing} of size {i}?",
            "completion": f"The {thing} of size {i} is {COLOURS[(len(thing) + i) % 8]}.",
            "topic": "kitchen" if i % 2 else "garden",
        }
        for thing in THINGS
        for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny))
    return tmp_path
