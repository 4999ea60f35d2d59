"""Cases for `prepare`: generated ones, of whose good rows all is known, and damaged files, of which nothing is."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from .case import Case, Known
from .generated import KINDS, Draw, Kind, hostile_row
from .mutated import damaged, real_rows
from .settings import columns, settings
from .stored import FLAT, WAYS, stored

PLAIN: dict[str, Any] = {"split": {"valid_fraction": 0.0, "test_fraction": 0.0}, "max_rejected_fraction": 0.99}
NAMES = ("data", "data", "data", "Daten für 2024", "a b'c", "train", "-x", "e\u0301", "a\u202eb", "%s")


@st.composite
def generated(draw: Draw) -> Case:
    """Rows of one kind in a file or two, some of them hostile, in any kind of file, with any settings."""
    name = draw(st.sampled_from(list(KINDS)))
    kind = KINDS[name]
    share = draw(st.sampled_from((0, 0, 1, 3, 10)))  # of 20 rows, the hostile ones
    rows, known = _rows(draw, kind, draw(st.sampled_from((1, 3, 6, 9, 12, 16))), share)
    ending = draw(st.sampled_from([end for end in WAYS if kind.flat or end not in FLAT]))
    stem = draw(st.sampled_from(NAMES))
    cut = draw(st.integers(1, len(rows))) if draw(st.integers(0, 4)) == 0 else len(rows)
    parts = {stem: rows[:cut], "test" if stem != "test" else "dev": rows[cut:]}
    files = {}
    for part, some in parts.items():
        if some:
            written, content = stored(ending, some)
            files[f"data/{part}{written}"] = content
    path = next(iter(files)) if len(files) == 1 and draw(st.booleans()) else "data"
    data = settings(draw, [{"path": path}], kind) if draw(st.integers(0, 7)) else {}
    return Case(f"{name} {ending}", files, data, known)


def _rows(draw: Draw, kind: Kind, n: int, share: int) -> tuple[list[Any], Known]:
    rows: list[Any] = []
    said = {}
    for nr in range(n):
        beside = columns(draw, nr)
        if draw(st.integers(1, 20)) <= share:
            row = hostile_row(draw, kind)
            rows.append(row if isinstance(row, str) else beside | {"nr": -1} | row)
            continue
        made = kind.make(draw)
        rows.append(made.row | beside)
        said[nr] = made.said, made.rejected
        if (copied := draw(st.integers(0, 9))) < 2:
            rows.append((_nearly(rows[-1]) if copied else rows[-1]) | columns(draw, -1))
    return rows, Known(kind.format, kind.fields, said, sum(row != "" for row in rows))


def _nearly(value: Any) -> Any:
    """A near-copy: what is long says a word more."""
    if isinstance(value, dict):
        return {name: _nearly(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_nearly(one) for one in value]
    return f"{value} again" if isinstance(value, str) and len(value) > 20 else value


def mutated(rng: random.Random, whole: Sequence[Case]) -> Case:
    """A file that was whole, of real rows or of one of these cases, with damage, perhaps under a wrong name."""
    case, sets = rng.choice(whole), real_rows()
    path, content = next(iter(case.files.items()))
    ending, data = path[path.index(".") :], case.data
    if sets and rng.random() < 0.5:
        lines = rng.choice(sets)
        start = rng.randrange(len(lines))
        rows = [json.loads(line) for line in lines[start : start + rng.choice((1, 5, 20, 40))]]
        ending = rng.choice((*WAYS, *[".jsonl"] * 6))
        ending, content = stored(ending, rows)
        data = rng.choice(({}, PLAIN, PLAIN | {"clean": ["strip_html", "unicode", "redact"]}))
    content, done = damaged(content, rng, next(iter(rng.choice(whole).files.values())))
    name = rng.choice(NAMES) + (rng.choice(list(WAYS)) if rng.random() < 0.1 else ending)
    if data:
        data = data | {"sources": [{"path": name}]}
    return Case(f"damaged {ending[1:]} by {done}", {name: content}, data)
