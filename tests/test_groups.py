"""Groups that a text names: terms in their case, with people beside them where they need to be; a file of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.groups import Finder, read_groups


def named(text: str, path: Path | None = None) -> set[str]:
    finder = Finder(read_groups(path))
    return {finder.names[found.group][1] for found in finder.find(text)}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("SHE told her aunt.", {"women"}),
        ("Two muslim women and a Catholic priest", {"Muslims", "women", "Christians"}),
        ("Black people; an African-American nurse", {"Black", "American"}),
        ("black shoes, blind spots, a deaf man", {"deaf", "men"}),
        ("Polish workers polish the floor", {"Polish"}),
        ("polish people's floors", set()),
        ("a same-sex couple in a wheelchair", {"gay and lesbian", "wheelchair users"}),
        ("a 60-year-old flat of the old town", set()),
        ("The menu mentions Boston, shells and herbs.", set()),
    ],
)
def test_what_is_named(text: str, groups: set[str]) -> None:
    assert named(text) == groups


def test_where_a_term_stands_is_told() -> None:
    text = "We met black people there."
    finder = Finder(read_groups())
    assert [text[found.start : found.end] for found in finder.find(text)] == ["black people"]


def test_a_file_adds_and_replaces(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("[region]\nnortherners: Northerner, northern PERSON\n[gender]\nmen: lad, lads # not he\n")
    assert named("He is a lad, northern folk say; she is a Northerner.", own) == {"men", "women", "northerners"}
    assert named("He is a northerner.", own) == set()
    kinds = [kind for kind, _ in read_groups(own)]
    assert [kind for i, kind in enumerate(kinds) if kinds.index(kind) == i] == list(dict.fromkeys(kinds))
    assert sorted(kinds, key=kinds.index) == kinds, "those of one kind lie together"


def test_every_wrong_line_is_said(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("women: she\n[gender]\nmen\n: he\nboys: , lads\n")
    with pytest.raises(DataError) as caught:
        read_groups(own)
    assert [problem.where.rpartition(":")[2] for problem in caught.value.problems] == ["1", "3", "4", "5"]
    with pytest.raises(DataError, match=r"LU-D174 .*nowhere.txt: no list of groups"):
        read_groups(tmp_path / "nowhere.txt")


def test_no_shipped_term_names_two_groups_of_a_kind() -> None:
    seen: dict[tuple[str, str], str] = {}
    for (kind, group), terms in read_groups().items():
        for term in terms:
            assert seen.setdefault((kind, term.lower()), group) == group, term
