"""Coverage: silent where test set and requests are alike, and naming what is lacking where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from luthier.conversation import Conversation, Message, make_conversation
from luthier.errors import EvaluationError
from luthier.evaluate import coverage as module
from luthier.evaluate.coverage import coverage, rows_for
from luthier.records import CoverageReport, Region
from luthier.stats import wilson

TOPICS = {
    "parcel": ["where is my parcel", "the parcel has not come", "when does the parcel arrive", "track my parcel"],
    "refund": ["i want a refund", "how long does a refund take", "the refund is too small", "no refund yet"],
    "kettle": ["the kettle leaks", "how do i clean the kettle", "my kettle makes noise", "is the kettle of copper"],
    "invoice": ["please send the invoice", "the invoice has a wrong name", "i need an invoice", "invoice by post"],
}
EXTRA = ("please help", "thanks", "it is urgent", "hello", "")


def draw(rng: Any, n: int, topics: Sequence[str] = tuple(TOPICS), **tags: Sequence[str]) -> list[Conversation]:
    """Requests of these topics at random; `tags` are drawn from their values."""
    texts = [f"{rng.choice(TOPICS[rng.choice(topics)])} {rng.choice(EXTRA)}" for _ in range(n)]
    return [
        conversation(text, f"answer {i}", {tag: str(rng.choice(values)) for tag, values in tags.items()})
        for i, text in enumerate(texts)
    ]


def conversation(text: str, answer: str = "ok", tags: dict[str, Any] | None = None, family: str = "") -> Conversation:
    turns = [Message(role="user", content=text), Message(role="assistant", content=answer)]
    return make_conversation(turns, "data:1", tags, family or None)


def region(report: CoverageReport, by: str, name: str) -> Region:
    return next(r for r in report.regions if r.by == by and name in r.name)


# -- equal distributions ------------------------------------------------------------------------------------------


def test_equal_distributions_show_no_difference() -> None:
    """At 5 %, at least 93 % of 200 draws are silent (95 were expected)."""
    silent = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        report = coverage(
            draw(rng, 80, channel=("mail", "chat")), draw(rng, 160, channel=("mail", "chat")), seed, "word"
        )
        silent += "no difference shown" in report.lines[0]
        assert (report.p >= 0.05) == ("no difference shown" in report.lines[0])
    assert silent >= 186


def test_equal_distributions_show_no_difference_in_topics() -> None:
    quiet = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        quiet += coverage(draw(rng, 80), draw(rng, 160), seed, "topic").p >= 0.05
    assert quiet >= 17


def test_rows_of_one_family_are_one() -> None:
    """Twenty families of eight near-copies: shuffled row by row, every draw would be a false alarm."""
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        test = [conversation(c.prompt_text, f"{c.id} {i}", family=c.id) for c in draw(rng, 20) for i in range(8)]
        requests = draw(rng, 160)
        alarms += coverage(test, requests, seed, "word").p < 0.05
        if seed < 3:
            apart = [c.model_copy(update={"family": c.id}) for c in test]
            assert coverage(apart, requests, seed, "word").p < 0.05
    assert alarms <= 2


# -- what is lacking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["word", "topic"])
@pytest.mark.parametrize("missing", TOPICS)
def test_a_missing_topic_is_named(by: Any, missing: str) -> None:
    rng = np.random.default_rng(7)
    known = [topic for topic in TOPICS if topic != missing]
    report = coverage(draw(rng, 80, known), draw(rng, 160), 7, by)
    lack = region(report, by, missing)
    assert report.p < 0.05 and "they differ" in report.lines[0]
    assert lack.test == 0 and lack.n_test == 0 and lack.rows_lacking == 93 and lack.p < 0.05
    assert any(
        line.startswith(f"too few: {by} ") and missing in line and "93 more rows" in line for line in report.lines
    )


def test_a_tag_a_length_and_a_script_that_are_lacking() -> None:
    rng = np.random.default_rng(1)
    test, requests = draw(rng, 80, channel=("mail",)), draw(rng, 120, channel=("mail", "chat"))
    requests += [conversation(f"где моя посылка номер {i}", tags={"channel": "chat"}) for i in range(40)]
    requests += [conversation(" ".join([c.prompt_text] * 6), tags={"channel": "mail"}) for c in draw(rng, 40)]
    report = coverage(test, requests, 1, "word")
    for by, name, share in (
        ("tag channel", "chat", 0.5),
        ("script", "Cyrillic", 0.2),
        ("length", "words or more", 0.2),
    ):
        found = region(report, by, name)
        assert found.p < 0.05 and found.test <= 0.05 and found.requests == pytest.approx(share, abs=0.1), by
    assert region(report, "script", "Latin").test == 1.0


def test_tags_that_one_side_lacks_or_that_are_keys_are_no_regions() -> None:
    rng = np.random.default_rng(2)
    numbers = [str(i) for i in range(500)]
    test = draw(rng, 60, order=numbers, team=("a", "b"))
    report = coverage(test, draw(rng, 60, order=numbers, channel=("mail", "chat")), 2, "word")
    assert not [r for r in report.regions if r.by.startswith("tag")]


# -- the report ---------------------------------------------------------------------------------------------------


def test_rows_for_a_half_width_are_wilsons() -> None:
    for half_width in (0.05, 0.1, 0.2):
        n = rows_for(half_width)
        widths = [np.diff(wilson(rows / 2, rows, 0.95))[0] / 2 for rows in (n, n - 1)]
        assert widths[0] <= half_width < widths[1]


def test_it_is_the_same_twice_and_survives_the_disk(tmp_path: Any) -> None:
    rng = np.random.default_rng(3)
    test, requests = draw(rng, 50), draw(rng, 70, ("parcel", "refund"))
    report = coverage(test, requests, 3, "topic")
    report.write(tmp_path / "coverage.json")
    assert CoverageReport.read(tmp_path / "coverage.json") == report == coverage(test, requests, 3, "topic")
    assert report.p == min(r.p for r in report.regions)
    gaps = [r.test - r.requests for r in report.regions]
    assert gaps == sorted(gaps) and gaps[0] < 0


def test_more_rows_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 50)
    rng = np.random.default_rng(4)
    report = coverage(draw(rng, 60), draw(rng, 40), 4, "word")
    assert (report.n_test, report.n_requests) == (50, 40)
    assert report.lines[1] == "looked at: at most 50 rows of each, drawn by seed"


def test_one_row_a_side_and_none() -> None:
    one = [conversation("hello")]
    assert coverage(one, one, 0, "word").regions == () and coverage(one, one, 0, "topic").p == 1.0
    for sides in ((one, []), ([], one)):
        with pytest.raises(EvaluationError, match="LU-E012 evaluate.requests: there is no"):
            coverage(*sides, 0)
