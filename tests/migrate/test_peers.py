"""Realistic configurations of each peer: the recipe loads and says the same, and every key is accounted for once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import LuthierError
from luthier.migrate import PEERS, Migration, convert
from luthier.migrate.engine import Key, Table
from luthier.migrate.llamafactory_data import DATASET
from luthier.migrate.read import read
from luthier.recipe import load

from . import configurations
from .configurations import INFO, Case

CASES = [
    pytest.param(peer, case, id=f"{peer}: {name}")
    for peer, cases in configurations.PEERS.items()
    for name, case in cases.items()
]


def migrated(folder: Path, peer: str, text: str, **options: Any) -> tuple[Migration, Path]:
    """The migration of a configuration in `folder`, and the recipe's file."""
    config, out = folder / f"{peer}.yaml", folder / "recipe.yaml"
    config.write_text(text)
    info = folder / "dataset_info.json" if peer == "llamafactory" else None
    if info:
        info.write_text(INFO)
    found = convert(config, info, out, **options)
    out.write_text(found.text)
    return found, out


def leaves(tree: Any, above: Key = ()) -> Iterator[Key]:
    """Every value of a file that holds no others, by its keys."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    inside = [leaf for key, value in items for leaf in leaves(value, (*above, str(key)))]
    yield from inside or ([above] if above else [])


def check_settings_once(found: Migration) -> None:
    """Where several keys speak of one setting, one of them decides, whatever their order in the file."""
    written: dict[str, Any] = {}
    for entry in (*found.entries, *found.assumed):
        for place, value in entry.fate.settings.items():
            assert written.setdefault(place, value) == value, place


def check_every_key_once(found: Migration, folder: Path) -> None:
    """The invariant: for each leaf of a file, exactly one entry is of it or of something that it is in."""
    for file in {entry.file for entry in found.entries}:
        keys = Counter(entry.key for entry in found.entries if entry.file == file)
        for leaf in leaves(read(folder / file)):
            above = [leaf[:n] for n in range(1, len(leaf) + 1)]
            below = [key for key in keys if key[: len(leaf)] == leaf and key != leaf]
            assert sum(keys[key] for key in above) + len(below) == 1, leaf


@pytest.mark.parametrize(("peer", "case"), CASES)
def test_the_recipe_loads_and_says_the_same(
    peer: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out = migrated(tmp_path, peer, case.text)
    assert found.peer == PEERS[peer].name
    recipe = load(out)
    assert recipe == found.recipe
    tree: Any = recipe
    for place, value in case.settings.items():
        tree = recipe
        for part in place.split("."):
            tree = tree[int(part)] if part.isdecimal() else getattr(tree, part)
        assert tree == value or str(tree) == str(tmp_path / str(value)), place


@pytest.mark.parametrize(("peer", "case"), CASES)
def test_every_key_ends_in_one_state(peer: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, _ = migrated(tmp_path, peer, case.text)
    check_every_key_once(found, tmp_path)
    check_settings_once(found)
    states = {entry.name: entry.fate.state for entry in found.entries}
    assert {key: states[key] for key in case.states} == case.states
    assert all(entry.fate.said for entry in found.entries if entry.fate.state != "carried")
    assert "hush" not in str(found)
    for entry in found.of("not_supported"):
        assert ";" in entry.fate.said or ":" in entry.fate.said, f"{entry.name}: what to do instead?"


@pytest.mark.parametrize("peer", PEERS)
def test_each_peer_has_eight_configurations(peer: str) -> None:
    assert len(configurations.PEERS[peer]) >= 8


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(
        ["no", "1e-4", "all", "lora", "${HOME}", "\x1b[31m", "{{ 7*7 }}", "../..", "a" * 300, "😀", "\ud800"]
    )
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


LIKELY = st.sampled_from([True, False, 0, 1, 0.5, 8, "epoch", "steps", "constant", "cosine", "lora", "full", "q_proj"])


def wild(data: st.DataObject, table: Table) -> dict[str, Any]:
    """Some known keys with any values, and other keys."""
    names = data.draw(st.lists(st.sampled_from(sorted(table)), max_size=5, unique=True))
    tree = {name: data.draw(LIKELY | VALUES) for name in names}
    tree |= data.draw(st.dictionaries(st.text(max_size=6), VALUES, max_size=1))
    for name, rule in table.items():
        if rule.inner is not None and name in tree and data.draw(st.booleans()):
            tree[name] = wild(data, rule.inner)
    return tree


@pytest.mark.parametrize("peer", PEERS)
@given(data=st.data())
def test_wild_files_are_migrated_whole_or_refused_with_reasons(
    peer: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Known keys with any values, and any other keys: a list of all of them, or an error for people."""
    table = PEERS[peer].table
    tree = wild(data, table) | {"base_model" if peer == "axolotl" else "model_name_or_path": "a/b"}
    folder, info = tmp_path_factory.mktemp("wild"), None
    if peer == "llamafactory":
        tree |= {"dataset": "x"}
        info = folder / "dataset_info.json"
        info.write_text(json.dumps({"x": {"file_name": "x.jsonl"} | wild(data, DATASET)}))
    else:
        inner = table["datasets"].inner
        assert inner is not None
        tree |= {"datasets": [{"path": "x.jsonl"} | wild(data, inner)]}
    config = folder / "wild.json"
    config.write_text(json.dumps(tree))
    try:
        found = convert(config, info, folder / "recipe.yaml", peer=peer)
    except LuthierError as error:
        assert error.exit_code == 2 and all(problem.where and problem.found for problem in error.problems)
    else:
        check_every_key_once(found, folder)
        check_settings_once(found)
        (folder / "recipe.yaml").write_text(found.text)
        assert load(folder / "recipe.yaml") == found.recipe
        assert "\x1b" not in found.text + json.dumps(found.told())


def test_the_keys_are_those_of_the_trl_that_is_installed() -> None:
    """A key that TRL has learned since is found here."""
    trl = pytest.importorskip("trl")
    from dataclasses import fields

    from trl.scripts.utils import DatasetConfig, DatasetMixtureConfig, ScriptArguments

    configs = [getattr(trl, f"{name}Config") for name in "SFT DPO KTO GRPO RLOO Reward Model".split()]
    keys = {field.name for one in (*configs, DatasetMixtureConfig, ScriptArguments) for field in fields(one)}
    assert not keys - PEERS["trl"].table.keys()
    entry = PEERS["trl"].table["datasets"].inner
    assert entry is not None and {field.name for field in fields(DatasetConfig)} == entry.keys()


def test_the_defaults_are_those_of_the_trl_that_is_installed() -> None:
    trl = pytest.importorskip("trl")
    table = PEERS["trl"].table
    sft, model = trl.SFTConfig(output_dir="x", bf16=False), trl.ModelConfig()
    for key, rule in table.items():
        if rule.default is not None and key != "lora_target_modules":  # None there: PEFT's own
            theirs = getattr(sft, key) if hasattr(sft, key) else getattr(model, key)
            assert getattr(theirs, "value", theirs) == rule.default, key


def test_what_no_peer_says_is_luthiers_default_too() -> None:
    """Keys that the tables give no default: the peers' are Luthier's own."""
    from luthier.settings import Train

    train = Train()
    assert (train.max_grad_norm, train.optimizer, train.weight_decay) == (1.0, "adamw", 0.0)
