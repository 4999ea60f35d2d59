"""What commands print for people: tables and colours. Results come in as records; nothing is computed twice."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from luthier.errors import printable
from luthier.page import words
from luthier.records import AdviceReport, AuditReport, Comparison, EvalReport, LearningCurve, RunRecord, TrialsReport
from luthier.settings import Recipe

if TYPE_CHECKING:
    from luthier.migrate import Migration
    from luthier.migrate.engine import Entry
    from luthier.models import Base
    from luthier.power import Gate, Pilot, Plan
    from luthier.target import Run

console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)  # a pipe has no width: cut no table
COLOURS = {"PASS": "bold green", "FAIL": "bold red", "UNDERPOWERED": "bold yellow"}
WORD_COLOURS = {"better": "bold green", "worse": "bold red"}
N_FINDINGS = 12
N_FACTS = 10


def verdict(run: Run) -> None:
    from luthier.release.gate import observed

    assert run.verdict is not None
    console.print(Text(run.verdict.outcome, style=COLOURS[run.verdict.outcome]))
    for rule in run.verdict.rules:
        said = f"{rule.rule}\n{observed(rule)}: {rule.why}"
        console.print(Text(f"{rule.outcome:13}", style=COLOURS[rule.outcome]).append(said, style="none"))
    console.print(f"report: {escape(str(run.report.with_suffix('.html')))}", soft_wrap=True)


def comparison(report: EvalReport) -> None:
    table = Table("metric", report.baseline, report.model, "better by", "interval", "p", "n", "wins/losses/ties")
    for c in report.metrics.values():
        table.add_row(*_cells(c))
    console.print(table)
    for note in report.notes:
        console.print(f"note: {escape(note)}")


def _cells(c: Comparison) -> list[str]:
    # + 0.0, because -0.0 prints as such
    interval = f"{c.low + 0.0:+.3g} to {c.high + 0.0:+.3g}" + (" (!)" if c.trouble else "")
    return [
        c.metric,
        f"{c.baseline:.3g}",
        f"{c.value:.3g}",
        f"{c.delta + 0.0:+.3g}",
        interval,
        f"{c.p:.2g}",
        str(c.n),
        f"{c.wins}/{c.losses}/{c.ties}",
    ]


def power_plan(metric: str, pilot: Pilot, gate: Gate, plans: Sequence[Plan], as_json: bool) -> None:
    """Each question's answer, and what other pilots of this size would have said."""
    if as_json:
        told = {"metric": metric, "pilot_clusters": pilot.n_clusters if pilot.sampled else None, **asdict(gate)}
        print(json.dumps(told | {"plans": [asdict(plan) for plan in plans]}))
        return
    source = f"a pilot of {pilot.n_clusters:,} independent rows" if pilot.sampled else "a stated share that differs"
    console.print(f"{escape(metric)}, from {source}; to PASS: a {gate.confidence:.0%} interval above {gate.limit:.3g}")
    table = Table("test rows", "true gain", "of gates PASS", *["other such pilots say"] * pilot.sampled)
    for plan in plans:
        shown = [_planned(name, getattr(plan, name)) for name in ("rows", "gain", "power")]
        ends = [_planned(plan.found, end) for end in (plan.low, plan.high)]
        table.add_row(*shown, *[" to ".join(ends)] * pilot.sampled)
    console.print(table)


def _planned(name: str, value: float | None) -> str:
    from luthier.power import MAX_ROWS

    if value is None:
        return f"over {MAX_ROWS:,}" if name == "rows" else "none"
    return f"{value:,.0f}" if name == "rows" else f"{value:+.3g}" if name == "gain" else f"{value:.0%}"


def trials(report: TrialsReport) -> None:
    """Each variant on the rows by which is chosen, then the winner on the rows that took no part in it."""
    direction = "more" if report.higher_is_better else "less"
    console.print(
        f"{report.metric} ({direction} is better) on {report.n['choose']} nested rows, seeds {_listed(report.seeds)}"
    )
    table = Table(*"variant|each seed|mean|better by|interval|p (Holm)|luck|seeds needed|s|rows|".split("|"))
    for v in report.variants:
        runs = [r for r in report.runs if (r.variant, r.rung, r.part) == (v.name, v.rung, "choose")]
        seconds = sum(r.seconds for r in runs) / len(runs)
        c = v.comparison
        table.add_row(
            escape(v.name),
            _listed([f"{r.value:.4g}" for r in runs]),
            f"{v.value:.4g}",
            *(_cells(c)[3:5] if c else ("", "")),
            "" if v.p_adjusted is None else f"{v.p_adjusted:.2g}",
            "" if v.luck is None else f"{v.luck:.0%}",
            "" if v.seeds_needed is None else str(v.seeds_needed),
            f"{seconds:.0f}",
            f"{v.rung:.0%}",
            Text(v.word, style=WORD_COLOURS.get(v.word, "none")),
        )
    console.print(table)
    if c := report.report:
        settings = next(_listed(v.settings) for v in report.variants if v.name == report.winner)
        judged = f"on {c.n} rows that took no part in choosing, seeds {_listed(report.report_seeds)}"
        _, baseline, value, delta, interval, p, *_ = _cells(c)
        said = f"{report.winner}: {report.report_word}"
        console.print(Text(said, style=WORD_COLOURS.get(report.report_word or "", "bold")))
        luck = "" if report.report_luck is None else f", luck {report.report_luck:.0%}"
        gain = f"better by {delta} ({interval}), p {p}{luck}"
        console.print(f"{judged}: {value}, baseline {baseline}, {gain}\n{escape(settings)}")
    troubles = {c.trouble for c in (*(v.comparison for v in report.variants), report.report) if c and c.trouble}
    for note in (*report.notes, *(f"(!) {trouble}" for trouble in sorted(troubles))):
        console.print(f"note: {escape(note)}")


