"""Tables: the rows of Parquet and Arrow files, which hold values of more types than a row may.

What is no value of JSON is a fault of its row (a NaN, a time that Python cannot hold); columns of bytes are left out,
and that is said. Arrow keeps no checksums, so whatever it says of places in the file is looked at before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luthier.errors import DataError, printable
from luthier.prepare.rows import Fault, Row, Warn, silent

BEYOND = (OverflowError, ValueError, LookupError)
"""What pyarrow raises for the year 300,000, for a nanosecond, and for a time zone that nobody knows."""


def read_parquet(
    path: Path, shown: str, warn: Warn, start: int = 0, stop: int | None = None, before: int = 0
) -> Iterator[Row]:
    """Rows of a Parquet file; `line` is the row's number, from 1. Raises DataError LU-D018.

    All of them, or those of the row groups from `start` to before `stop`, which `before` rows precede.
    """
    import pyarrow.parquet as pq

    with whole("Parquet", shown):
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        names = _readable(schema, shown, silent if start else warn)
        groups = range(file.num_row_groups)[start:stop]
        yield from _rows_of(file.iter_batches(1024, row_groups=groups, columns=names), schema, shown, before)


def read_arrow(path: Path, shown: str, warn: Warn) -> Iterator[Row]:
    """Rows of an Arrow file, or of an Arrow stream, as `datasets` keeps them. Raises DataError LU-D018."""
    import pyarrow as pa

    with whole("Arrow", shown), pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches))
        else:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            batches = iter(reader)
        names = _readable(reader.schema, shown, warn)
        sound = (batch.select(names) for batch in batches if batch.validate(full=True) is None)
        small = (batch.slice(n, 1024) for batch in sound for n in range(0, len(batch), 1024))
        yield from _rows_of(small, reader.schema, shown)


@contextmanager
def whole(kind: str, shown: str) -> Iterator[None]:
    """Raises DataError LU-D018 for what pyarrow raises."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        found = f"not a whole {kind} file: {printable(str(error))}"
        raise DataError.of("LU-D018", shown, found, "copy the file again") from None


def _readable(schema: Any, shown: str, warn: Warn) -> list[str]:
    """The columns that hold no bytes, pictures of `datasets` among them."""
    import pyarrow as pa

    types = pa.types
    is_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    binary = [field.name for field in schema if any(_holds(field.type, one) for one in is_bytes)]
    for name in binary:
        warn("LU-D028", f"{shown}:1:{name}", "a column of bytes is not read", "")
    return [name for name in schema.names if name not in binary]


def _holds(type: Any, is_kind: Callable[[Any], bool]) -> bool:
    """Whether a type, or one inside it, is of a kind."""
    inner = [type.field(n).type for n in range(type.num_fields)]
    inner += [type.value_type] if hasattr(type, "index_type") else []
    return is_kind(type) or any(_holds(one, is_kind) for one in inner)


def _rows_of(batches: Iterable[Any], schema: Any, shown: str, number: int = 0) -> Iterator[Row]:
    import pyarrow as pa

    labels = _label_names(schema)
    floats = [field.name for field in schema if _holds(field.type, pa.types.is_floating)]
    for batch in batches:
        for data, fault in _values(batch):
            number += 1
            for column, names in labels.items():
                if isinstance(n := data.get(column), int):
                    data[column] = names[n] if 0 <= n < len(names) else None  # -1: nobody labelled it
            yield Row(f"{shown}:{number}", data, fault=fault or _not_finite(data, floats))


def _values(batch: Any) -> list[tuple[dict[str, Any], Fault | None]]:
    """What each row of a batch holds, and a fault where Python has nothing to hold a value with."""
    with suppress(*BEYOND):
        return [(data, None) for data in batch.to_pylist()]
    return [_each_value(batch, n) for n in range(len(batch))]


def _each_value(batch: Any, n: int) -> tuple[dict[str, Any], Fault | None]:
    data: dict[str, Any] = {}
    fault = None
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            data[name] = column[n].as_py()
        except BEYOND as error:
            data[name] = " ".join(str(column.slice(n, 1)).split())  # for the rejects
            found = f"a value of type {column.type} that cannot be read: {error}"
            fault = Fault("LU-D027", name, printable(found), "write it as a text")
    return data, fault


def _label_names(schema: Any) -> dict[str, list[str]]:
    """The columns of numbers that stand for names, as `datasets` writes them into a file's schema."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {column: f["names"] for column, f in features.items() if isinstance(f, dict) and f.get("names")}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def _not_finite(data: dict[str, Any], columns: Iterable[str]) -> Fault | None:
    for name in columns:
        left = [data.get(name)]
        while left:
            value = left.pop()
            if isinstance(value, float) and not math.isfinite(value):
                return Fault("LU-D011", name, f"{value} is no value", "write null")
            left += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return None
