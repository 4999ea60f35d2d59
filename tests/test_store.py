"""Run folders: what is finished is found again, what is damaged is seen, what another run has done is taken over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from luthier import store
from luthier.errors import RunError
from luthier.records import RunRecord
from luthier.store import (
    STAGES,
    artifacts_in,
    damaged,
    find_run,
    find_stage,
    folder_hash,
    link_stage,
    runs_in,
    stage_record,
)

FILES = {"train.json": b"{}", "model/adapter.safetensors": b"weights", "model/empty": b""}


def make_run(workspace: Path, name: str, age: int = 0) -> Path:
    """A run's folder, `age` seconds old."""
    run = workspace / name
    run.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.yaml", "run.json"):
        (run / name).write_text("{}")
    os.utime(run, (10**9 - age, 10**9 - age))
    return run


def finish(run: Path, key: str = "key", stage: str = "train", files: dict[str, bytes] = FILES) -> RunRecord:
    """A finished stage of a run."""
    mtime = run.stat().st_mtime
    for name, content in files.items():
        (run / stage / name).parent.mkdir(parents=True, exist_ok=True)
        (run / stage / name).write_bytes(content)
    settings: dict[str, Any] = {"stage": stage, "key": key, "artifacts": artifacts_in(run / stage)}
    record = RunRecord(**settings, inputs={}, started="then", finished="now", seconds=1.0, device="cpu", threads=1)
    record.write(run / stage / "record.json")
    os.utime(run, (mtime, mtime))
    return RunRecord.read(run / stage / "record.json")


def test_artifacts_are_all_files_below_with_size_and_hash(tmp_path: Path) -> None:
    finish(make_run(tmp_path, "shop-1"))
    found = artifacts_in(tmp_path / "shop-1" / "train")
    assert [(a.path, a.n_bytes) for a in found] == [
        ("model/adapter.safetensors", 7),
        ("model/empty", 0),
        ("train.json", 2),
    ]


def test_what_a_kill_left_half_written_is_no_artifact(tmp_path: Path) -> None:
    run = make_run(tmp_path, "shop-1")
    finish(run)
    whole = artifacts_in(run / "train")
    (run / "train" / ".train.json.123.tmp").write_bytes(b"hal")
    (run / "train" / "model" / ".x.5.tmp").write_bytes(b"hal")
    (run / "train" / ".model.building").mkdir()
    (run / "train" / ".model.building" / "adapter.safetensors").write_bytes(b"hal")
    assert artifacts_in(run / "train") == whole


def test_a_folders_hash_follows_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("one", "two", "three", "four"):
        finish(make_run(tmp_path, name))
    (tmp_path / "three" / "train" / "model" / "empty").write_bytes(b"x")
    (tmp_path / "four" / "train" / "model" / "empty").rename(tmp_path / "four" / "train" / "model" / "void")
    one, two, three, four = (folder_hash(tmp_path / n / "train") for n in ("one", "two", "three", "four"))
    assert one == two and len({one, three, four}) == 3


def test_no_bit_of_a_record_changes_unseen(tmp_path: Path) -> None:
    finish(make_run(tmp_path, "shop-1"))
    path = tmp_path / "shop-1" / "train" / "record.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(RunError, match=r"LU-U008 .*record\.json"):
            RunRecord.read(path)


def test_a_stage_without_a_record_is_not_done(tmp_path: Path) -> None:
    run = make_run(tmp_path, "shop-1")
    record = finish(run)
    assert stage_record(run, "train") == record
    (run / "train" / "record.json").unlink()
    assert stage_record(run, "train") is None and stage_record(run, "evaluate") is None


@pytest.mark.parametrize("content", ["", "{", "{}", '{"stage": "future"}', "\x00\x00"])
def test_a_record_that_cannot_be_read_is_said(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path, "shop-1")
    finish(run)
    (run / "train" / "record.json").write_text(content)
    with pytest.raises(RunError, match=r"LU-U008 .*shop-1/train/record.json: .*\s+-> delete .*shop-1/train to"):
        stage_record(run, "train")


def test_a_record_of_another_version_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, "shop-1")
    plain = json.loads(finish(run).model_dump_json())
    (run / "train" / "record.json").write_text(json.dumps(plain | {"added_later": 1}))
    with pytest.raises(RunError, match="LU-U008"):
        stage_record(run, "train")


# -- damage -----------------------------------------------------------------------------------------------


