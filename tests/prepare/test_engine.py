"""Where the data is prepared changes nothing of what comes out, to the byte; and what a cluster lacks is said first."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier import keys
from luthier.conversation import Message, make_conversation
from luthier.errors import DataError, Problem, RecipeError, RunError
from luthier.prepare import blocks, near, prepare, processes
from luthier.prepare.blocks import blocks_of
from luthier.prepare.clean import Cleaning
from luthier.prepare.engine import engine_for
from luthier.prepare.near import first_of_each, group_similar
from luthier.prepare.sources import find_files
from luthier.prepare.table import Rows
from luthier.recipe import validate
from luthier.settings import Prepare, Recipe, Source
from luthier.similar import Groups, SimilarTexts, join_similar

from .lines import OneByOne, encode_words

WORDS = [f"word{n}" for n in range(400)]
MADE = ("train.jsonl", "validation.jsonl", "test.jsonl", "rejects.jsonl", "audit.json", "data.html")


def texts(n: int, seed: int) -> list[str]:
    """A third of them near-copies of one before, and a hundred of one letter."""
    draw = random.Random(seed)
    found = [
        f"please cancel order {i} as I do not want to wait any longer and bought it in town" for i in range(n // 10)
    ]
    while len(found) < n:
        words = draw.choice(found).split() if draw.random() < 0.3 else draw.choices(WORDS, k=draw.randrange(3, 30))
        words[draw.randrange(len(words))] = draw.choice(WORDS)
        found.append(" ".join(words))
    draw.shuffle(found)
    return found


def data_in(folder: Path) -> Path:
    """Rows of three kinds of files with copies across them, and everything that may be wrong with a row."""
    data = folder / "data"
    data.mkdir(parents=True)
    draw, some = random.Random(0), texts(900, 0)
    labels = ["Billing", "billing ", "BILLING.", "Delivery", "delivery"]

    def rows(lot: list[str]) -> list[dict[str, Any]]:
        return [{"text": f"<p>{t}</p> {draw.choice(['', 'x@y.org'])}", "label": draw.choice(labels)} for t in lot]

    lines = [json.dumps(row) for row in rows(some[:400])]
    lines[7], lines[8], lines[90] = "not JSON", "", '{"text": "no label"}'
    lines[20:400:30] = ["more findings than are kept"] * len(lines[20:400:30])
    lines[200:200] = [
        lines[3],
        lines[150],
        '{"text": "late", "label": "Delivery", "more": 1}',
        '{"text": "", "label": "x"}',
    ]
    (data / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b'\n\xff bad\n{"text": "cut')
    quoted = [f'"{row["text"]}",{row["label"]}' for row in rows(some[400:500] + some[:20])]
    (data / "b.csv").write_text("\n".join(["text,label", *quoted, "one,two,three"]), encoding="utf-8")
    table = pa.Table.from_pylist([row | {"raw": b"1"} for row in rows(some[500:800])] + [{"text": None, "label": "x"}])
    pq.write_table(table, data / "c.parquet", row_group_size=40)
    (data / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows(some[800:] + some[:30])) + "\n")
    return data


HERE = {"processes": 1}


def recipe_for(engine: dict[str, Any], folder: Path, **data: Any) -> Recipe:
    data = {
        "sources": [{"path": "data"}],
        "clean": ["strip_html", "labels", "redact", {"use": "dedupe", "similarity": 0.8}],
        "split": {"valid_fraction": 0.1, "stratify": "label"},
        "max_rejected_fraction": 0.5,
        **data,
    }
    rules = [{"metric": "accuracy", "must": "beat_baseline"}]
    return validate({"name": "e", "data": data, "prepare": engine, "release": {"rules": rules}}, "recipe.yaml", folder)


def made_by(engine: dict[str, Any], folder: Path, encode: Any = encode_words, **data: Any) -> dict[str, bytes]:
    out = folder / f"out-{engine.get('engine', engine.get('processes', 'local'))}"
    prepare(recipe_for(engine, folder, **data), folder, out, OneByOne(encode))
    assert not list(out.glob(".*")), "blocks are left"
    return {name: (out / name).read_bytes() for name in MADE}


def part(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    """Into blocks of so many bytes."""
    monkeypatch.setattr(blocks, "LEAST_BYTES", n_bytes)
    monkeypatch.setattr(blocks, "ENOUGH", 10**9)
    monkeypatch.setattr(near, "PART_ENTRIES", n_bytes // 4)
    monkeypatch.setattr(near, "PART_TEXTS", n_bytes // 200)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    part(monkeypatch, 2000)


@pytest.fixture
def some_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    part(monkeypatch, 10_000)  # a task takes a moment of its own


def test_blocks_part_the_rows_of_a_file(tmp_path: Path, small_blocks: None) -> None:
    files = find_files((Source(path="data"),), data_in(tmp_path).parent)
    told: list[tuple[str, ...]] = []
    portions = list(chain.from_iterable(blocks_of(files)))
    cut = [row for portion in portions for row in portion.rows(lambda *found: told.append(found))]
    again: list[tuple[str, ...]] = []
    whole = [row for file in files for row in file.rows(lambda *found: again.append(found))]
    assert [(row.where, row.data, row.raw, str(row.fault)) for row in cut] == [
        (row.where, row.data, row.raw, str(row.fault)) for row in whole
    ]
    assert told == again and {code for code, *_ in told} == {"LU-D003", "LU-D004", "LU-D028"}
    assert len(portions) > 15


def test_a_long_line_is_in_one_block(tmp_path: Path, small_blocks: None) -> None:
    rows = [json.dumps({"text": "long " * n, "label": "a"}) for n in (1, 3000, 1, 1000, 1, 1)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
    cut = list(blocks_of(find_files((Source(path="a.jsonl"),), tmp_path)))
    found = [row for (portion,) in cut for row in portion.rows(lambda *_: None)]
    assert [row.raw for row in found] == rows and [row.where for row in found] == [f"a.jsonl:{n}" for n in range(1, 7)]
    assert len(cut) == 3


def test_how_finely_the_work_is_parted_changes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_in(tmp_path)
    whole = made_by(HERE, tmp_path)
    part(monkeypatch, 2000)
    parted = made_by(HERE, tmp_path)
    assert {name for name in MADE if whole[name] != parted[name]} <= {"audit.json", "data.html"}  # samples of a cleaner
    audits = [json.loads(one["audit.json"]) for one in (whole, parted)]
    for audit in audits:
        for cleaned in audit["cleaning"]:
            del cleaned["samples"]
    assert audits[0] == audits[1]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("similarity", [0.4, 0.8])
@pytest.mark.parametrize("entries", [3, 3000, 1 << 18])
def test_near_duplicates_are_those_of_one_index(
    seed: int, similarity: float, entries: int, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .test_split import item

    monkeypatch.setattr(near, "PART_ENTRIES", entries)  # 3: some ranges of keys are empty
    lot = texts(600, seed)
    rows = Rows.of(item(text, n, n=n).conversation for n, text in enumerate(lot))
    order = rows.numbers[::-1].copy()
    groups = Groups(len(lot))
    join_similar(groups, lot[::-1], range(len(lot)), similarity)
    found = group_similar(rows, order, near.asked_text, similarity)
    assert found.tolist() == [groups.root(i) for i in range(len(lot))]
    index, kept = SimilarTexts(similarity, lot[::-1]), []
    for i in range(len(lot)):
        kept.append(next(index.matches(i), None) is None)
        if kept[-1]:
            index.add(i)
    assert first_of_each(rows, order, near.asked_text, similarity).tolist() == kept
    assert 0 < sum(kept) < len(kept)
    assert not len(first_of_each(rows, order[:0], near.asked_text, similarity))


def test_the_engine_is_in_no_key(tmp_path: Path) -> None:
    data_in(tmp_path)
    here, there = (recipe_for(one, tmp_path) for one in ({}, {"engine": "ray", "address": "auto"}))
    assert keys.identity(here, tmp_path) == keys.identity(there, tmp_path)
    assert keys.identity(here, tmp_path) != keys.identity(recipe_for({}, tmp_path, limit=9), tmp_path)
    inputs = [keys.stage_inputs("prepare", one, tmp_path, tmp_path, "base") for one in (here, there)]
    assert inputs[0] == inputs[1]


def test_an_address_is_that_of_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prepare\.address is that of a cluster"):
        recipe_for({"address": "auto"}, tmp_path)


def test_a_missing_package_is_said_before_a_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"LU-U050 prepare\.engine: ray: needs the package ray(.|\n)*\[ray\]"):
        made_by({"engine": "ray"}, tmp_path)
    assert not list((tmp_path / "out-ray").iterdir())


def test_what_work_needs_and_raises_travels(tmp_path: Path) -> None:
    """Cleaners of one's own too, with what a survey told them; and what they have done stays behind."""
    (tmp_path / "mine.py").write_text("def loud(text: str) -> str:\n    return text.upper()\n")
    cleaning = Cleaning(recipe_for({}, tmp_path, clean=["mine:loud", "labels"]), tmp_path)
    rows = [make_conversation([Message(role="text", content=text)], "a:1") for text in ("one", "two")]
    cleaning.steps[1].params = {"names": ["ONE"]}
    cleaning(rows[0])
    there = pickle.loads(pickle.dumps(cleaning))
    assert there.steps[0].done.n_rows == 0 and cleaning.steps[0].done.n_rows == 1
    assert there.steps[1].params == {"names": ["ONE"]} and there(rows[1]).answer == "TWO"
    error = DataError(Problem("LU-D001", "a:1", "found", "advice"), Problem("LU-D002", "a:2", "found"))
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


