"""Coverage: silent where training rows are like the requests, and naming what to collect where they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.clusters import telling
from luthier.embed import available
from luthier.errors import DataError, RecipeError
from luthier.prepare.checks import coverage as module
from luthier.prepare.checks.coverage import _density, _neighbours
from luthier.records import Checked

from ..lines import DATA, chat, run

pytestmark = pytest.mark.skipif(not available(), reason="needs the extra meaning")

TOPICS = {
    "parcel": ["where is my parcel", "the parcel has not come", "when does the parcel arrive", "track my parcel"],
    "refund": ["i want a refund", "how long does a refund take", "the refund is too small", "no refund yet"],
    "kettle": ["the kettle leaks", "how do i clean the kettle", "my kettle makes noise", "is the kettle of copper"],
    "invoice": ["please send the invoice", "the invoice has a wrong name", "i need an invoice", "invoice by post"],
}
EXTRA = [
    "please help",
    "thanks",
    "it is urgent",
    "hello",
    "",
    "today",
    "again",
    "for my mother",
    "in Paris",
    "as a gift",
]


def texts(*topics: str) -> list[str]:
    return [f"{text} {extra}".strip() for topic in topics for text in TOPICS[topic] for extra in EXTRA]


def checked(folder: Path, train: list[str], requests: list[str], **settings: Any) -> Checked:
    (folder / "data.jsonl").write_text("\n".join(chat(text, "Yes.") for text in train))
    (folder / "requests.txt").write_text("\n".join(requests))
    use = {"use": "coverage", "requests": "requests.txt", **settings.pop("check", {})}
    done = run(folder, sources=[{"path": "data.jsonl"}], checks=[use], **settings)
    (found,) = done.report.checks
    assert not found.suspects
    return found


def test_a_missing_topic_is_named_first_with_the_rows_that_it_lacks(tmp_path: Path) -> None:
    every = texts(*TOPICS)
    train = [text for text in every if "kettle" not in text]
    found = checked(tmp_path, train[::2], every[1::2])
    rows = found.tables[0].rows
    lacking = [row for row in rows if row[6]]
    assert lacking and all("kettle" in str(row[0]) for row in lacking) and rows[: len(lacking)] == tuple(lacking)
    assert sum(int(row[1]) for row in lacking) >= 10 and "What to collect next: '" in found.notes[0]
    assert 10 <= sum(int(row[6]) for row in lacking) <= 30, "of sixty rows, a quarter of the whole"
    assert all(row[4] <= row[3] <= row[5] < row[2] for row in lacking)  # type: ignore[operator]


def test_equal_sources_show_no_lack(tmp_path: Path) -> None:
    every = texts(*TOPICS)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(every))
        found = checked(tmp_path, [every[i] for i in order[:80]], [every[i] for i in order[80:]])
        assert "no topic is shown to have a smaller share" in found.notes[0]


def test_requests_count_as_often_as_they_came_and_alike_ones_are_no_neighbours(tmp_path: Path) -> None:
    every = texts(*TOPICS)
    found = checked(tmp_path, every[::2], [*every[1::2], *["track my parcel thanks"] * 100])
    assert sum(int(row[1]) for row in found.tables[0].rows) == 180
    assert not any(row[6] for row in found.tables[0].rows)


def test_requests_far_from_all_rows_are_counted_with_an_interval(tmp_path: Path) -> None:
    odd = ["the moon is far away", "whales sing at night"]
    found = checked(tmp_path, texts("parcel"), [*texts("parcel")[:38], *odd], check={"near": 0.3})
    assert any(note.startswith("5.0% of 40 requests (1.4% to 16.5%) have no training row") for note in found.notes)


def test_more_than_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUESTS", 50)
    monkeypatch.setattr(module, "MAX_TRAIN", 60)
    every = texts(*TOPICS)
    found = checked(tmp_path, every, every)
    assert sum(int(row[1]) for row in found.tables[0].rows) == 50 and "160 training rows" in found.notes[0]
    assert "at most 50 requests and 60 training rows are looked at, drawn by seed" in found.notes


def test_it_is_the_same_twice_and_shows_nothing_personal(tmp_path: Path) -> None:
    requests = [f"{text} write to ann@shop.example" for text in texts("kettle", "refund")]
    found = checked(tmp_path, texts("parcel", "refund"), requests)
    assert found == checked(tmp_path, texts("parcel", "refund"), requests)
    assert "ann" not in json.dumps(found.model_dump(mode="json"))


def test_requests_are_cleaned_as_the_rows_are(tmp_path: Path) -> None:
    every = texts(*TOPICS)
    tagged = [f"<p class='kettle moon whale'>{text}</p>" for text in every]
    found = checked(tmp_path, every[::2], tagged[1::2], clean=["strip_html"])
    assert "whale" not in json.dumps(found.tables[0].rows)
    assert "no topic is shown" in found.notes[0]


def test_too_few_requests_and_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="LU-D162 data.checks: coverage: requests.txt: 1 different requests"):
        checked(tmp_path, texts("parcel"), ["hello"] * 5)
    with pytest.raises(RecipeError, match="LU-R012.*'coverage' needs requests"):
        run(tmp_path, sources=[{"path": "data.jsonl"}], checks=["coverage"])


def test_neighbours_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    rng = np.random.default_rng(0)
    every = rng.normal(size=(50, 8)).astype(np.float32)
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    beside, nearest = _neighbours(every[:20], every[20:])
    for i in range(20):
        others = [j for j in np.argsort(-(every @ every[i])) if j != i]
        assert beside[i] == pytest.approx(np.mean([j >= 20 for j in others[:5]]))
        assert nearest[i] == pytest.approx(max(every[20:] @ every[i]), abs=1e-6)


def test_the_density_is_the_ratio_of_odds() -> None:
    assert _density(0.8, 0.8, 0.01) == pytest.approx(1) and _density(0.0, 0.8, 0.01) == 0
    assert _density(2 / 3, 0.8, 0.01) == pytest.approx(0.5) and 0 < _density(1.0, 0.8, 0.01) < np.inf


def test_a_name_has_no_word_of_one_text_and_none_that_all_have() -> None:
    from collections import Counter

    bags = [{"my", "kettle", "leaks"}, {"my", "kettle", "ann"}, {"my", "kettle"}, *[{"my", "parcel", "leaks"}] * 9]
    counts = Counter(word for bag in bags for word in bag)
    assert telling(bags[:3], counts, len(bags), 4) == "kettle"


def test_missing_intents_of_a_real_set_are_found(tmp_path: Path) -> None:
    if not (DATA / "banking77").is_dir():
        pytest.skip("needs LUTHIER_DATA")
    rows = [json.loads(line) for line in (DATA / "banking77" / "train.jsonl").read_text().splitlines()]
    intents = sorted({row["intent"] for row in rows})[:12]
    rows = [row for row in rows if row["intent"] in intents]
    missing = {"age_limit", "apple_pay_or_google_pay"}
    train = [row["text"] for row in rows[::2] if row["intent"] not in missing]
    found = checked(tmp_path, train, [row["text"] for row in rows[1::2]])
    named = " ".join(str(row[0]) for row in found.tables[0].rows if row[6])
    assert "apple" in named and ("age" in named or "old" in named)
