"""The general probe: enough texts, as many as asked for, spread over the kinds."""

from __future__ import annotations

import pytest

from luthier.evaluate.suites.general import probe_documents


def test_there_are_enough_documents_of_many_kinds() -> None:
    documents = probe_documents()
    assert len(documents) == len({d.id for d in documents}) >= 200
    assert len({d.tags["kind"] for d in documents}) >= 20


@pytest.mark.parametrize("limit", [1, 24, 200, 244, 10_000])
def test_a_limit_gives_that_many_without_repeats(limit: int) -> None:
    documents = probe_documents(limit)
    assert len({d.id for d in documents}) == len(documents) == min(limit, len(probe_documents()))
    if limit >= 200:
        assert len({d.tags["kind"] for d in documents}) >= 20


def test_no_replayed_text_of_the_starter_is_in_the_probe() -> None:
    import json
    from importlib.resources import files

    lines = files("luthier.starter").joinpath("general.jsonl").read_text(encoding="utf-8").splitlines()
    probe = " ".join(d.answer for d in probe_documents())
    assert len(lines) >= 30 and not any(json.loads(line)["text"][:60] in probe for line in lines)
