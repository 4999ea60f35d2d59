"""The command line: one command per verb. Each loads a recipe, calls one function, prints one record.

stdout carries results, stderr what a person watches. Exit codes: 0 done, whatever the verdict; 1 a defect
of ours; 2 the user's mistake; 3 `--require-pass` and no PASS; 4 a rule stopped the run; 130 Ctrl-C; 143 SIGTERM.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from luthier import __version__, interrupts, machine
from luthier.errors import LuthierError
from luthier.launch import Launch, end_with_parent, leave
from luthier.launch_options import launched

if TYPE_CHECKING:
    from luthier.progress import Reporter
    from luthier.records import Stage

app = typer.Typer(
    name="luthier",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tunes language models and proves what the fine-tuning did.",
)

Target = Annotated[
    str, typer.Argument(help="A recipe.yaml, a data file or folder, or a run's folder.", metavar="RECIPE_OR_DATA")
]
RunName = Annotated[str, typer.Argument(help="A run: its folder, its name, or the start of its name.", metavar="RUN")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: train.epochs=1", metavar="SETTING=VALUE")
]
MaxMinutes = Annotated[float | None, typer.Option(help="Stop training within this time (train.max_minutes).")]
Workspace = Annotated[Path, typer.Option(help="Where runs lie.")]
OwnWorkspace = Annotated[
    Path | None, typer.Option(help="Where runs lie: ./runs, or where the run lies that is given.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
Quietly = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
RUNS = Path("runs")


DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}


def main() -> None:
    """Run the command and exit with its code; a person's mistake never shows a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    machine.collect_seldom()
    interrupts.install()
    try:
        sys.exit(app(standalone_mode=False))  # None, or the code of a typer.Exit
    except LuthierError as error:
        _fail(str(error), error.exit_code, [_problem(p) for p in error.problems])
    except interrupts.Interrupted as signal:
        _fail(f"Stopped by {signal}. What was finished is kept; the same command goes on from there.", signal.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's: wrong usage of the command line
            _fail(f"LU-U000 {error.format_message()}", 2)
        if "LUTHIER_DEBUG" in os.environ:
            raise
        if isinstance(error, OSError) and (error.filename or error.errno in DISK_ERRORS):
            advice = "name another place, make room or mend the disk; the same command then goes on"
            _fail(f"LU-U019 {error.filename or 'disk'}: {error.strerror}\n    -> {advice}", 2)
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        _fail(
            f"LU-X000 a defect of Luthier: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})\n"
            "    -> LUTHIER_DEBUG=1 shows the traceback; please report it",
            1,
        )


def _fail(text: str, code: int, problems: list[dict[str, str]] | None = None) -> None:
    print(text, file=sys.stderr)
    if "--json" in sys.argv:
        print(json.dumps({"error": text, "problems": problems or [], "exit_code": code}))
    sys.exit(code)


def _problem(problem: Any) -> dict[str, str]:
    return {k: getattr(problem, k) for k in ("code", "where", "found", "advice")}


def _reporter(quiet: bool) -> Reporter:
    from luthier.progress import Bars, Lines, Quiet

    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines(lambda text: print(text, file=sys.stderr, flush=True))


def _minutes(settings: list[str] | None, max_minutes: float | None) -> tuple[str, ...]:
    return (*(settings or ()), *([f"train.max_minutes={max_minutes}"] if max_minutes is not None else []))


# -- the verbs of a run ----------------------------------------------------------------------------------


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")] = Path("shop-assistant"),
) -> None:
    """Write a commented recipe with sample data to start from."""
    from luthier.starter import write_starter

    for path in write_starter(folder):
        print(path)
    print(f"\nnow: luthier run {folder / 'recipe.yaml'}")