def test_a_whole_stage_is_not_damaged(tmp_path: Path) -> None:
    run = make_run(tmp_path, "shop-1")
    assert damaged(run, finish(run)) is None


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_damage(tmp_path: Path, file: str) -> None:
    run = make_run(tmp_path, "shop-1")
    record = finish(run)
    (run / "train" / file).unlink()
    assert damaged(run, record) == f"{run / 'train' / file} is missing"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model/adapter.safetensors", b"weightr"),  # one bit
        ("model/adapter.safetensors", b"weight"),
        ("model/adapter.safetensors", b""),
        ("model/empty", b"x"),
    ],
)
def test_a_changed_file_is_damage(tmp_path: Path, file: str, content: bytes) -> None:
    run = make_run(tmp_path, "shop-1")
    record = finish(run)
    (run / "train" / file).write_bytes(content)
    assert damaged(run, record) == f"{run / 'train' / file} has changed since it was written"


# -- taking over ------------------------------------------------------------------------------------------


def test_a_stage_with_the_same_key_is_found_in_another_run_the_newest_first(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, f"shop-{age}", age) for age in range(4)]
    finish(runs[0], key="other")
    for run in runs[1:]:
        finish(run)
    assert runs_in(tmp_path) == runs[::-1]
    assert find_stage(tmp_path, "train", "key", not_in=runs[1]) == runs[2]
    assert find_stage(tmp_path, "evaluate", "key", not_in=runs[1]) is None
    assert find_stage(tmp_path, "train", "nobody's", not_in=runs[1]) is None
    assert find_stage(tmp_path / "nowhere", "train", "key", not_in=runs[1]) is None


def test_a_damaged_or_unreadable_stage_is_not_taken_over(tmp_path: Path) -> None:
    new, damaged_, unreadable, whole = (make_run(tmp_path, f"shop-{age}", age) for age in range(4))
    for run in (damaged_, unreadable, whole):
        finish(run)
    (damaged_ / "train" / "train.json").write_text("[]")
    (unreadable / "train" / "record.json").write_text("{")
    assert find_stage(tmp_path, "train", "key", not_in=new) == whole


def test_a_linked_stage_is_whole_by_itself_and_takes_no_space(tmp_path: Path) -> None:
    source, target = make_run(tmp_path, "shop-1"), make_run(tmp_path, "shop-2")
    record = finish(source)
    link_stage(source, target, "train")
    assert stage_record(target, "train") == record and damaged(target, record) is None
    for file in FILES:
        assert (target / "train" / file).stat().st_ino == (source / "train" / file).stat().st_ino
    import shutil

    shutil.rmtree(source)
    assert damaged(target, record) is None


def test_a_linked_stage_replaces_what_was_half_there(tmp_path: Path) -> None:
    source, target = make_run(tmp_path, "shop-1"), make_run(tmp_path, "shop-2")
    record = finish(source)
    (target / "train" / "checkpoints").mkdir(parents=True)
    (target / "train" / "train.json").write_text("half")
    link_stage(source, target, "train")
    assert sorted(p.name for p in (target / "train").iterdir()) == ["model", "record.json", "train.json"]
    assert damaged(target, record) is None


def test_where_there_are_no_links_a_stage_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    source, target = make_run(tmp_path, "shop-1"), make_run(tmp_path, "shop-2")
    record = finish(source)
    monkeypatch.setattr(store.os, "link", refuse)
    link_stage(source, target, "train")
    assert damaged(target, record) is None
    (source / "train" / "train.json").write_text("changed")
    assert damaged(target, record) is None


# -- finding runs -----------------------------------------------------------------------------------------


def test_a_run_is_found_by_folder_by_name_and_by_the_start_of_its_name(tmp_path: Path) -> None:
    old, new = make_run(tmp_path, "shop-1a2b3c", 5), make_run(tmp_path, "shop-4d5e6f")
    other = make_run(tmp_path, "bank-777777")
    assert find_run(str(old), tmp_path) == old
    assert find_run("shop-1a2b3c", tmp_path) == old
    assert find_run("shop", tmp_path) == new
    assert find_run("b", tmp_path) == other


def test_a_folder_of_a_recipe_hides_no_run_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "runs", "shop-1a2b3c")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "recipe.yaml").write_text("name: shop\n")
    monkeypatch.chdir(tmp_path)
    assert find_run("shop", tmp_path / "runs") == run


def test_an_unknown_run_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    make_run(tmp_path, "shop-1a2b3c")
    (tmp_path / "no run").mkdir()
    with pytest.raises(RunError, match=r"LU-U001 shpo-1a2b3c: no such run in .*\s+-> did you mean 'shop-1a2b3c'"):
        find_run("shpo-1a2b3c", tmp_path)
    with pytest.raises(RunError, match="LU-U001"):
        find_run("no run", tmp_path)
    with pytest.raises(RunError, match="LU-U001"):
        find_run("shop", tmp_path / "nowhere")


def test_the_stages_are_those_of_a_record() -> None:
    assert RunRecord.model_fields["stage"].annotation.__args__ == STAGES  # type: ignore[union-attr]
