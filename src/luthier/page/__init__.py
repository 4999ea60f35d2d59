"""A page for people: one HTML file without scripts or requests, readable on a phone, on paper and in the dark.

All text from data is escaped, and its invisible characters are shown. What pages share lies in `templates/`: their look
(`head.html`, `page.css`) and the audit of the data (`audit.html`); plots are in `plots`, numbers in words in `words`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from luthier.page import words


@cache
def templates(folder: Path) -> Environment:
    """Those of a folder, and those that pages share; `words` is at hand in each."""

    def shown(value: Any) -> Any:
        return words.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    made = Environment(
        loader=FileSystemLoader([folder, Path(__file__).with_name("templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["words"] = words
    return made
