"""Keys: what changes no result changes no run's folder, and what decides one is in its stage's key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.keys import difference, identity, stage_inputs
from luthier.recipe import validate
from luthier.settings import Recipe


def recipe(folder: Path, **data: Any) -> Recipe:
    rules = [{"metric": "token_f1", "must": "beat_baseline"}]
    data = {"sources": [{"path": "data.jsonl"}], **data}
    return validate({"name": "keys", "data": data, "release": {"rules": rules}}, "recipe.yaml", folder)


def test_what_stops_at_a_bad_row_prepares_anew_in_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n")
    lenient, strict = recipe(tmp_path), recipe(tmp_path, bad_rows="strict")
    assert identity(lenient, tmp_path) == identity(strict, tmp_path)
    before, after = (stage_inputs("prepare", one, tmp_path, tmp_path, "base") for one in (lenient, strict))
    assert difference(before, after) == "bad rows"
    assert identity(lenient, tmp_path) != identity(recipe(tmp_path, limit=5), tmp_path)
