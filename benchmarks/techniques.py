"""Techniques at equal budgets: how much each learns from the same data with as many weights and in the same time.

    python benchmarks/techniques.py [--budget-seconds 25] [--seeds 3] [--sets sms_spam dstc9_faq]
                                    [--workspace runs/techniques] [--quick]

Full fine-tuning, LoRA, DoRA, bottleneck adapters, prefix tuning and IA3 on the built-in model and on public data sets
(LUTHIER_DATA names their folder). The order of what happens:

1. Sizes. IA3's size cannot be chosen, so it is the budget of weights: each other technique has the rank, size or number
   of tokens that comes nearest to it, LoRA and DoRA on q and v, as Hu et al. 2021. Full fine-tuning has no size.
2. Seconds a step, of all techniques in one process, in turns on the same batches; the median of the rounds. Each
   technique then trains `--budget-seconds` over that many steps, so that a machine which is slow in between takes
   nothing from anyone. The training rows are the first steps x 16 of one order of the set's rows, again from the
   beginning where they are too few.
3. The learning rate, of three for each technique, by validation nll at the end of half of the steps, with a seed of its
   own; counted in nobody's budget.
4. For each seed an ordinary run. Each technique has a process of its own, whose peak memory at the end of the first
   seed's training is shown.

The change from the base, and the difference to LoRA, are of `luthier.tune.effect.compare_seeds`: 95 % intervals over
test rows and seeds. All is kept in the workspace: a run that was killed goes on. `--quick` is a tiny random model on
made-up rows, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from luthier import keys, lifecycle
from luthier import recipe as recipes
from luthier.evaluate.exam import load_answers
from luthier.evaluate.metrics.build import build
from luthier.files import write_atomically
from luthier.machine import describe
from luthier.metric import Metric, Sample
from luthier.prepare import derive
from luthier.progress import Quiet
from luthier.records import AuditReport, TrainReport
from luthier.settings import Adapt, Model, Recipe, Use
from luthier.store import stage_record
from luthier.tune.effect import compare_seeds, value_of

EXAMPLES_PER_STEP = 16
N_VALIDATION = 64
ORDER_SEED, RATE_SEED, FIRST_SEED = 7, 100, 1
RATE_STEPS = 0.5
CONFIDENCE = 0.95
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True)
class Technique:
    adapt: Callable[[int], dict[str, Any]]
    """Its settings by size."""
    rates: tuple[float, ...]
    sized: bool = True


TECHNIQUES = {
    "full": Technique(lambda n: {"method": "full"}, (2e-5, 5e-5, 1e-4), sized=False),
    "lora": Technique(lambda n: {"rank": n, "alpha": 2.0 * n, "target": ["q_proj", "v_proj"]}, (1e-3, 3e-3, 1e-2)),
    "dora": Technique(
        lambda n: {"rank": n, "alpha": 2.0 * n, "target": ["q_proj", "v_proj"], "dora": True}, (1e-3, 3e-3, 1e-2)
    ),
    "bottleneck": Technique(lambda n: {"method": "bottleneck", "placement": "pfeiffer", "size": n}, (1e-3, 3e-3, 1e-2)),
    "prefix": Technique(lambda n: {"method": "prefix", "tokens": n}, (1e-2, 3e-2, 1e-1)),
    "ia3": Technique(
        lambda n: {"method": "ia3", "target": LINEAR, "params": {"feedforward_modules": ["down_proj"]}},
        (3e-3, 1e-2, 3e-2),
        sized=False,
    ),
}


@dataclass(frozen=True, slots=True)
class Rows:
    """A data set, and what its test rows are judged by."""

    read: Callable[[], dict[str, list[dict[str, Any]]]]
    """Side -> rows; there may be no test side, then the validation side is that."""
    metric: str
    n_test: int
    max_new_tokens: int


def public(name: str) -> dict[str, list[dict[str, Any]]]:
    folder = Path(os.environ.get("LUTHIER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / name
    if not folder.is_dir():
        raise SystemExit(f"no data at {folder}; LUTHIER_DATA names the folder of the data sets")
    return {file.stem: [json.loads(line) for line in file.open(encoding="utf-8")] for file in folder.glob("*.jsonl")}


def made_up(labelled: bool) -> dict[str, list[dict[str, Any]]]:
    things = ("kettle", "lamp")
    texts = [f"{'Boil' if i % 2 else 'Light'} number {i} at {i % 11} o'clock." for i in range(200)]
    keys = ("text", "label") if labelled else ("question", "answer")
    rows = [dict(zip(keys, (t, things[i % 2] if labelled else f"A {t}"), strict=True)) for i, t in enumerate(texts)]
    return {"train": rows[:120], "validation": rows[120:150], "test": rows[150:]}


SETS = {
    "sms_spam": Rows(lambda: public("sms_spam"), "choice_skill", n_test=200, max_new_tokens=4),
    "dstc9_faq": Rows(lambda: public("dstc9_faq"), "token_f1", n_test=100, max_new_tokens=32),
}
QUICK_SETS = {
    "labels": Rows(lambda: made_up(True), "choice_skill", n_test=40, max_new_tokens=4),
    "answers": Rows(lambda: made_up(False), "token_f1", n_test=40, max_new_tokens=8),
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What is asked of this command."""

    workspace: Path
    base: str
    sets: Mapping[str, Rows]
    budget_s: float
    n_seeds: int
    rounds: int
    arguments: Sequence[str]
    """Of the command line, for its children."""


