"""Personal data out of a text: `redact`.

The placeholder of a value is `<EMAIL_3f2a>`: its kind, and the first digits of a hash of it that is keyed with the
recipe's seed. It is the same wherever the value stands, whatever its separators and case: who is who can be told.

What this protects against: the model, the data that it learns from and every report do not hold the value. What it does
not: who has recipe and placeholder can test whether it is that of a value that he knows, for the seed is no secret.
Four digits tell 65,536 apart. So few that counting through all telephone numbers finds thousands for each; so many that
of n values n (n - 1) / 131,072 pairs are mistaken for one, 0.08 with 100 values, 8 with 1,000. More `digits` tell more
values apart and give more away.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from luthier.prepare import presidio, privacy
from luthier.prepare.cleaners import traits

PLACEHOLDER = re.compile(r"<([A-Z]+)_[0-9a-f]{2,16}>")


def count(before: str, after: str) -> Counter[str]:
    """How many values of each kind were replaced."""
    made = Counter(m[1].lower() for m in PLACEHOLDER.finditer(after))
    return made - Counter(m[1].lower() for m in PLACEHOLDER.finditer(before))


@traits(count=count, hides=True)
def redact(
    text: str,
    seed: int,
    kinds: Sequence[privacy.Kind | presidio.Name] = (),
    engine: Literal["patterns", "presidio"] = "patterns",
    digits: Annotated[int, Field(ge=2, le=16)] = 4,
) -> str:
    """The text with personal data replaced by placeholders, one for each value.

    `kinds` are email, phone, card, iban, ip, ssn, key and credentials; all where none is named. `engine: presidio`
    finds person and place too. Raises DataError LU-D108 where Presidio is not installed.
    """
    wanted = frozenset(kinds or (*privacy.KINDS, *(presidio.NAMES if engine == "presidio" else ())))
    find = presidio.find if engine == "presidio" else privacy.find
    return privacy.replaced(
        text,
        lambda text: [value for value in find(text) if value.kind in wanted],
        lambda value: _placeholder(value.kind, value.canonical, seed, digits),
    )


@lru_cache(maxsize=4096)
def _placeholder(kind: str, canonical: str, seed: int, digits: int) -> str:
    key = f"luthier.redact {seed}".encode()
    made = hmac.new(key, f"{kind}\0{canonical}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
    return f"<{kind.upper()}_{made[:digits]}>"