@app.command()
def migrate(
    files: Annotated[
        list[Path], typer.Argument(help="axolotl.yml, trl.yaml, or llamafactory.yaml with its dataset_info.json.")
    ],
    out: Annotated[Path | None, typer.Option(help="The recipe; else recipe.yaml beside the configuration.")] = None,
    peer: Annotated[str | None, typer.Option(help="Whose it is, where that cannot be told from its keys.")] = None,
    devices: Annotated[int | None, typer.Option(help="That the peer trained on; else one is assumed.", min=1)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that is there.")] = False,
    as_json: Json = False,
    quiet: Quietly = False,
) -> None:
    """Turn the configuration of Axolotl, LLaMA-Factory or TRL into a recipe, and say what became of every key."""
    from luthier import show
    from luthier.migrate import PEERS
    from luthier.migrate import migrate as migrated

    if peer is not None and peer not in PEERS:
        raise typer.BadParameter(f"--peer is one of {', '.join(PEERS)}")
    found, path = migrated(files, out, peer=peer, devices=devices, force=force)
    if as_json:
        print(json.dumps({"recipe": str(path), **found.told()}))
    else:
        if not quiet:
            show.migration(found)
        print(path)


@app.command()
def check(
    target: Target,
    settings: Set = None,
    rows: Annotated[int, typer.Option(help="Rows whose loss mask is shown.", min=0)] = 3,
    show_mask: Annotated[bool, typer.Option("--show-mask/--no-mask", help="Show which tokens are learned.")] = True,
    page: Annotated[Path | None, typer.Option(help="Write the data page, an HTML file, here.")] = None,
    learning_curve: Annotated[
        bool, typer.Option("--learning-curve", help="Train on parts of the rows: what would twice as many bring?")
    ] = False,
    workspace: OwnWorkspace = None,
    as_json: Json = False,
    quiet: Quietly = False,
) -> None:
    """Audit recipe and data, show the loss mask, refuse what cannot be trained or judged; train only for a curve."""
    import tempfile

    from luthier import lifecycle, show

    if page and (page.is_dir() or not page.parent.is_dir()):
        raise typer.BadParameter(f"--page names a file in a folder that is there, found {page}")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        recipe, base, audit = lifecycle.check(
            target, overrides=tuple(settings or ()), out=out, report=_reporter(quiet or as_json)
        )
        if not as_json:
            show.audit(audit)
            show.plan(recipe, audit)
            if show_mask:
                show.masks(base, out, rows)
        if page:
            page.write_bytes((out / "data.html").read_bytes())
    curve = None
    if learning_curve:
        from luthier.tune import curve as tune

        overrides = tuple(settings or ())
        curve, path = tune.learning_curve(target, overrides=overrides, workspace=workspace, report=_reporter(quiet))
        if not as_json:
            show.learning_curve(curve, tune.in_words(curve))
            print(path)
    if as_json:
        found = {"audit": audit.model_dump(mode="json"), "steps": show.n_steps(recipe, audit)}
        print(json.dumps(found | ({"learning_curve": curve.model_dump(mode="json")} if curve else {})))


def _until(stage: Stage, doc: str) -> None:
    """Add the verb that works up to and including `stage`."""

    def verb(
        target: Target,
        settings: Set = None,
        max_minutes: MaxMinutes = None,
        workspace: OwnWorkspace = None,
        as_json: Json = False,
        quiet: Quietly = False,
        launch: Launch | None = None,
    ) -> None:
        from luthier import lifecycle
        from luthier.tune.decide import Advisor

        run = lifecycle.run(
            target,
            overrides=_minutes(settings, max_minutes),
            workspace=workspace,
            until=stage,
            report=_reporter(quiet),
            advisor=Advisor(),
            launch=launch,
        )
        print(json.dumps({"run": str(run.folder), "stage": stage}) if as_json else f"{stage}: {run.folder / stage}")

    app.command(name=stage, help=doc)(launched(verb) if stage != "prepare" else verb)


_until("prepare", "Read, audit, clean and split the data.")
_until("train", "Prepare, then train the model.")
_until("evaluate", "Prepare and train, then compare the model with its base.")


RequirePass = Annotated[bool, typer.Option("--require-pass", help="Exit with 3 unless the verdict is PASS.")]


@app.command(name="release", help="Everything up to the verdict, the report, the model card and the exported model.")
@app.command(name="run", help="All of it: data in, verdict out. Goes on where an earlier run stopped.")
@launched
def run(
    target: Target,
    settings: Set = None,
    max_minutes: MaxMinutes = None,
    workspace: OwnWorkspace = None,
    require_pass: RequirePass = False,
    as_json: Json = False,
    quiet: Quietly = False,
    launch: Launch | None = None,
) -> None:
    from luthier import lifecycle, show
    from luthier.tune.decide import Advisor

    done = lifecycle.run(
        target,
        overrides=_minutes(settings, max_minutes),
        workspace=workspace,
        report=_reporter(quiet),
        advisor=Advisor(),
        launch=launch,
    )
    assert done.verdict is not None
    if as_json:
        print(json.dumps({"run": str(done.folder), "verdict": done.verdict.outcome, "report": str(done.report)}))
    else:
        show.verdict(done)
    if require_pass and done.verdict.outcome != "PASS":
        raise typer.Exit(3)


@app.command()
@launched
def join(
    target: Target,
    settings: Set = None,
    workspace: OwnWorkspace = None,
    quiet: Quietly = False,
    launch: Launch | None = None,
) -> None:
    """Take part in a training that another machine has begun with the same options; the run's folder is shared."""
    from luthier import lifecycle

    if launch is None or launch.nodes()[1] == 1:
        raise typer.BadParameter("--nnodes and --rdzv-endpoint say which training that is")
    lifecycle.join(target, launch, overrides=tuple(settings or ()), workspace=workspace, report=_reporter(quiet))


@app.command(hidden=True)
def member(folder: Path, quiet: Quietly = False) -> None:
    """One of the processes that train together: started by `launch.launch`."""
    from luthier import lifecycle

    end_with_parent()
    try:
        lifecycle.member(folder, _reporter(quiet))
    except (LuthierError, interrupts.Interrupted) as error:
        raise typer.Exit(leave(error)) from None
    finally:
        interrupts.ignore()


# -- many runs -------------------------------------------------------------------------------------------


@app.command()
def trials(
    target: Target,
    vary: Annotated[
        list[str] | None, typer.Option(help="Try these values; several: every combination.", metavar="SETTING=V,V")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Try these settings together.", metavar="NAME:SETTING=V,...")
    ] = None,
    settings: Set = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each variant, with the recipe's seed and the next.")] = 3,
    rungs: Annotated[int, typer.Option(help="Halve the variants: 3 tries 1/4, 1/2 and all of the rows.")] = 1,
    new_seeds: Annotated[
        int | None, typer.Option(help="To judge the winner by; else as many as --seeds.", min=0)
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What decides; else the recipe's first rule's metric.")] = None,
    held_out: Annotated[float, typer.Option(help="Of the training side: half to choose, half to report by.")] = 0.3,
    workspace: OwnWorkspace = None,
    as_json: Json = False,
    quiet: Quietly = False,
) -> None:
    """Try variants of a recipe on a nested split of its training data; the recipe's own test rows take no part."""
    from luthier import show
    from luthier.tune import trials as tune

    if not 0 < held_out < 1:
        raise typer.BadParameter("--held-out lies between 0 and 1")
    report, path = tune.trials(
        target,
        tune.variants_of(vary or (), variant or ()),
        seeds=seeds,
        overrides=tuple(settings or ()),
        rungs=tune.halving(rungs),
        new_seeds=new_seeds,
        metric=metric,
        held_out=held_out,
        workspace=workspace,
        report=_reporter(quiet),
    )
    if as_json:
        print(json.dumps({"report": str(path), "winner": report.winner, "word": report.report_word}))
    else:
        show.trials(report)
        print(path)


@app.command()
def advise(
    target: Target,
    settings: Set = None,
    trials: Annotated[
        bool, typer.Option("--trials/--no-trials", help="Compare the first three by short trials.")
    ] = True,
    max_train_minutes: Annotated[float | None, typer.Option(help="What would train longer is out.")] = None,
    workspace: OwnWorkspace = None,
    as_json: Json = False,
    quiet: Quietly = False,
) -> None:
    """Which technique to train with, and why: a trial step, the data, its distance from the base, rules and trials."""
    from luthier import lifecycle, show
    from luthier.records import AdviceReport
    from luthier.tune.decide import Advisor

    auto = {"method": "auto", "trials": trials, "max_train_minutes": max_train_minutes}
    run = lifecycle.run(
        target,
        overrides=(*(settings or ()), f"model.adapt={json.dumps(auto)}"),
        workspace=workspace,
        until="advise",
        report=_reporter(quiet),
        advisor=Advisor(),
    )
    report = AdviceReport.read(run.folder / "advise" / "advice.json")
    if as_json:
        print(report.model_dump_json())
    else:
        show.advice(report)
        print(f"now: luthier run {run.folder}")


# -- looking at runs -------------------------------------------------------------------------------------


@app.command()
def compare(first: RunName, second: RunName, workspace: Workspace = RUNS, as_json: Json = False) -> None:
    """Compare the tuned models of two runs on the test conversations that they share."""
    from luthier import finished, show
    from luthier.store import find_run

    report = finished.compare(find_run(first, workspace), find_run(second, workspace))
    print(report.model_dump_json(exclude={"samples"})) if as_json else show.comparison(report)


@app.command()
def plan(
    name: Annotated[str | None, typer.Argument(help="A run that was evaluated: the pilot.", metavar="RUN")] = None,
    differ: Annotated[
        float | None, typer.Option(help="Instead: a share of right-or-wrong answers that differ.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Of the run; else that of the recipe's first rule.")] = None,
    gain: Annotated[list[float] | None, typer.Option(help="Rows that show this true gain? May be repeated.")] = None,
    rows: Annotated[list[int] | None, typer.Option(help="What do so many test rows show? May be repeated.")] = None,
    limit: Annotated[float | None, typer.Option(help="To be above; -0.02: to lose no 0.02. Else the rule's.")] = None,
    power: Annotated[float, typer.Option(help="The share of gates that shall pass.")] = 0.8,
    workspace: Workspace = RUNS,
    as_json: Json = False,
) -> None:
    """Before test rows are collected: how many a gain needs, which gain they show, or how likely."""
    from luthier import finished, show
    from luthier.power import MAX_ROWS, Gate, Pilot
    from luthier.power import plan as planned
    from luthier.store import find_run

    if (name is None) == (differ is None) or (differ is not None and metric):
        raise typer.BadParameter("give a RUN, and perhaps its --metric, or --differ")
    if not 0 < power < 1 or not all(1 <= n <= MAX_ROWS for n in rows or ()):
        raise typer.BadParameter(f"--power lies between 0 and 1, --rows between 1 and {MAX_ROWS:,}")
    if name:
        metric, pilot, gate = finished.pilot(find_run(name, workspace), metric, limit, power)
    else:
        assert differ is not None
        metric, pilot, gate = "right or wrong", Pilot.stated(differ), Gate(limit or 0.0, power=power)
    if not all(map(math.isfinite, (*(gain or ()), limit or 0.0))):
        raise typer.BadParameter("--gain and --limit are numbers")
    sizes: list[int | None] = [*(rows or ())] or ([None] if gain else [100, 200, 500, 1000])
    gains: list[float | None] = [*(gain or ())] or [None]
    plans = [planned(pilot, gate, gain=g, rows=n) for g in gains for n in sizes]
    show.power_plan(metric, pilot, gate, plans, as_json)


@app.command()
def chat(
    name: RunName,
    workspace: Workspace = RUNS,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model instead.")] = False,
    say: Annotated[list[str] | None, typer.Option(help="Say this and print the answer; may be repeated.")] = None,
) -> None:
    """Talk to the model of a run."""
    from luthier import finished, show
    from luthier.store import find_run

    show.chat(finished.talk(find_run(name, workspace), base=base), say)


@app.command()
def review(
    name: RunName,
    reviewer: Annotated[str | None, typer.Option(help="Who judges (else: me); with --export, whose votes.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Print what the reviewers' votes say.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write what was judged as rows to learn from.")] = None,
    shape: Annotated[str, typer.Option("--as", help="With --export: preferences, sft or marked.")] = "preferences",
    tag: Annotated[str | None, typer.Option(help="With --as marked: the votes with this tag only.")] = None,
    host: Annotated[str, typer.Option(help="The address; another than this asks for a token.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="The port; else the first free from 8765 on.", min=1, max=65535)
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="LUTHIER_REVIEW_TOKEN", help="What opens the page.")] = None,
    workspace: Workspace = RUNS,
    as_json: Json = False,
) -> None:
    """Judge the answers of base and tuned model side by side, blind, on a page of this machine."""
    from luthier.store import find_run
    from luthier.web import agreement
    from luthier.web import export as exports
    from luthier.web.review import read_evaluation
    from luthier.web.server import serve

    run = find_run(name, workspace)
    if shape not in get_args(exports.Shape):
        raise typer.BadParameter(f"--as is one of {', '.join(get_args(exports.Shape))}")
    if tag and not (export and shape == "marked"):
        raise typer.BadParameter("--tag goes with --export and --as marked")
    if export:
        kind = cast("exports.Shape", shape)
        counts = exports.export(run, read_evaluation(run), export, kind, reviewer=reviewer, tag=tag)
        print(json.dumps({"file": str(export), **counts}) if as_json else exports.in_words(export, counts))
    elif summary:
        told = agreement.summarise(run, read_evaluation(run))
        print(told.model_dump_json() if as_json else "\n".join(agreement.in_words(told)))
    else:
        who = reviewer or "me"

        def say(url: str) -> None:
            print(json.dumps({"url": url, "reviewer": who}) if as_json else f"{who} reviews at {url}", flush=True)

        serve(run, who, say=say, host=host, port=port, token=token)


@app.command()
def runs(workspace: Workspace = RUNS, as_json: Json = False) -> None:
    """List the runs of a workspace."""
    from luthier import finished, show

    show.runs(finished.list_runs(workspace), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show machine, devices and versions, and what is missing."""
    from luthier import show

    show.doctor(as_json)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