# -- recipes ---------------------------------------------------------------------------------------------


@cache
def sides(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Rows of each side in an order of their own; what a held-out side has is in no other."""
    read = rows.read()
    held_out = read.get("test") or read["validation"]
    rest = read["train"] + (read["validation"] if "test" in read else [])
    drawn: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for side, given in (("test", held_out), ("train", rest)):
        unseen = {text: row for row in given if (text := json.dumps(row, sort_keys=True)) not in seen}
        seen |= unseen.keys()
        drawn[side] = random.Random(ORDER_SEED).sample([*unseen.values()], len(unseen))
    drawn["test"] = drawn["test"][: rows.n_test]
    return {**drawn, "validation": drawn["train"][:N_VALIDATION], "train": drawn["train"][N_VALIDATION:]}


def data_for(bench: Bench, name: str, n_steps: int) -> tuple[dict[str, Any], int]:
    """A derived recipe on so many training rows that a number of epochs takes `n_steps`; and that number."""
    found, n, folder = sides(bench.sets[name]), n_steps * EXAMPLES_PER_STEP, bench.workspace / "data" / name
    epochs = -(-n // len(found["train"]))
    files = {side: write_rows(folder / f"{side}.jsonl", rows) for side, rows in found.items()}
    tree = derive(folder)
    files["train"] = write_rows(folder.with_name(f"{name}-{n // epochs}.jsonl"), found["train"][: n // epochs])
    tree["data"] |= {
        "sources": [{"path": str(path), "split": side} for side, path in files.items()],
        "clean": [],  # copies are gone, and each row is worth its place in a step
    }
    return tree, epochs


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def recipe_for(bench: Bench, name: str, technique: str, size: int, rate: float, n_steps: int, seed: int) -> Recipe:
    rows = bench.sets[name]
    tree, epochs = data_for(bench, name, n_steps)
    tree |= {
        "name": f"{name}-{technique}-{rate:g}-{n_steps}-{seed}",
        "seed": seed,
        "model": {"base": bench.base, "adapt": TECHNIQUES[technique].adapt(size)},
        "train": {
            "epochs": epochs,
            "examples_per_step": EXAMPLES_PER_STEP,
            "learning_rate": rate,
            "checks_per_epoch": 1,
            "early_stopping": None,
            "keep": "last",
        },
        "evaluate": {
            "metrics": [rows.metric],
            "max_new_tokens": rows.max_new_tokens,
            "probe_documents": 20,
            "suites": [],
        },
        "release": {"rules": [{"metric": rows.metric, "must": "beat_baseline"}]},
    }
    return recipes.validate(tree, tree["name"], Path.cwd())


def written(bench: Bench, recipe: Recipe) -> Path:
    path = bench.workspace / "recipes" / f"{recipe.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, recipes.to_yaml(recipe).encode())
    return path


def run(bench: Bench, recipe: Recipe, until: Literal["train", "evaluate"]) -> Path:
    """The folder of a run that is done up to the stage."""
    folder = bench.workspace / f"{recipe.name}-{keys.identity(recipe, Path.cwd())}"
    if stage_record(folder, until) is None:
        started = time.monotonic()
        lifecycle.run(written(bench, recipe), workspace=bench.workspace, until=until)
        print(f"  {recipe.name}: {until} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return folder


def child(bench: Bench, *what: str) -> None:
    if code := subprocess.run([sys.executable, __file__, *bench.arguments, "--child", *what]).returncode:
        raise SystemExit(code)


# -- sizes and times, in a child -------------------------------------------------------------------------


def sizes(bench: Bench) -> dict[str, tuple[int, int]]:
    """Technique -> its size, and how many weights it then trains."""
    from luthier.adapt import adapt, trainable
    from luthier.models import find_base, load_model

    base = find_base(bench.base)

    def n_trained(technique: str, size: int) -> int:
        return sum(
            p.numel() for p in trainable(adapt(load_model(base), settings_of(technique, size), base, 0)).values()
        )

    budget, found = n_trained("ia3", 1), {}
    for name, technique in TECHNIQUES.items():
        size = 1
        if technique.sized:  # weights grow by as many with each size more
            one, two = n_trained(name, 1), n_trained(name, 2)
            size = max(1, 1 + round((budget - one) / (two - one)))
        found[name] = size, n_trained(name, size)
    return found


def settings_of(technique: str, size: int) -> Adapt:
    return Model.model_validate({"adapt": TECHNIQUES[technique].adapt(size)}).adapt


def seconds_a_step(bench: Bench, name: str, sized: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Each technique's median, by the training loop itself: a step of each in turn on the same examples."""
    from luthier.adapt import adapt, trainable
    from luthier.decoder import Decoder
    from luthier.machine import keeping_freed_memory
    from luthier.models import find_base, load_model, load_tokenizer
    from luthier.train import make_plan, read_data, repeatable
    from luthier.train.loop import Progress, fit
    from luthier.train.optim import make_optimizer
    from luthier.train.terms import CrossEntropy

    repeatable()
    recipe = recipe_for(bench, name, "lora", sized["lora"][0], 1e-6, bench.rounds + 1, 0)
    prepared = lifecycle.run(written(bench, recipe), workspace=bench.workspace, until="prepare").folder / "prepare"
    base, ways = find_base(bench.base), {}
    for technique, (size, _) in sized.items():
        model = adapt(load_model(base), settings_of(technique, size), base, 0)
        decoder = Decoder(model)
        data = read_data(recipe, prepared, base, load_tokenizer(base), share=decoder.shares)
        data = replace(data, validation=data.validation[:1])  # `fit` validates, outside of what it times
        ways[technique] = decoder, make_optimizer(trainable(model), recipe.train), data, make_plan(recipe, data)
    progress = dict.fromkeys(ways, Progress())
    seen: dict[str, list[float]] = {technique: [] for technique in ways}
    with keeping_freed_memory():
        for i in range(bench.rounds + 1):
            for technique in [*ways][:: 1 if i % 2 else -1]:
                decoder, optimizer, data, plan = ways[technique]
                before = replace(progress[technique], stopped=None)
                one = replace(plan, n_steps=i + 1, validate_every=sys.maxsize, patience=None)
                after = fit(decoder, optimizer, [CrossEntropy()], data, one, before, NoKeeper(), Quiet())
                progress[technique] = after
                seen[technique].append(after.seconds - before.seconds)
    return {technique: statistics.median(found[1:]) for technique, found in seen.items()}


class NoKeeper:
    """No checkpoints are wanted."""

    def save(self, *_: Any) -> None: ...

    def restore(self, *_: Any) -> None: ...


# -- the comparison --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trained:
    """A technique on one data set: the runs of its seeds."""

    size: int
    n_trained: int
    seconds: float
    """A step."""
    n_steps: int
    rate: float
    tried: Mapping[float, float]
    """Rate -> validation nll."""
    runs: Sequence[Path]

    @property
    def answers(self) -> list[list[Sample]]:
        return [samples(folder, "tuned") for folder in self.runs]

    @property
    def peak_gib(self) -> float:
        """At the end of the first seed's training: by then its process has evaluated nothing."""
        records = [stage_record(folder, "train") for folder in self.runs]
        return float(min(record.summary["peak_bytes"] for record in records if record)) / 2**30

    @property
    def megabytes(self) -> float:
        return sum(f.stat().st_size for f in (self.runs[0] / "train" / "model").glob("*.safetensors")) / 1e6


def samples(folder: Path, side: str) -> list[Sample]:
    answers = load_answers(side, folder / "evaluate" / f"{side}.jsonl", None).samples
    return sorted(answers, key=lambda s: s.id)


def trained(bench: Bench, name: str, technique: str) -> Trained:
    plan = json.loads(planned(bench, name).read_text())
    (size, n_trained), seconds = plan["sizes"][technique], plan["seconds"][technique]

    def recipe(rate: float, n_steps: int, seed: int) -> Recipe:
        return recipe_for(bench, name, technique, size, rate, n_steps, seed)

    n_steps = max(1, int(bench.budget_s / seconds))
    tried = {}
    for rate in TECHNIQUES[technique].rates:
        folder = run(bench, recipe(rate, max(1, round(RATE_STEPS * n_steps)), RATE_SEED), "train")
        tried[rate] = TrainReport.read(folder / "train" / "train.json").checks[-1].nll
    rate = min(tried, key=tried.__getitem__)
    runs = [run(bench, recipe(rate, n_steps, FIRST_SEED + i), "evaluate") for i in range(bench.n_seeds)]
    return Trained(size, n_trained, seconds, n_steps, rate, tried, runs)


def compared(bench: Bench, name: str) -> Iterator[str]:
    for technique in TECHNIQUES:
        planned(bench, name)
        child(bench, "train", name, technique)  # by itself, so that its peak memory is its own
    found = {technique: trained(bench, name, technique) for technique in TECHNIQUES}
    folder = found["lora"].runs[0]
    labels = AuditReport.read(folder / "prepare" / "audit.json").labels
    metric = build(Use(use=bench.sets[name].metric), labels, folder)
    base = samples(folder, "base")
    n = len(sides(bench.sets[name])["train"])
    yield f"\n{name}: {metric.name} on {len(base)} test rows, base {value_of(metric, base):.3f}; {n} rows to train on"
    header = (
        "technique", "weights", "size", "s a step", "steps", "rate (nll at each)", metric.name, "change from base",
        "against LoRA", "peak GiB", "MB saved",
    )  # fmt: skip
    yield f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}"
    for technique, one in found.items():
        yield line(technique, one, metric, [base] * len(one.runs), found["lora"].answers)


