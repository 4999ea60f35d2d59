"""Text files: which are documents and which hold several, what is refused, and a recipe that is derived for them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from luthier.encode import Encoder
from luthier.errors import DataError
from luthier.models import find_base, load_tokenizer
from luthier.prepare import derive, prepare
from luthier.recipe import validate

from .lines import run

BLOCKS = "One kettle.\nIt is blue.\n\n  \n\nTwo lids. [a] {b}\r\n\r\nThree cups.\n"


def texts(folder: Path, **data: object) -> list[tuple[str, str]]:
    """Source and text of each document, as they were read."""
    return sorted((c.source, c.answer) for c in run(folder, **data).all())


def test_a_file_that_is_named_holds_documents_between_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(BLOCKS.encode())
    assert texts(tmp_path, sources=[{"path": "corpus.txt"}]) == [
        ("corpus.txt:1", "One kettle.\nIt is blue."),
        ("corpus.txt:6", "Two lids. [a] {b}"),
        ("corpus.txt:8", "Three cups."),
    ]
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(BLOCKS.encode()))
    assert len(texts(tmp_path, sources=[{"path": "packed.txt.gz"}])) == 3


def test_a_file_of_a_folder_is_a_document_unless_its_name_is_that_of_a_side(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.md", "b.txt", "test-report.md", "train.txt", "valid.txt"):
        (tmp_path / "in" / name).write_text(f"{name} begins.\n\n{name} ends.\n")
    found = run(tmp_path, sources=[{"path": "in"}])
    whole = {c.source: c.answer for c in found.side("train")}
    assert {s for s in whole if not s.startswith("in/train")} == {"in/a.md:1", "in/b.txt:1", "in/test-report.md:1"}
    assert whole["in/a.md:1"] == "a.md begins.\n\na.md ends."
    assert [c.source for c in found.side("validation")] == ["in/valid.txt:1", "in/valid.txt:3"]
    assert {"in/train.txt:1", "in/train.txt:3"} <= whole.keys()


@pytest.mark.parametrize(
    ("code", "name", "content"),
    [
        ("LU-D016", "a.txt", b'{"text": "a"}\n{"text": "b"}\n'),
        ("LU-D016", "a.txt", b'[{"text": "a"}]'),
        ("LU-D016", "a.md", b"PAR1" + bytes(40)),
        ("LU-D006", "a.txt", "text".encode("utf-16")),
        ("LU-D014", "a.txt", b"  \n\n"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, code: str, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=code):
        run(tmp_path, sources=[{"path": name}])


def test_brackets_make_no_json_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("[A link](b) and\n{\n  code\n}\n\nmore\n")
    assert len(texts(tmp_path, sources=[{"path": "a.md"}])) == 2


def test_a_document_that_is_no_utf_8_is_rejected_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Good.\n\nGrüße\n\nFine.".encode().replace(b"\xc3\xbc", b"\xfc"))
    found = run(tmp_path, sources=[{"path": "a.txt"}])
    assert [c.answer for c in found.all()] == ["Good.", "Fine."]
    assert found.report.counts["LU-D005"] == 1 and "a.txt:3" in str(found.report.findings)


def test_what_is_derived_for_texts_asks_for_perplexity(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for i in range(40):
        (tmp_path / "docs" / f"{i}.md").write_text(f"# Page {i}\n\nAbout item {i}.")
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"Document number {i} is about item {i}." for i in range(20_000)))
    small, large = derive(tmp_path / "docs"), derive(tmp_path / "corpus.txt")
    assert len(small["data"]["sources"]) == 1
    for tree in (small, large):
        recipe = validate(tree, "derived", tmp_path)
        assert [r.metric for r in recipe.release.rules] == ["perplexity", "general_perplexity"]
        assert recipe.data.format == "text" and recipe.data.max_tokens == 1024
    assert small["data"]["split"]["test_fraction"] == 0.1 and large["data"]["split"]["test_fraction"] == 500 / 20_000


def test_a_long_document_is_kept_whole_and_its_windows_are_counted(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "docs").mkdir()
    for i in range(12):
        (tmp_path / "docs" / f"{i}.txt").write_text(f"Item {i} " + "costs seven euros and " * (3 * i + 1))
    rules = [{"metric": "perplexity", "must": "beat_baseline"}]
    data = {"sources": [{"path": "docs", "weight": 0.5}], "max_tokens": 50}
    recipe = validate({"name": "t", "data": data, "release": {"rules": rules}}, "recipe.yaml", tmp_path)
    tokenizer = load_tokenizer(find_base(str(tiny)))
    report = prepare(recipe, tmp_path, tmp_path / "out", Encoder(tokenizer, 50))
    assert sum(report.sides.values()) == 12 and not report.counts.get("LU-D046")
    lengths = [len(Encoder(tokenizer)(c).ids) for c in run(tmp_path, sources=data["sources"]).all()]
    longer = [n for n in lengths if n > 50]
    n_windows = sum(-(-(n - 1) // 49) for n in longer)
    said = f"{len(longer)} documents of more than 50 tokens ({sum(longer):,} in all) are {n_windows} windows"
    assert any(said in note for note in report.notes), report.notes
    assert b'"weight":0.5' in (tmp_path / "out" / "train.jsonl").read_bytes()