# -- on processes of this machine --------------------------------------------------------------------------------


TWO = {"processes": 2}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are started for whatever there is to do."""
    monkeypatch.setattr(processes, "HERE_S", 0.0)


class SaysWho:
    """Leaves a file for each process that it encodes in, and prints there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, conversation: Any) -> Any:
        print("what is printed is no answer")
        (self.folder / str(os.getpid())).touch()
        return encode_words(conversation)


def test_processes_make_the_same_bytes(tmp_path: Path, at_once: None, some_blocks: None) -> None:
    data_in(tmp_path)
    (who := tmp_path / "who").mkdir()
    here = made_by(HERE, tmp_path)
    assert here == made_by(TWO, tmp_path, SaysWho(who))
    pids = [int(path.name) for path in who.iterdir()]
    assert len(pids) == 2 and os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # they have ended
            os.kill(pid, 0)


def test_what_is_done_soon_is_done_here(tmp_path: Path, some_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data_in(tmp_path)
    (who := tmp_path / "who").mkdir()
    monkeypatch.setattr(processes, "HERE_S", 600.0)
    made_by(TWO, tmp_path, SaysWho(who))
    assert [path.name for path in who.iterdir()] == [str(os.getpid())]


@pytest.mark.parametrize("wrong", ["nothing to learn", "unclosed"])
def test_an_error_of_a_block_is_the_same_in_a_process(
    tmp_path: Path, at_once: None, some_blocks: None, wrong: str
) -> None:
    data = data_in(tmp_path)
    if wrong == "unclosed":
        (data / "b.csv").write_text('text,label\n"never closed,x\n')
    told = []
    for engine in (HERE, TWO):
        with pytest.raises(DataError) as caught:
            made_by(engine, tmp_path, bad_rows="strict")
        told.append(caught.value.problems)
    assert told[0] == told[1]
    assert told[0][0].code == ("LU-D017" if wrong == "unclosed" else "LU-D110")


class NeedsMore(Exception):
    """Cannot be made of what it was made of."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def raised_by(n: int) -> int:
    if n == 1:
        raise KeyError("mine")
    if n == 2:
        raise NeedsMore("two", "things")
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if n == 4:
        os._exit(7)
    return os.getpid()


def test_what_goes_wrong_in_a_process(tmp_path: Path, at_once: None) -> None:
    with engine_for(Prepare(processes=2), tmp_path) as engine:
        pids = set(engine.map(raised_by, [0] * 20))
        assert os.getpid() not in pids
        with pytest.raises(KeyError, match="mine") as mine:
            list(engine.map(raised_by, [0, 1]))
        assert "in raised_by" in mine.value.__notes__[0]  # where it was
        with pytest.raises(RuntimeError, match=r"in raised_by(.|\n)*NeedsMore: two things"):
            list(engine.map(raised_by, [0, 2]))
        with pytest.raises(
            RunError, match=r"LU-U053 prepare: a process that prepared data ended by SIGKILL(.|\n)*fewer"
        ):
            list(engine.map(raised_by, [0, 3]))
        with pytest.raises(RunError, match="ended with exit code 7"):
            list(engine.map(raised_by, [0, 4]))
        assert len(set(engine.map(raised_by, [0] * 20)) - {os.getpid()}) in (1, 2)  # others are started
        assert set(engine.map(raised_by, [0])) == {os.getpid()}  # a block alone is done here


def test_blocks_are_taken_few_ahead_and_come_back_in_order(tmp_path: Path, at_once: None) -> None:
    taken = []

    def blocks() -> Iterator[str]:
        for n in range(40):
            taken.append(n)
            yield str(n)

    with engine_for(Prepare(processes=2), tmp_path) as engine:
        made = engine.map(int, blocks())
        assert [next(made) for _ in range(10)] == list(range(10))
        assert len(taken) <= 10 + 2 * processes.AHEAD
        del made
        assert list(engine.map(int, map(str, range(5)))) == list(range(5))  # an earlier map was left


def test_work_that_cannot_travel_is_done_here(tmp_path: Path, at_once: None) -> None:
    with engine_for(Prepare(processes=2), tmp_path) as engine:
        assert list(engine.map(lambda n: (n, os.getpid()), range(4))) == [(n, os.getpid()) for n in range(4)]


SCRIPT = """
import os, sys
from pathlib import Path
from luthier.prepare import blocks, prepare, processes
from luthier.recipe import validate
from prepare.lines import OneByOne, encode_words

processes.HERE_S, blocks.LEAST_BYTES, blocks.ENOUGH = 0.0, 2000, 10**9
print("begun")

class Mine(OneByOne):
    def many(self, conversations):
        with open("who.txt", "a") as who:
            who.write(f"{os.getpid()}\\n")
        return super().many(conversations)

data = {"sources": [{"path": "data.jsonl"}], "split": {"valid_fraction": 0.2}}
tree = {"name": "e", "data": data, "release": {"rules": [{"metric": "token_f1", "must": "beat_baseline"}]}}
recipe = validate(tree | {"prepare": {"processes": 2}}, "recipe.yaml", Path())
encoder = {"own": Mine, "known": OneByOne}[sys.argv[1]](encode_words)
print(prepare(recipe, Path(), Path("out"), encoder).sides)
"""
"""Without `if __name__ == "__main__"`, as people write them."""


@pytest.mark.parametrize("encoder", ["own", "known"])
def test_a_script_without_a_guard_runs_once(tmp_path: Path, encoder: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    rows = [json.dumps({"prompt": text, "completion": f"answer {n}"}) for n, text in enumerate(texts(200, 0))]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    paths = os.pathsep.join(map(str, (Path(__file__).parents[1], *sys.path)))
    run = [sys.executable, "script.py", encoder]
    done = subprocess.run(run, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begun") == 1 and "'train'" in done.stdout and done.stderr == ""
    if encoder == "own":  # which a process cannot have
        assert len(set((tmp_path / "who.txt").read_text().split())) == 1


ENDLESS = """
import sys, time
from pathlib import Path
from luthier import interrupts
from luthier.prepare import processes
from luthier.prepare.engine import engine_for
from luthier.settings import Prepare
from prepare.test_engine import sleeps

processes.HERE_S = 0.0
interrupts.install()
with engine_for(Prepare(processes=2), Path(sys.argv[1])) as engine:
    list(engine.map(sleeps, [sys.argv[1]] * 9))
"""


def sleeps(folder: str) -> None:
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(60)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_processes(tmp_path: Path, signum: int) -> None:
    paths = os.pathsep.join(map(str, (Path(__file__).parents[1], *sys.path)))
    run = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    asked = subprocess.Popen(run, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True)
    while len(pids := [int(path.stem) for path in tmp_path.glob("*.pid")]) < 2:
        assert asked.poll() is None
        time.sleep(0.05)
    asked.send_signal(signum)
    _, told = asked.communicate(timeout=30)
    assert asked.returncode == 1 and told.count("Traceback") == 1 and "Interrupted" in told
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list(tmp_path.glob(".*")), "blocks are left"


# -- on a cluster of two nodes on this machine -----------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Its address."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # workers unpack this module's encoders
        patch.setenv("RAY_worker_niceness", "0")  # on a busy machine workers would wait for minutes
        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        nodes = Cluster(initialize_head=True, head_node_args=node)
        nodes.add_node(**node)
    nodes.wait_for_nodes()
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


class SaysWhere:
    """Leaves a file for each node that it works on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, conversation: Any) -> Any:
        import ray

        (self.folder / ray.get_runtime_context().get_node_id()).touch()
        return encode_words(conversation)


