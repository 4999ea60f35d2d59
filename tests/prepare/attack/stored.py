"""Rows as the bytes of a file: every kind that is read, and compressed. A row that is a text is a raw line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = Sequence[dict[str, Any] | str]


def jsonl(rows: Rows, ascii: bool = False) -> bytes:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=ascii) for row in rows)
    return "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace")


def json_array(rows: Rows, ascii: bool = False) -> bytes:
    items = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=ascii) for row in rows)
    return ("[" + ",\n ".join(items) + "]\n").encode("utf-8", "backslashreplace")


def delimited(rows: Rows, delimiter: str = ",") -> bytes:
    """Raises ValueError for rows that are no texts."""
    objects = [row for row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(name for row in objects for name in row))
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(columns)
    for row in rows:
        if isinstance(row, str):
            out.write(row + "\r\n")
        elif any(isinstance(value, dict | list) for value in row.values()):
            raise ValueError("not flat")
        else:
            writer.writerow([row.get(name, "") for name in columns])
    return out.getvalue().encode("utf-8", "surrogatepass")


VALUES: tuple[tuple[Any, Any], ...] = (
    (date(2024, 1, 1), pa.date32()),
    (2**30, pa.date32()),
    (datetime(2024, 1, 1), pa.timestamp("ns", "UTC")),
    (2**62, pa.timestamp("s")),
    (1, pa.timestamp("ns", "Nowhere/City")),
    (86_399_999_999_999, pa.time64("ns")),
    (2**62, pa.duration("s")),
    (Decimal("1.10"), pa.decimal128(10, 2)),
    (2**64 - 1, pa.uint64()),
    (float("nan"), pa.float16()),
    (b"\xff", pa.binary()),
    (b"\xff", pa.binary(1)),
    ([b"\xff"], pa.list_(pa.binary())),
    ({"a": b"\xff", "b": None}, pa.struct([("a", pa.large_binary()), ("b", pa.null())])),
    ([float("inf"), 1.0], pa.list_(pa.float64())),
    ([("a", float("nan"))], pa.map_(pa.string(), pa.float64())),
    ([(date(2024, 1, 1), 1)], pa.map_(pa.date32(), pa.int64())),
    ("x", pa.dictionary(pa.int8(), pa.string())),
    ("x", pa.large_string()),
    ("x", pa.string_view()),
    (True, pa.bool_()),
)
"""What a column of a table may hold beside texts, numbers and lists."""


def _with_columns(table: Any) -> Any:
    """With a column of strange values or two, chosen by what the table holds."""
    n = len(table)
    for k, at in enumerate({table.nbytes % (2 * len(VALUES)), n % (3 * len(VALUES))}):
        if at < len(VALUES):
            value, type_ = VALUES[at]
            table = table.append_column(f"odd {k}", pa.array([value] * n, type_))
    return table


def _table(rows: Rows) -> Any:
    """Raises ValueError (as pyarrow's errors are) or OverflowError for rows that no table can hold."""
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a table has no raw lines")
    try:
        return _with_columns(pa.Table.from_pylist(list(rows)))
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(str(error)) from error


def parquet(rows: Rows) -> bytes:
    out = pa.BufferOutputStream()
    try:
        pq.write_table(_table(rows), out)
    except (pa.ArrowException, OSError) as error:  # an object without a field, say
        raise ValueError(str(error)) from error
    return bytes(out.getvalue())


def arrow(rows: Rows, stream: bool = False) -> bytes:
    out, table = pa.BufferOutputStream(), _table(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return bytes(out.getvalue())


def zstd(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as packed:
        packed.write(content)
    return bytes(out.getvalue())


WAYS: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": jsonl,
    ".ndjson": lambda rows: jsonl(rows, ascii=True),
    ".json": json_array,
    ".csv": delimited,
    ".tsv": lambda rows: delimited(rows, "\t"),
    ".parquet": parquet,
    ".arrow": arrow,
    ".feather": lambda rows: arrow(rows, stream=True),
    ".jsonl.gz": lambda rows: gzip.compress(jsonl(rows), 1, mtime=0),
    ".csv.gz": lambda rows: gzip.compress(delimited(rows), 1, mtime=0),
    ".jsonl.zst": lambda rows: zstd(jsonl(rows)),
    ".json.zst": lambda rows: zstd(json_array(rows)),
}
"""The ending of a name -> the bytes of rows. They raise ValueError or OverflowError for what cannot be written so."""
FLAT = (".csv", ".tsv", ".csv.gz")


def stored(ending: str, rows: Rows) -> tuple[str, bytes]:
    """The bytes of a file of this ending, or of JSON lines where such a file cannot hold these rows."""
    try:
        return ending, WAYS[ending](rows)
    except (ValueError, OverflowError):
        return ".jsonl", jsonl(rows)