def advice(report: AdviceReport) -> None:
    """Each candidate with what is foretold of it, then the facts and why one was chosen."""
    from luthier.tune.advise_rules import FACTS

    step = report.measured
    console.print(f"trial step: {step['seconds']:.2f} s, {step['peak_bytes'] / 2**30:.2f} GiB at most; {report.path}")
    table = Table(*"technique|learned weights|peak GiB|minutes|gain in trials|interval|points|why".split("|"))
    for a in report.candidates:
        known = a.minutes is not None
        table.add_row(
            Text(a.name, style="bold green" if a.name == report.chosen else "none"),
            f"{a.n_trainable:,}" if known else "",
            f"{a.peak_bytes / 2**30:.2f}" if known else "",
            f"{a.minutes:.1f}" if known else "",
            *(_cells(a.gain)[3:5] if a.gain else ("", "")),
            f"{a.points:+d}",
            Text(f"out: {a.out}" if a.out else ", ".join(a.rules)),
        )
    console.print(table)
    for name, value in report.facts.items():
        shown = f"{value / 2**30:.1f} GiB" if name.endswith("_bytes") else f"{value:,.4g}"
        console.print(escape(f"{FACTS[name]}: {shown}"))
    console.print(Text(f"{report.chosen}: {_listed(report.settings)}", style="bold"))
    for line in (*report.why, *(f"note: {note}" for note in report.notes)):
        console.print(escape(line))


def learning_curve(curve: LearningCurve, told: str) -> None:
    table = Table("rows", f"{curve.metric}, each seed", "mean")
    for point in curve.points:
        values = _listed([f"{value:.4g}" for value in point.values])
        table.add_row(f"{point.rows:,}", values, f"{fmean(point.values):.4g}")
    console.print(table)
    console.print(escape(told[0].upper() + told[1:]) + ".", soft_wrap=True)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def audit(report: AuditReport) -> None:
    console.print(
        f"[bold]{report.task}[/], format {report.format}, "
        + ", ".join(f"{side} {n}" for side, n in report.sides.items())
    )
    table = Table("step", "in", "out", "dropped or made")
    for step in report.steps:
        table.add_row(step.name, str(step.n_in), str(step.n_out), "; ".join(step.changes))
    console.print(table)
    for made in report.augmentation:
        dropped = ", ".join(f"{reason} {n}" for reason, n in made.dropped.items())
        told = f"{made.method}: {made.made} new rows of {made.asked} candidates" + (
            f"; dropped: {dropped}" * bool(dropped)
        )
        console.print(escape(told))
    for finding in report.findings[:N_FINDINGS]:
        console.print(
            f"{finding.severity}: {finding.code} {escape(printable(finding.where))}: {escape(printable(finding.found))}"
        )
    _checks(report)
    for done in report.cleaning:
        for before, after in done.samples:
            console.print(f"{done.cleaner}: {escape(before)}\n{' ' * len(done.cleaner)}> {escape(after)}")
    if report.counts:
        console.print("counts: " + ", ".join(f"{code} {n}" for code, n in report.counts.items()))
    for note in report.notes:
        console.print(f"note: {escape(note)}")


def _checks(report: AuditReport) -> None:
    """What each check found, and the rows most worth a look; the data page has all of them."""
    for check in report.checks:
        console.print(f"{escape(check.check)}: {check.suspects} of {check.rows} rows are suspect")
        for note in check.notes:
            console.print(f"  {escape(note)}")
        for facts in check.tables:
            table = Table(*map(escape, facts.columns), title=escape(facts.title), title_justify="left")
            for row in facts.rows[:N_FACTS]:
                table.add_row(*(escape(words.fact(cell)) for cell in row))
            console.print(table)
            if len(facts.rows) > N_FACTS:
                console.print(f"  {len(facts.rows) - N_FACTS} more rows: --page FILE shows them")
    if report.worth_a_look:
        table = Table("worth a look", "score", "why", "asked", "answer")
        for one in report.worth_a_look[:N_FACTS]:
            why = "\n".join(f"{name}: {reason}" for name, reason in one.why.items())
            table.add_row(*map(escape, (one.source, f"{one.score:.2f}", why, one.asked, one.answer)))
        console.print(table)


