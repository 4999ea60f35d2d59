"""When: what a column says of a row's time, and sides by time: the oldest rows train, the newest test.

Rows that are equally old are on one side. A family is on the side of its oldest row, and its rows that are newer than
that side are left out: there they would tell a model of the future, and after the cut they would leak across it.
"""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import Conversation
from luthier.errors import printable
from luthier.prepare.rows import Fault

PER_SECOND = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""An epoch's number from here on counts nano-, micro- and milliseconds: in seconds it would be past the year 5000."""
OLDEST = -math.inf
"""The time of a row that has none: it trains."""
LEFT_OUT = -1


def seconds(value: Any, column: str) -> float:
    """Since 1970 in UTC, of an ISO 8601 date or time, which is in UTC if it does not say otherwise, or of a number.

    Raises Fault LU-D058.
    """
    if isinstance(value, date):  # of Parquet
        value = value.isoformat()
    try:
        if isinstance(value, str):
            with suppress(ValueError):  # first: 20130712 is a date too, and 20131307 is none
                value = float(value)
        if isinstance(value, str):
            found = datetime.fromisoformat(value.strip())
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError
        return value / next((unit for least, unit in PER_SECOND if abs(value) >= least), 1)
    except (ValueError, OverflowError):
        said, advice = f"{printable(repr(value))} is no time", "write an ISO 8601 date or time, or a number"
        raise Fault("LU-D058", column, said, advice) from None


def time_of(conversation: Conversation, column: str) -> float:
    """OLDEST where the column is missing or empty. Raises Fault LU-D058."""
    value = conversation.tags.get(column)
    return OLDEST if value is None or value == "" else seconds(value, column)


def parts(
    times: NDArray[np.float64], group_of: NDArray[np.int64], held_out: list[int]
) -> tuple[NDArray[np.int64], list[float]]:
    """The part of each row, from the oldest, or LEFT_OUT; and where each part ends.

    Args:
        times: (n,) of the rows.
        group_of: (n,) Rows of one group are in one part.
        held_out: Rows of the parts after the first; each begins after the last row that is as old as the one before.
    """
    by_time = np.sort(times)
    cuts = [float(by_time[max(0, len(times) - n - 1)]) for n in np.cumsum(held_out[::-1])[::-1]]
    part = np.searchsorted(cuts, times)  # as old as the cut: before it
    first = np.full(group_of.max() + 1, len(cuts))
    np.minimum.at(first, group_of, part)
    return np.where(part == first[group_of], part, LEFT_OUT), cuts
