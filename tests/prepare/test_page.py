"""The data page holds what the audit says, shows no personal data, and lets no text of the data become markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

from luthier.page import words
from luthier.page.plots import Bars, histogram
from luthier.records import AuditReport

from .lines import GOOD, chat, run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \x1b[31m\u202e"


def page_of(folder: Path, lines: list[str], **data: object) -> tuple[str, AuditReport]:
    (folder / "data.jsonl").write_text("\n".join(lines))
    prepared = run(folder, sources=[{"path": "data.jsonl"}], **data)
    return (prepared.out / "data.html").read_text(), prepared.report


def test_the_page_says_what_the_audit_says(tmp_path: Path) -> None:
    page, report = page_of(tmp_path, ["no json", *GOOD, GOOD[0]], clean=["white_space", {"use": "dedupe"}])
    assert "7 rows read, 5 conversations kept" in page and "1 exact copy" in page
    assert all(code in page for code in report.counts) and "LU-D001" in report.counts
    assert all(digest in page for digest in report.hashes.values())
    assert page.count("<svg") == 2 and "learned tokens of a row" in page
    assert len(re.findall(r"assistant, learned", page)) == 5


def test_every_row_is_in_one_bin_of_its_side(tmp_path: Path) -> None:
    long = chat("word " * 300, "yes")
    _, report = page_of(tmp_path, [*GOOD, long], split={"valid_fraction": 0.2, "test_fraction": 0.2})
    for lengths in report.lengths:
        assert {side: sum(n) for side, n in lengths.counts.items()} == report.sides
        assert list(lengths.edges) == sorted(set(lengths.edges)), "each bin has a width"
        first, last = (sum(counts[i] for counts in lengths.counts.values()) for i in (0, -1))
        assert first and last, "no bin before the shortest row or behind the longest"


def test_no_text_becomes_markup_and_no_personal_data_is_shown(tmp_path: Path) -> None:
    rows = [chat(f"{HOSTILE} {i} write to ann@shop.example", HOSTILE, topic=HOSTILE) for i in range(5)]
    page, _ = page_of(tmp_path, rows)
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert "\x1b" not in page and "\u202e" not in page and r"\x1b[31m\u202e" in page
    assert "ann@shop" not in page and "&lt;EMAIL&gt;" in page
    assert "ann@shop" in json.dumps(
        [row.messages[0].content for row in run(tmp_path, sources=[{"path": "data.jsonl"}]).all()]
    )


def test_facts_are_told_shortly() -> None:
    told = [words.fact(value) for value in (1234, 0.00091234, -0.5, "a-b", None, 3e-9)]
    assert told == ["1,234", "0.000912", "−0.5", "a-b", "–", "3e−09"]


def test_a_histogram_draws_shares() -> None:
    drawn = histogram(
        (1, 2, 4), [Bars("training", [1, 3], "tuned"), Bars("held out", [4, 0], "base")], x_label="n", label="n"
    )
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" fill="currentColor" fill-opacity', drawn)]
    assert len(heights) == 2 and abs(heights[1] - 3 * heights[0]) < 0.2
    assert "training: 4 rows, most from 2" in drawn and "held out: 4 rows, most from 1" in drawn
