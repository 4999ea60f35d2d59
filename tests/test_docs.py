"""What README and docs say is so: commands exist, links lead somewhere, the settings page is the recipe's tree."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "RESULTS.md"]


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "docs" / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_is_written_from_the_recipe(make: ModuleType) -> None:
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == make.page(), "run make docs"


def test_the_tables_of_peers_keys_are_written_from_the_rules(make: ModuleType) -> None:
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    assert text == make.migrate_page(text), "run make docs"
    from luthier.migrate import PEERS

    for key, peer in PEERS.items():
        table = text[text.index(f"<!-- keys of {key} -->") :].partition("<!-- end of keys -->")[0]
        assert not [name for name in peer.table if f"`{name}`" not in table]


def test_every_code_of_a_bad_file_or_row_is_described() -> None:
    code, room = re.compile(r"LU-D0[0-5]\d"), ROOT / "src" / "luthier" / "prepare"
    raised = {found for path in room.glob("*.py") for found in code.findall(path.read_text(encoding="utf-8"))}
    said = code.findall((ROOT / "docs" / "data.md").read_text(encoding="utf-8"))
    assert len(raised) > 50 and not raised.difference(said)


def test_every_setting_is_described() -> None:
    rows = re.findall(r"^\| `.*", (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8"), flags=re.M)
    assert rows and not [row for row in rows if row.endswith("|  |") and not row.startswith("| `method`")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page: Path) -> None:
    from luthier.cli import app

    verbs = {c.name or (c.callback.__name__ if c.callback else "") for c in app.registered_commands}
    for verb in re.findall(r"`luthier ([a-z]+)", page.read_text(encoding="utf-8")):
        assert verb in verbs, f"{page.name}: luthier {verb}"


def test_no_make_target_is_promised_in_vain() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z]+)", page.read_text(encoding="utf-8"))) <= targets