def n_steps(recipe: Recipe, report: AuditReport) -> int:
    return math.ceil(report.sides["train"] * recipe.train.epochs / recipe.train.examples_per_step)


def plan(recipe: Recipe, report: AuditReport) -> None:
    steps, per_step, t = n_steps(recipe, report), recipe.train.examples_per_step, report.tokens
    console.print(f"training would take {steps} steps of {per_step} conversations")
    learned = f"{t['n_tokens']:,.0f} tokens an epoch, of which {t['n_learned']:,.0f} are learned"
    console.print(f"{learned}; {t['mean']:.0f} a conversation, the longest {t['longest']:.0f}")


def masks(base: Base, prepared: Path, n: int) -> None:
    """The first rows token by token: what is learned stands out, in colour and underlined."""
    from luthier.conversation import read_conversations
    from luthier.encode import Encoder
    from luthier.models import load_tokenizer

    tokenizer = load_tokenizer(base)
    encoder = Encoder(tokenizer, new_tokens=base.new_tokens)
    for _, conversation in zip(range(n), read_conversations(prepared / "train.jsonl"), strict=False):
        encoded = encoder(conversation)
        line = Text(
            f"\n{printable(conversation.source)}: {encoded.n_learned} of {len(encoded.ids)} tokens are learned\n",
            style="bold",
        )
        for token, learned in zip(encoded.ids, encoded.learn, strict=True):
            shown = _as_said(tokenizer.decode([token])).replace("\n", "\\n\n")
            line.append(shown, style="black on green underline" if learned else "dim")
        console.print(line)


FATES = {
    "not_supported": ("not supported", "bold red"),
    "unknown": ("unknown", "bold yellow"),
    "carried": ("carried", "bold green"),
    "no_effect": ("no effect here", "dim"),
}


def migration(found: Migration) -> None:
    """Every key of a peer's file under what became of it, what needs a person first; then what nobody said."""
    for state, (title, style) in FATES.items():
        if entries := found.of(state):
            console.print(Text(f"{title}: {len(entries)} of {len(found.entries)} keys", style=style))
            console.print(_fates(entries))
    if found.assumed:
        console.print(Text(f"{found.peer}'s defaults, of keys that are not there", style="bold"))
        console.print(_fates(found.assumed))
    for note in found.notes:
        console.print(f"note: {escape(note)}")


def _fates(entries: Sequence[Entry]) -> Table:
    table = Table("key", "value", "setting", "why", show_header=False, box=None, padding=(0, 2, 0, 2))
    for entry in entries:
        fate = entry.fate
        made = _listed([f"{place}: {_as_yaml(value)}" for place, value in fate.settings.items()])
        table.add_row(*map(escape, (entry.name, entry.shown, made, printable(fate.said, 400))))
    return table


def _as_yaml(value: object) -> str:
    return printable(json.dumps(value, ensure_ascii=False), 60)


def runs(found: Sequence[tuple[Run, dict[str, RunRecord]]], as_json: bool) -> None:
    table = Table("run", "done", "verdict", "finished (UTC)", "seconds")
    rows = []
    for run, stages in found:
        outcome = run.verdict.outcome if run.verdict else None
        finished = max((r.finished for r in stages.values()), default=None)
        seconds = round(sum(r.seconds for r in stages.values()), 1)
        rows.append(
            {"run": run.folder.name, "done": list(stages), "verdict": outcome, "finished": finished, "seconds": seconds}
        )
        shown = Text(outcome, style=COLOURS[outcome]) if outcome else Text("-")
        table.add_row(run.folder.name, ", ".join(stages), shown, finished or "-", f"{seconds:.0f}")
    if as_json:
        print(json.dumps(rows))
    else:
        console.print(table if rows else "no runs here yet")


def doctor(as_json: bool) -> None:
    from luthier import kernels
    from luthier.errors import ModelError
    from luthier.files import cache_folder
    from luthier.machine import describe
    from luthier.models import BUILT_IN, find_base

    facts = describe() | kernels.describe()
    for name in BUILT_IN:
        try:
            facts[f"model {name}"] = f"ready in {find_base(name).folder}"
        except ModelError as error:
            facts[f"model {name}"] = f"missing: {error.problems[0].advice}"
    facts["cache"] = str(cache_folder())
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        console.print(f"{name:28} {escape(value)}", soft_wrap=True)


def chat(answer: Callable[[str], str], say: Sequence[str] | None) -> None:
    """Questions from `say`, or from the keyboard until it ends."""
    if say:
        for question in say:
            console.print(escape(_as_said(answer(question))), soft_wrap=True)
        return
    console.print("an empty line or Ctrl-D ends the conversation", style="dim")
    while True:
        try:
            question = console.input("[bold]you:[/] ")
        except EOFError:
            return
        if not question.strip():
            return
        console.print(f"[bold]model:[/] {escape(_as_said(answer(question)))}")


def _as_said(text: str) -> str:
    """With its lines; a model may write what a terminal would obey."""
    return printable(text, 100_000, keep="\n\t")
