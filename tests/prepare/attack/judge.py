"""The judge: prepares a case, and says where `prepare` does what it must never do.

It ends within a time, with a LuthierError that can be shown or with every row accounted for: nothing lost, nothing
changed but what is counted, no family and no prompt on two sides, no text of a row turned into a control token.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from luthier.conversation import SIDES, Conversation, Message, Side, read_conversations
from luthier.encode import Encoder
from luthier.errors import LuthierError
from luthier.models import find_base, load_tokenizer
from luthier.prepare import derive, prepare
from luthier.recipe import validate
from luthier.records import AuditReport
from luthier.settings import Cleaner, Data, Recipe
from luthier.similar import shingles
from luthier.tiny import SPECIAL

from .case import Case, Known, recipe_tree

LIMIT_SECONDS = 20
"""Of the processor: the machine may be busy."""
MAY_REJECT_GOOD = {"LU-D025", "LU-D041", "LU-D044", "LU-D046", "LU-D047", "LU-D052", "LU-D058", "LU-D105", "LU-D120"}
"""What a good row may be rejected for: its time, its side, personal data, its length, private-use characters."""
READ = ("read", "understand", "clean", "encode")
"""The steps that drop rows into the rejects."""


class Finding(AssertionError):
    """What must never happen did."""


class Hang(BaseException):
    """No Exception, so that nothing takes it for one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: str
    refused: str
    """The code of the first problem; empty where the case was accepted."""
    n_rejected: int
    seconds: float
    digest: str
    """Of all that was written, or of the error."""
    finding: str = ""


TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ '\n' + call['function'] | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Of a model that knows tools: two control tokens a message."""


def encoder_of(model: Path) -> Encoder:
    """With the tokenizer of the tiny model."""
    tokenizer = load_tokenizer(find_base(str(model)))
    tokenizer.chat_template = TEMPLATE
    return Encoder(tokenizer)


def judge(case: Case, folder: Path, encoder: Encoder) -> Outcome:
    """Prepare the case in `folder`, where nothing else lies."""
    shutil.rmtree(folder, ignore_errors=True)
    case.write(folder)
    refused, n_rejected, digest, finding, began = "", 0, "", "", time.perf_counter()
    try:
        with _limit():
            recipe, report = _prepared(case, folder, encoder)
        seconds = time.perf_counter() - began
        _Judged(case, folder / "out", recipe.data, report, encoder).check()
        n_rejected = sum(sum(step.dropped.values()) for step in report.steps if step.name in READ)
        digest = _digest(*(path.read_bytes() for path in sorted((folder / "out").iterdir())))
    except LuthierError as error:
        seconds = time.perf_counter() - began
        refused, digest = error.problems[0].code, _digest(str(error).encode("utf-8", "replace"))
        finding = _cannot_be_shown(error)
    except (Exception, Hang) as error:
        seconds, finding = time.perf_counter() - began, f"{type(error).__name__}: {error}"
    return Outcome(case.kind, refused, n_rejected, seconds, digest, finding)


def _prepared(case: Case, folder: Path, encoder: Encoder) -> tuple[Recipe, AuditReport]:
    """As `luthier check` does it, with a recipe or with a data file."""
    if case.data:
        recipe = validate(recipe_tree(case.data), "recipe.yaml", folder)
    else:
        recipe = validate(derive(folder / Path(next(iter(case.files))).parts[0]), "recipe.yaml", folder)
    encoder.max_tokens = recipe.data.max_tokens or 2048
    return recipe, prepare(recipe, folder, folder / "out", encoder)


@contextmanager
def _limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _cannot_be_shown(error: LuthierError) -> str:
    """What is wrong with an error; empty if it can be shown."""
    for problem in error.problems:
        if not re.fullmatch(r"LU-[A-Z]\d{3}", problem.code) or not problem.found:
            return f"an error without code or words: {problem!r}"
        if not (problem.where + problem.found + problem.advice).isprintable():
            return f"an error that cannot be shown: {problem!r}"
    return ""


@dataclass
class _Judged:
    """What was prepared of a case."""

    case: Case
    out: Path
    data: Data
    report: AuditReport
    encoder: Encoder

    @cached_property
    def sides(self) -> dict[str, list[Conversation]]:
        return {side: list(read_conversations(self.out / f"{side}.jsonl")) for side in SIDES}

    @cached_property
    def read(self) -> list[Conversation]:
        """Those that were not made."""
        return [c for some in self.sides.values() for c in some if c.made_by is None]

    @cached_property
    def rejects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "rejects.jsonl").read_text().splitlines()]

    @property
    def cleaners(self) -> list[str]:
        return [step.use for step in self.data.clean if isinstance(step, Cleaner)]

    @property
    def hides(self) -> bool:
        return "redact" in self.cleaners or self.data.personal_data == "reject"

    def check(self) -> None:
        self.counts()
        self.shown()
        self.across_sides()
        self.control_tokens()
        if self.case.known:
            self.said(self.case.known)
        if len(self.case.files) == 1 and next(iter(self.case.files)).endswith((".jsonl", ".ndjson")):
            self.lines()

    def counts(self) -> None:
        """Every row is in the chain of steps, and what the steps say is what lies in the files."""
        n = self.report.steps[0].n_in
        for step in self.report.steps:
            _must(step.n_in == n, f"step {step.name} takes in {step.n_in} of {n}")
            n += sum(step.made.values()) - sum(step.dropped.values())
            _must(step.n_out == n, f"step {step.name} gives {step.n_out} of {n}")
        held = {side: len(some) for side, some in self.sides.items()}
        _must(sum(held.values()) == n, f"{n} rows come out, {held} are held")
        _must(held == self.report.sides, f"{held} are held, the audit says {self.report.sides}")
        counted: Counter[str] = Counter()
        for step in self.report.steps:
            counted += Counter(step.dropped) if step.name in READ else Counter()
        _must(counted == Counter(r["code"] for r in self.rejects), f"{counted} are not the rejects")
        allowed = 0 if self.data.bad_rows == "strict" else self.data.max_rejected_fraction * self.report.steps[0].n_in
        _must(len(self.rejects) <= allowed, f"{len(self.rejects)} rows are rejected, {allowed} may be")
        if self.case.known:
            n_in = self.report.steps[0].n_in
            _must(n_in == self.case.known.n_rows, f"{n_in} rows are read of {self.case.known.n_rows}")
        blank = [c.source for c in self.read for m in c.messages if not m.text.strip() and m.role != "system"]
        _must(not blank or self.report.format == "tokens", f"a blank text at {blank}")

    def shown(self) -> None:
        """What people read can be shown, and no page runs what a row holds."""
        for one in self.report.findings:
            for text in (one.where, one.found, one.advice):
                _must(text.isprintable(), f"a finding that cannot be shown: {one.code} {text!r}")
        for note in self.report.notes:
            _must(note.isprintable(), f"a note that cannot be shown: {note!r}")
        page = (self.out / "data.html").read_text(encoding="utf-8")
        _must("<script>alert(1)" not in page, "the page runs what a row holds")

    def across_sides(self) -> None:
        """No family and no prompt, nor one nearly the same, is on two sides that were drawn. What held-out rows share
        with training, sides may be given that do, is counted."""
        given = next((note for note in self.report.notes if note.startswith("sides given")), "")
        drawn = [side for side in SIDES if side == "train" or f" {side}" not in given]
        place: dict[str, str] = {}
        for side in drawn:
            for c in self.sides[side]:
                other = place.setdefault(c.family, side)
                _must(other == side, f"the family of {c.source} is in {other} and in {side}")
        leaks = 0
        for one, other in combinations(SIDES, 2):
            for c, like in self.shared(one, other):
                _must(
                    {one, other} - {*drawn}, f"the prompt of {c.source}, or nearly, is that of {like.source} in {one}"
                )
                leaks += one == "train"
        counted = self.report.counts.get("LU-D039", 0)
        _must(leaks == counted, f"{leaks} held-out rows have a prompt of train, {counted} are counted")

    def shared(self, one: Side, other: Side) -> Iterator[tuple[Conversation, Conversation]]:
        """The rows of the other side whose prompts that side shares, each with the first row that shares it."""
        similarity = self.data.split.near_duplicate_similarity
        asked = [(c, set(shingles(c.asked_text))) for c in self.sides[one] if c.made_by is None]
        for c in self.sides[other]:
            said, found = _normal(c.asked_text), set(shingles(c.asked_text))
            for before, held in asked:
                near = similarity < 1 and len(found & held) >= similarity * len(found | held) - 1e-9
                if near or said == _normal(before.asked_text):
                    yield c, before
                    break

    def control_tokens(self) -> None:
        """The only control tokens are the template's, and the ids spell what the conversation says."""
        special = set(self.encoder.tokenizer.convert_tokens_to_ids(list(SPECIAL)))
        for c in (c for some in self.sides.values() for c in some if not c.tokens):
            ids = self.encoder(c).ids
            n = sum(id_ in special for id_ in ids)
            expected = 1 if c.messages[0].role == "text" else 2 * (len(c.messages) + bool(c.tools))
            _must(n == expected, f"{n} control tokens in {c.source}, {expected} are the template's")
            spelled = self.encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            for m in c.messages:
                _must(m.content in spelled, f"the ids of {c.source} do not spell {m.content!r}")

    def said(self, known: Known) -> None:
        """A good row is kept and says what was written, but for what the cleaners count."""
        fields = {name: value.replace("?}", "}") for name, value in self.report.fields.items()}
        if self.report.format != known.format or not known.fields.items() <= fields.items():
            return  # hostile rows have made something else of it
        system = self.data.system
        found: dict[int, Conversation] = {}
        for c in self.read:
            if (nr := int(c.tags.get("nr", -1))) >= 0:
                _must(nr not in found, f"row {nr} is there twice")
                found[nr] = c
        n_changed = 0
        for nr, c in found.items():
            said, rejected = known.said[nr]
            if system and said and said[0][0] not in ("system", "text"):
                said = (("system", system), *said)
            same = (_said(c.messages), _said(c.rejected)) == (said, rejected) or c.tokens is not None
            n_changed += not same
            _must(same or self.cleaners, f"row {nr} says {_said(c.messages)!r}, not {said!r}")
        n_counted = sum(one.rows for one in self.report.cleaning)
        _must(n_changed <= n_counted, f"{n_changed} rows are changed, {n_counted} are counted")
        self._good_rows_are_kept(known, found)

    def _good_rows_are_kept(self, known: Known, found: dict[int, Conversation]) -> None:
        lost = len(known.said) - len(found)
        dropped = sum(sum(step.dropped.values()) for step in self.report.steps if step.name not in READ)
        allowed = dropped + sum(r["code"] in MAY_REJECT_GOOD or ":odd " in r["where"] for r in self.rejects)
        _must(lost <= allowed or not known.said, f"{lost} good rows are not kept, {allowed} may be")

    def lines(self) -> None:
        """Of JSON lines: each that is not blank is a row; rejects hold theirs, what is kept says what stands in it."""
        content = next(iter(self.case.files.values())).removeprefix(b"\xef\xbb\xbf")
        lines = content.split(b"\n")
        n_lines, n_in = sum(bool(line.strip()) for line in lines), self.report.steps[0].n_in
        _must(n_in == n_lines, f"{n_in} rows are read of {n_lines} lines")
        for one in self.rejects if not self.hides else ():
            raw = one["raw"].encode("utf-8", "surrogateescape")
            line = lines[_line(one["where"]) - 1]
            _must(raw == line.rstrip(b"\r"), f"the reject of {one['where']} is not what was read")
        plain = not self.cleaners and not any("{" in field for field in self.report.fields.values())
        for c in self.read if plain and self.report.format != "tokens" else ():
            held = set(_texts(json.loads(lines[_line(c.source) - 1]))) | {self.data.system, ""}
            for m in (*c.messages, *c.rejected):
                _must(m.content in held, f"{c.source} does not say {m.content!r}")


def _line(where: str) -> int:
    return int(re.findall(r":(\d+)", where)[0])


def _texts(value: Any) -> Iterator[str]:
    """All texts in JSON, and those of parts joined."""
    if isinstance(value, str):
        yield value
    for inner in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from _texts(inner)
    if isinstance(value, list):
        yield "".join(str(one["text"]) for one in value if isinstance(one, dict) and "text" in one)


def _said(messages: tuple[Message, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((m.role, m.content) for m in messages)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()


def _must(holds: object, found: str) -> None:
    if not holds:
        raise Finding(found)
