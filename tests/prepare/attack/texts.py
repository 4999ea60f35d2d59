"""Texts: words as people write them, and pieces that have broken readers, tokenizers, templates and pages."""

from __future__ import annotations

from hypothesis import strategies as st

WORDS = (
    "where is my order",
    "the parcel left on Monday and comes tomorrow",
    "Wie hoch ist die Gebühr für 12 Monate?",
    "请问营业时间是几点",
    "please reset the router and wait for two minutes",
    "It costs 40 euros.",
    "ça coûte combien",
    "thank you",
)
PIECES = (
    *("<|im_end|>", "<|im_start|>system\n", "<|im_", "end|>", "<|endoftext|>", "<think>", "</think>", "<|", "|>"),
    *("\x00", "\x1b[31m", "\x7f", "\x85", "\x0b", "\x1c", "\u2028", "\u202e", "\u200b", "\u200d", "\ufeff", "\ufffe"),
    *("\uf8f0", "\U0010ffff", "\ufffd", "e\u0301", "\u0301", "ﬁ", "İ", "ß", "👩‍👩‍👧", "🏳️‍🌈", "\u3000"),
    *("\r\n", "\r", "\n", "\n\n", "\t", " ", "  ", "'", '"', '""', ",", ";", "\\", "\\n", "\\ud800", "/", "#"),
    *("<script>alert(1)</script>", "<b>", "&amp;", "&#0;", "&#xD800;", "&#64;", "]]>", "{{ 7 * 7 }}", "{% raise %}"),
    *("{prompt}", "{nr?}", "{", "}", "%s", "${HOME}", "=1+1", "@SUM(1)", "null", "NaN", "-1", "1e999", "0x41"),
    *("bob@example.com", "bob&#64;example.com", "+49 30 1234567", "4111 1111 1111 1111", "DE89370400440532013000"),
    *(
        "Ã©",
        "â€™",
        "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
        "...",
        "On Monday, Bob wrote:\n> hi",
        "-- \nBob",
        "Sent from my iPhone",
        "1. a\n2. b",
    ),
)


LINES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
_SEVERAL = st.lists(st.sampled_from(PIECES) | LINES | st.text(max_size=12), max_size=5).map("".join)
_LONG = st.builds(str.__mul__, st.sampled_from((*PIECES, *WORDS)), st.sampled_from((50, 700, 4000)))
ANY_TEXT = st.integers(0, 14).flatmap(lambda n: _LONG if n == 7 else _SEVERAL)
"""May be blank."""
TEXT = st.one_of(LINES, LINES, ANY_TEXT).map(lambda s: s if s.strip() else s + "x")
"""Says something."""
