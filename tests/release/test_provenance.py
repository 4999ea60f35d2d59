"""Licences are read where they are stated; arithmetic and energy follow their formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence import recipe, training

from luthier.release.provenance import stated_licences, training_flops, training_kwh


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("# Set\n\n- Licence: CC BY 4.0 (data), MIT (code)\n- Notes: none\n", "CC BY 4.0 (data), MIT (code)"),
        ("---\nlicense: apache-2.0\n---\n# Set\n", "apache-2.0"),
        ("Made up, word by word. Licence: Apache-2.0.\n", "Apache-2.0."),
        ("**License:** MIT\n", "MIT"),
        ("The licence is unclear.\n", None),
        ("licence:\nMIT", None),
        (None, None),
    ],
)
def test_the_licence_beside_the_data(tmp_path: Path, readme: str | None, licence: str | None) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if readme is not None:
        (folder / "README.md").write_text(readme)
    for path in ("data/rows.jsonl", "data"):
        found = stated_licences(recipe(data={"sources": [{"path": path}]}), tmp_path)
        assert found == ({path: licence} if licence else {})


def test_real_data_states_its_licence(data_dir: Path) -> None:
    found = stated_licences(recipe(data={"sources": [{"path": "banking77/train.jsonl"}]}), data_dir)
    assert found["banking77/train.jsonl"].startswith("CC BY 4.0")


def test_flops_are_six_n_where_all_weights_are_trained_and_less_with_adapters() -> None:
    full = training().model_copy(update={"n_parameters": 1000, "n_trainable": 1000, "n_computed_tokens": 7})
    assert training_flops(full) == 6 * 1000 * 7
    assert training_flops(full.model_copy(update={"n_trainable": 10})) == (4 * 1000 + 2 * 10) * 7


def test_energy_is_watts_times_hours() -> None:
    hour = training().model_copy(update={"seconds": 3600.0})
    assert training_kwh(hour, {"device": "CPU", "threads": "8"})[:2] == pytest.approx((0.024, 0.12))
    low, high, assumed = training_kwh(hour, {"device": "NVIDIA T4", "threads": "8"})
    assert (low, high) == pytest.approx((0.075, 1.0)) and "NVIDIA T4" in assumed
    assert training_kwh(hour, {"base_model": "x"}) is None
