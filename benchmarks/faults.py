"""Faults that a run must survive: kills, signals, full disks, damage.

    python benchmarks/faults.py [--kills 200] [--storm 50] [--flips 2000] [--others 24] [--rows kill,bits]
                                [--threads 1] [--jobs 2] [--workspace runs/faults]

Every case is `luthier run` of one small recipe in a folder of its own: LoRA with dropout, several micro-batches a step,
a checkpoint after each. EXACT: the adapter, the answers of both models, the learning curve, all figures of the report
and the verdict are those of a run that nothing disturbed. Real processes (`kill` to `double`) and, because most of a
process is its imports, the command within one process (the rest). The rows of the table:

kill        SIGKILL at a random moment, and the same command again
storm       one run that is killed so many times soon after it has begun, and ends; none of its kills costs a checkpoint
failpoint   SIGKILL inside every kind of write, sync, rename, deletion and read, and between steps (`luthier/faults.py`)
disk        a write, sync or rename that finds the disk full, broken or forbidden, or files that may grow no further:
            it goes on or ends with a code, and the same command then ends
signal      SIGTERM and SIGINT at random moments: exit 143 or 130 within ten seconds, unless it had ended
twice       two of them at once, or nearly
double      a second process on a run that is under way: refused, and the first one ends
bits        one flipped bit in each kind of file of a run that is under way, finished, or to be judged anew
cut         the same files empty, cut to half, one byte short, and gone
all         a bit in every checkpoint: the run stops, also the second time
changed     other rows, recipe, weights, tokenizer or threads than a run that is under way began with: another run,
            refused, or said to be not exact; then those it began with again
clock       files of any times, also times to come

Damage of `bits` and `cut` is named, and the run goes on, or stops and ends when what it says is deleted; or the file is
one that is not needed any more, or that is written anew. Whatever else happens is a defect, and the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import faults_damage as damage
import faults_processes as processes
from faults_project import Case, Found, Made, Project, Row

from luthier import faults
from luthier.files import write_atomically
from luthier.tiny import write_tiny_model

RECIPE = """
name: tiny
seed: 3
data: {sources: [{path: rows.jsonl}], split: {by: row, valid_fraction: 0.1, test_fraction: 0.2}}
model: {base: tiny, adapt: {method: lora, rank: 4, dropout: 0.1}}
train: {epochs: 4, examples_per_step: 8, tokens_per_micro_batch: 128, learning_rate: 1e-2, save_every_s: 0.0,
        early_stopping: null}
evaluate: {max_new_tokens: 8, probe_documents: 8, suites: [], metrics: [perplexity, token_f1]}
release: {rules: [{metric: perplexity, must: beat_baseline}]}
"""
HALF = "step:20:kill"
"""Of 28 steps: after two validations, the better of which is kept."""


def make(folder: Path) -> Made:
    """The recipe with its data and model, and its runs in the states that cases begin with."""
    shutil.rmtree(folder, ignore_errors=True)
    new = Project(folder / "new")
    write_tiny_model(new.folder / "tiny")
    things = ("kettle", "lamp", "spade", "apron", "pot", "knife", "bench", "hose")
    rows = [
        {"prompt": f"What size is {thing} number {i}?", "completion": f"The {thing} {i} is of size {i * 7 % 13}."}
        for thing in things
        for i in range(10)
    ]
    write_atomically(new.folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_atomically(new.folder / "recipe.yaml", RECIPE.encode())
    whole, half, asked = (new.copied(folder / state) for state in ("whole", "half", "asked"))
    process = whole.start()
    whole.wait_until_begun(process)
    began = time.monotonic()
    if process.wait():
        raise SystemExit(whole.said)
    seconds = time.monotonic() - began
    half.finish(HALF)
    shutil.copytree(whole.folder / "runs", asked.folder / "runs")
    for stage in ("evaluate", "release"):  # the answers are kept beside the runs
        shutil.rmtree(asked.run / stage)
    return Made(folder, whole.run.name, whole.digest(), seconds, _reached(new.copied(folder / "counted")))


def _reached(project: Project) -> dict[str, int]:
    """How often a run comes by each kind of failpoint."""
    faults._faults, faults._reached = {("none", 0): "none"}, Counter()
    code, said = project.here()
    assert code == 0, said
    faults._faults, reached = {}, dict(faults._reached)
    return reached


def rows(kills: int, storm: int, flips: int, others: int) -> dict[str, tuple[int, Row]]:
    """Name -> how many cases, and what each does."""
    return {
        "kill": (kills, processes.killed),
        "storm": (1, partial(processes.stormed, times=storm)),
        "failpoint": (others, processes.failpoint),
        "disk": (others, processes.disk),
        "signal": (others, processes.signalled),
        "twice": (others, partial(processes.signalled, again_s=0.02)),
        "double": (max(1, others // 10), processes.double),
        "bits": (flips, partial(damage.harmed, how=damage.flipped)),
        "cut": (others * 5, partial(damage.harmed, how=damage.cut)),
        "all": (max(1, others // 10), damage.all_checkpoints),
        "changed": (max(5, others // 4), damage.changed),
        "clock": (max(1, others // 4), damage.clock),
    }


def one(made: Made, name: str, row: Row, i: int) -> Found:
    """Do a case in a folder of its own."""
    folder = made.folder / "cases" / f"{name}-{i}"
    shutil.rmtree(folder, ignore_errors=True)
    case = Case(made, name, i, folder)
    found = row(case)
    if found.good:  # else it can be looked at
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--storm", type=int, default=50)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--others", type=int, default=24, help="cases of most other rows")
    parser.add_argument("--rows", type=lambda text: text.split(","), help="these alone")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--jobs", type=int, default=2, help="cases at once")
    parser.add_argument("--workspace", type=Path, default=Path("runs/faults"))
    given = parser.parse_args()
    folder = given.workspace.resolve()
    os.environ |= {"OMP_NUM_THREADS": str(given.threads), "LUTHIER_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    made = make(folder)
    print(f"a run takes {made.seconds:.1f} s beside its imports, of {given.threads} threads\n")
    print("| fault | cases | outcome | slowest exit | took |\n|---|---|---|---|---|", flush=True)
    bad = 0
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, (n, row) in rows(given.kills, given.storm, given.flips, given.others).items():
            if given.rows and name not in given.rows:
                continue
            began = time.monotonic()
            found = list(pool.map(partial(one, made, name, row), range(n)))
            bad += sum(not of.good for of in found)
            shown = "; ".join(f"{n} {what}" for what, n in Counter(of.what for of in found).most_common())
            slowest = f"{s:.1f} s" if (s := max(of.exit_s for of in found)) else ""
            print(f"| {name} | {n} | {shown} | {slowest} | {time.monotonic() - began:.0f} s |", flush=True)
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