def test_a_cluster_makes_the_same_bytes(tmp_path: Path, cluster: str, some_blocks: None) -> None:
    data_in(tmp_path)
    (nodes := tmp_path / "nodes").mkdir()
    here = made_by(HERE, tmp_path)
    assert here == made_by({"engine": "ray", "address": cluster}, tmp_path, SaysWhere(nodes))
    assert len(list(nodes.iterdir())) == 2
    audit = json.loads(here["audit.json"])
    assert all(audit["sides"].values()) and all(one["samples"] for one in audit["cleaning"])
    dropped = {reason for step in audit["steps"] for reason in step["dropped"]}
    assert dropped >= {"LU-D001", "LU-D005", "LU-D017", "LU-D025", "LU-D026", "exact copy", "near-duplicate"}


class EndsItsProcess:
    """Kills the worker that encodes a row, the first time."""

    def __init__(self, once: Path) -> None:
        self.once = once

    def __call__(self, conversation: Any) -> Any:
        if os.getpid() != int(self.once.read_text()) and not (done := self.once.with_suffix(".done")).exists():
            done.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return encode_words(conversation)


def test_a_worker_that_dies_changes_nothing(tmp_path: Path, cluster: str, some_blocks: None) -> None:
    data_in(tmp_path)
    (once := tmp_path / "driver").write_text(str(os.getpid()))
    killed = made_by({"engine": "ray", "address": cluster}, tmp_path, EndsItsProcess(once))
    assert once.with_suffix(".done").is_file()
    assert killed == made_by(HERE, tmp_path)


