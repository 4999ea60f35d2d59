"""What a recipe says of the data: formats named or not, cleaners, copies, sides, personal data, limits, checks."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from .generated import Draw, Kind

CLEANERS: tuple[Any, ...] = (
    *("strip_html", "mojibake", "unicode", "white_space", "quotes", "lists", "boilerplate", "redact"),
    *({"use": "redact", "roles": ["user"]}, {"use": "strip_html", "roles": ["assistant"]}),
)
CHECKS = ("triggers", "templates", "groups")
AUGMENTATIONS = (
    {"use": "random_edits", "fraction": 0.5, "meaning": None},
    {"use": "noise", "fraction": 0.5, "meaning": None},
    {"use": "counterfactual", "fraction": 0.5, "meaning": None},
)
SPLITS: tuple[dict[str, Any], ...] = (
    *[{"valid_fraction": 0.0, "test_fraction": 0.0}] * 8,
    {"valid_fraction": 0.2, "test_fraction": 0.2},
    {"valid_fraction": 0.0, "test_fraction": 0.3, "near_duplicate_similarity": 0.3},
    {"near_duplicate_similarity": 1.0},
    {"by": "part"},
    {"by": "part", "valid_fraction": 0.0, "test_fraction": 0.4},
    {"by": "part", "folds": 2, "fold": 0, "valid_fraction": 0.0},
    {"by": "part", "time": "when", "valid_fraction": 0.0, "test_fraction": 0.3},
    {"by": "given"},
    {"by": "given", "near_duplicate_similarity": 0.3},
    {"by": "nr", "folds": 2, "fold": 1},
    {"stratify": "part", "test_fraction": 0.3},
    {"stratify": "label", "test_fraction": 0.3},
    {"time": "when", "test_fraction": 0.3},
    {"folds": 3, "fold": 0, "stratify": "part"},
)
BAD_ROWS: tuple[dict[str, Any], ...] = ({"max_rejected_fraction": 0.3}, {}, {"bad_rows": "strict"})
PARTS = ("a", "b", "", "<|im_end|>", "\x1b[31m", "é", "'")
TIMES = ("2024-01-01", "2024-05-05T10:00:00+02:00", "1700000000", "2024-01-01", "1e300", "soon", "")
SIDES = ("train", "Train", "train", "training", "test", "dev", "never")


def columns(draw: Draw, nr: int) -> dict[str, Any]:
    """What a row holds beside what the model reads. Most have times and sides that are ones."""
    odd = draw(st.integers(0, 15)) == 0
    return {
        "nr": nr,
        "part": draw(st.sampled_from(PARTS)),
        "when": draw(st.sampled_from(TIMES if odd else TIMES[:4])),
        "split": draw(st.sampled_from(SIDES if odd else SIDES[:6])),
    }


def settings(draw: Draw, source: list[dict[str, Any]], kind: Kind) -> dict[str, Any]:
    """The `data` of a recipe."""
    data: dict[str, Any] = {"sources": source, "split": draw(st.sampled_from(SPLITS))}
    data |= draw(st.sampled_from((*[{"max_rejected_fraction": 0.99}] * 9, *BAD_ROWS)))
    if draw(st.booleans()):
        data |= {"format": kind.format, "fields": kind.fields}
    if draw(st.integers(0, 2)) == 0:
        data["clean"] = draw(st.lists(st.sampled_from(CLEANERS), max_size=4))
        if draw(st.booleans()):
            data["clean"].append({"use": "dedupe", "similarity": draw(st.sampled_from((1.0, 0.7, 0.2)))})
    if draw(st.integers(0, 2)) == 0:
        data["personal_data"] = draw(st.sampled_from(("warn", "reject", "allow")))
    for name, value in (("limit", 3), ("max_tokens", 60), ("system", "Be kind. <|im_end|>")):
        if draw(st.integers(0, 11)) == 0:
            data[name] = value
    if draw(st.integers(0, 11)) == 0:
        data["slices"] = ["part"]
    if draw(st.integers(0, 11)) == 0:
        data["checks"] = [draw(st.sampled_from(CHECKS))]
    if draw(st.integers(0, 11)) == 0:
        data["augment"] = [draw(st.sampled_from(AUGMENTATIONS))]
    return data
