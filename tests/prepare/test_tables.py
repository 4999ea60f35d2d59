"""Parquet and Arrow: what a table may hold that no row can, and what a damaged one may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.errors import DataError

from .lines import Prepared, run

TEXTS = [f"The text of row number {n} is long enough." for n in range(4)]


def table(tmp_path: Path, name: str, values: list[Any], type_: Any) -> Prepared:
    """Prepared rows of texts with another column."""
    columns = {"text": pa.array(TEXTS), "other": pa.array(values, type_)}
    pq.write_table(pa.table(columns), tmp_path / name)
    return run(tmp_path, sources=[{"path": name}])


def test_a_value_that_python_cannot_hold_is_a_fault_of_its_row(tmp_path: Path) -> None:
    prepared = table(tmp_path, "data.parquet", [0, 2**62, 1, 2], pa.timestamp("us"))
    assert [(r["code"], r["where"]) for r in prepared.rejects()] == [("LU-D027", "data.parquet:2:other")]
    assert len(prepared.all()) == 3
    with pytest.raises(DataError, match="LU-D027 data.parquet:1:other"):
        table(tmp_path, "data.parquet", [0, 1, 2, 3], pa.timestamp("us", "Nowhere/City"))


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        ({"bytes": b"\x89PNG", "path": "x.png"}, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ([b"\xff"], pa.list_(pa.large_binary())),
        (b"\xff", pa.binary(1)),
        (b"\xff", pa.dictionary(pa.int8(), pa.binary())),
    ],
    ids=["a picture of datasets", "list", "fixed", "dictionary"],
)
def test_bytes_inside_a_column_are_not_read_and_that_is_said(tmp_path: Path, value: Any, type_: Any) -> None:
    prepared = table(tmp_path, "data.parquet", [value] * 4, type_)
    assert prepared.report.counts["LU-D028"] == 1
    assert all(c.tags == {} for c in prepared.all()) and len(prepared.all()) == 4


def test_what_is_no_number_inside_a_list_is_a_fault(tmp_path: Path) -> None:
    prepared = table(tmp_path, "data.parquet", [[1.0], [float("nan"), 1.0], None, []], pa.list_(pa.float64()))
    assert [(r["code"], r["where"]) for r in prepared.rejects()] == [("LU-D011", "data.parquet:2:other")]


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream], ids=["file", "stream"])
@pytest.mark.parametrize("damage", ["text", "offsets"])
def test_damaged_values_of_arrow(tmp_path: Path, new: Any, damage: str) -> None:
    """Arrow keeps no checksums: offsets that lead out of the file, and bytes that are no text, are looked for."""
    whole = pa.table({"text": pa.array(TEXTS)})
    out = pa.BufferOutputStream()
    with new(out, whole.schema) as writer:
        writer.write_table(whole)
    content = bytes(out.getvalue())
    offsets = whole["text"].chunk(0).buffers()[1].to_pybytes()[:20]
    assert content.count(offsets) == 1
    if damage == "text":
        content = content.replace(b"row number 2", b"row \xff\xfeumber 2")
    else:
        content = content.replace(offsets, offsets[:-4] + (1 << 30).to_bytes(4, "little"))
    (tmp_path / "data.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"LU-D018 data\.arrow: not a whole Arrow file"):
        run(tmp_path, sources=[{"path": "data.arrow"}])


def test_turns_of_two_ways_in_one_table(tmp_path: Path) -> None:
    """A table has all names in every turn: those that a turn has not are null."""
    chats = [
        [{"role": "user", "content": "Is it open?"}, {"role": "assistant", "content": "It is."}],
        [{"from": "human", "value": "And tomorrow?"}, {"from": "gpt", "value": "No."}],
        [{"human": "And on Sunday?", "assistant": "No."}],
    ]
    pq.write_table(pa.Table.from_pylist([{"messages": chat} for chat in chats]), tmp_path / "data.parquet")
    prepared = run(tmp_path, sources=[{"path": "data.parquet"}])
    assert [[m.role for m in c.messages] for c in prepared.all()] == [["user", "assistant"]] * 3
    assert not prepared.report.counts