@pytest.mark.parametrize("wrong", ["nothing to learn", "unclosed"])
def test_an_error_of_a_block_is_the_same_there(tmp_path: Path, cluster: str, some_blocks: None, wrong: str) -> None:
    data = data_in(tmp_path)
    if wrong == "unclosed":
        (data / "b.csv").write_text('text,label\n"never closed,x\n')
    told = []
    for engine in (HERE, {"engine": "ray", "address": cluster}):
        with pytest.raises(DataError) as caught:
            made_by(engine, tmp_path, encode_words, bad_rows="strict")
        told.append(caught.value.problems)
    assert told[0] == told[1]
    assert told[0][0].code == ("LU-D017" if wrong == "unclosed" else "LU-D110")


def test_a_node_that_does_not_see_a_file(tmp_path: Path, cluster: str) -> None:
    with (
        pytest.raises(RunError, match=r"LU-U052 prepare\.engine: ray: (.|\n)*No such file(.|\n)*the same paths"),
        engine_for(Prepare(engine="ray", address=cluster), tmp_path) as engine,
    ):
        list(engine.map(Path.read_bytes, [tmp_path / "missing"]))


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with pytest.raises(RunError, match=r"LU-U051 prepare\.address: ray://127\.0\.0\.1:9"):
        made_by({"engine": "ray", "address": "ray://127.0.0.1:9"}, tmp_path)