def line(technique: str, one: Trained, metric: Metric, base: list[list[Sample]], lora: list[list[Sample]]) -> str:
    size = one.size if TECHNIQUES[technique].sized else "-"
    rates = ", ".join(f"{rate:g}: {nll:.3f}" for rate, nll in one.tried.items())
    value = statistics.mean(value_of(metric, answers) for answers in one.answers)
    cells = (
        technique, f"{one.n_trained:,}", size, f"{one.seconds:.2f}", one.n_steps, f"**{one.rate:g}** ({rates})",
        f"{value:.3f}", change(metric, one.answers, base),
        "-" if technique == "lora" else change(metric, one.answers, lora), f"{one.peak_gib:.2f}",
        f"{one.megabytes:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def change(metric: Metric, new: list[list[Sample]], old: list[list[Sample]]) -> str:
    c = compare_seeds(metric, new, old, confidence=CONFIDENCE).comparison
    return f"{c.delta:+.3f} ({c.low:+.3f} to {c.high:+.3f}){', ' + c.trouble if c.trouble else ''}"


def planned(bench: Bench, name: str) -> Path:
    path = bench.workspace / f"plan-{name}.json"
    if not path.is_file():
        child(bench, "plan", name)
    return path


# -- the command -----------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-seconds", type=float, default=None, help="of training; 25, quick: 1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7, help="steps of each technique that are timed")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--workspace", type=Path, default=None, help="runs/techniques, quick: runs/techniques-quick")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, to see that it runs")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def bench_of(given: argparse.Namespace) -> Bench:
    from luthier.tiny import write_tiny_model

    workspace = given.workspace or Path("runs") / ("techniques-quick" if given.quick else "techniques")
    workspace = workspace.resolve()
    arguments = sys.argv[1 : sys.argv.index("--child")] if given.child else sys.argv[1:]
    if not given.quick:
        sets = {name: SETS[name] for name in given.sets}
        return Bench(
            workspace, "smollm2-135m-instruct", sets, given.budget_seconds or 25, given.seeds, given.rounds, arguments
        )
    tiny = workspace / "tiny"
    if not given.child:
        write_tiny_model(tiny)
    return Bench(workspace, str(tiny), QUICK_SETS, given.budget_seconds or 1, given.seeds, 2, arguments)


def main() -> None:
    given = arguments()
    if given.quick:
        torch.set_num_threads(1)  # of a tiny model's operations two threads make slower ones
    bench = bench_of(given)
    match given.child:
        case ["train", name, technique]:
            trained(bench, name, technique)
        case ["plan", name]:
            sized = sizes(bench)
            plan = {"sizes": sized, "seconds": seconds_a_step(bench, name, sized)}
            write_atomically(bench.workspace / f"plan-{name}.json", json.dumps(plan, indent=1).encode())
        case _:
            machine = describe()
            print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch version']}")
            print(f"{bench.budget_s:g} s of training, {bench.n_seeds} seeds", flush=True)
            for name in bench.sets:
                for text in compared(bench, name):
                    print(text, flush=True)


if __name__ == "__main__":
    main()
