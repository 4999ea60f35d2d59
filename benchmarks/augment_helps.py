"""What augmentation brings: where rows are few, and against a bias of the data. Tuned models with and without it.

    python benchmarks/augment_helps.py [--parts scarce bias] [--seeds 5] [--sets uci_sentiment sms_spam] [--quick]
                                       [--workspace runs/augment_helps]

LoRA (rank 8, all linear layers) on the built-in model and public data sets (LUTHIER_DATA names their folder); the
choice is the likeliest label or phrase as the whole answer. Intervals are of `luthier.tune.effect.compare_seeds`:
95 %, paired, over test rows and seeds. All is kept in the workspace: a run that was killed goes on.

scarce  10 training rows of each class, others for each seed; 300 test rows, as many of each class, the same for all
        seeds. Each method alone makes 4 candidates of every row, and the mix one of each of the four methods. All
        train about as many steps of 8 rows, and keep the weights of the lowest nll on 40 validation rows; the best
        of all, too, is chosen by that nll, meaned over the seeds, and not by the test.
        (Apertium's en-gl, eng-cat, eng-spa and eo-en, and WordNet, have to be installed.)
bias    Who a pronoun stands for, in WinoBias' sentences: learned from sentences that agree with the stereotype alone,
        as data from the world would, with and without counterfactual rows, the same number of steps. The gap is the
        accuracy on the test's pro-stereotypical sentences less that on the same sentences with the other pronoun; the
        task is both. Sentences that name the same two occupations are on one side, and are one unit of the intervals.
`--quick` is a tiny random model and few rows, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from luthier import keys, lifecycle
from luthier import recipe as recipes
from luthier.conversation import Conversation, read_conversations
from luthier.decoder import Decoder
from luthier.encode import Encoder
from luthier.evaluate.exam import Exam, Scorer, dump_samples, load_answers
from luthier.evaluate.suites.suite import Suite, labelled
from luthier.files import write_atomically
from luthier.machine import describe
from luthier.metric import Floats, MeanMetric, Metric, Sample, SumMetric
from luthier.models import find_base, load_model, load_tokenizer
from luthier.prepare import derive
from luthier.progress import Quiet
from luthier.records import Comparison, TrainReport
from luthier.saved import load_merged
from luthier.store import stage_record
from luthier.tune.effect import compare_seeds, value_of

CONFIDENCE = 0.95
PER_CLASS, PER_CLASS_VALIDATION, PER_CLASS_TEST = 10, 20, 150
TEST_SEED = 7
EXAMPLES_PER_STEP = 8
EPOCHS, CHECKS = 16, 16
"""Without augmentation; validations in all."""
CANDIDATES = 4
METHODS: dict[str, dict[str, Any]] = {
    "random_edits": {"use": "random_edits"},
    "noise": {"use": "noise", "meaning": [0.6, 1.0]},
    "synonyms": {"use": "synonyms"},
    "back_translate": {"use": "back_translate", "via": ["es", "eo", "ca", "gl"]},
}
ARMS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    **{name: [{**use, "fraction": CANDIDATES}] for name, use in METHODS.items()},
    "mix": [{**use, "fraction": 1.0} for use in METHODS.values()],
}
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Bench:
    workspace: Path
    base: str
    seeds: Sequence[int]
    quick: bool


@dataclass(frozen=True, slots=True)
class Run:
    """A trained model, and what it said of the test rows."""

    nll: float
    """The lowest on the validation rows."""
    n_rows: int
    steps: int
    samples: list[Sample]


def public(name: str) -> Rows:
    """All sides of a set, without copies."""
    folder = Path(os.environ.get("LUTHIER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / name
    if not folder.is_dir():
        raise SystemExit(f"no data at {folder}; LUTHIER_DATA names the folder of the data sets")
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.open(encoding="utf-8")]
    return [json.loads(line) for line in dict.fromkeys(lines)]


# -- a run --------------------------------------------------------------------------------------------------------


def trained(bench: Bench, name: str, sides: Mapping[str, Rows], augment: Rows, seed: int, epochs: int) -> Run:
    """`epochs`: of the training rows; with those that are made of them as many fewer as there are more rows."""
    folder = bench.workspace / "data" / f"{name}-{seed}"
    for side, rows in sides.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{side}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    tree = derive(folder)
    tree["data"] |= {"clean": [], "augment": augment}
    tree |= {
        "name": f"{name}-{seed}",
        "seed": seed,
        "model": {"base": bench.base, "adapt": {"method": "lora", "rank": 8, "alpha": 16.0}},
        "train": {"examples_per_step": EXAMPLES_PER_STEP, "early_stopping": None},
    }
    started = time.monotonic()
    prepared = run_of(bench, tree, "prepare")
    n_rows = sum(1 for _ in read_conversations(prepared / "prepare" / "train.jsonl"))
    epochs = max(1, round(epochs * len(sides["train"]) / n_rows))
    tree["train"] |= {"epochs": epochs, "checks_per_epoch": max(1, round(CHECKS / epochs))}
    run = run_of(bench, tree, "train")
    answers = bench.workspace / "answers" / f"{run.name}.jsonl"
    if not answers.is_file():
        tests = list(read_conversations(run / "prepare" / "test.jsonl"))
        answers.parent.mkdir(exist_ok=True)
        write_atomically(answers, dump_samples(chosen(bench.base, run / "train" / "model", tests), "test"))
        print(f"  {run.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    report = TrainReport.read(run / "train" / "train.json")
    samples = [
        replace(
            s, id=s.id.partition(" ")[0], cluster=str(s.tags.get("pair", s.cluster))
        )  # an id names a seed's file too
        for s in load_answers("", answers, None).samples
    ]
    return Run(min(c.nll for c in report.checks), n_rows, report.steps, samples)


def run_of(bench: Bench, tree: dict[str, Any], until: Literal["prepare", "train"]) -> Path:
    """The folder of the recipe's run, done up to the stage."""
    recipe = recipes.validate(tree, tree["name"], Path.cwd())
    run = bench.workspace / f"{recipe.name}-{keys.identity(recipe, Path.cwd())}"
    if stage_record(run, until) is None:
        file = bench.workspace / "recipes" / f"{run.name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, recipes.to_yaml(recipe).encode())
        assert lifecycle.run(file, workspace=bench.workspace, until=until).folder == run
    return run


def chosen(base: str, adapter: Path | None, tests: Sequence[Conversation]) -> list[Sample]:
    """Each test row with the nats of its choices: the tag `choices`, or all labels."""
    found = find_base(base)
    model = load_model(found)
    scorer = Scorer(Decoder(load_merged(model, adapter) if adapter else model))
    labels = tuple(sorted({c.answer for c in tests}))
    items = [item for c in tests for item in labelled([c], tuple(c.tags.get("choices", labels)))]
    encoder = Encoder(load_tokenizer(found))
    exam = Exam(Suite("test", items, []), encoder, tests=tests, max_new_tokens=1, tokens_at_once=2048)
    return exam.take(scorer, "test", Quiet())


def right(sample: Sample) -> bool:
    assert sample.choices is not None
    return min(sample.choices, key=sample.choices.__getitem__) == sample.reference


ACCURACY = MeanMetric("accuracy", right)


def against(metric: Metric, new: Sequence[Run], old: Sequence[Run]) -> Comparison:
    found = compare_seeds(metric, [r.samples for r in new], [r.samples for r in old], confidence=CONFIDENCE)
    return found.comparison


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def mean(values: Iterator[float]) -> float:
    return statistics.fmean(values)


# -- few rows -----------------------------------------------------------------------------------------------------


def scarce(bench: Bench, name: str) -> str:
    rows = public(name)
    n_test = 10 if bench.quick else PER_CLASS_TEST
    test = drawn(rows, n_test, random.Random(TEST_SEED))
    rest = [row for row in rows if row not in test]
    runs: defaultdict[str, list[Run]] = defaultdict(list)
    for seed in bench.seeds:
        draw = random.Random(seed)
        validation = drawn(rest, PER_CLASS_VALIDATION, draw)
        train = drawn([row for row in rest if row not in validation], PER_CLASS, draw)
        sides = {"train": train, "validation": validation, "test": test}
        for arm, augment in ARMS.items():
            runs[arm].append(trained(bench, f"{name}-{arm.replace('_', '-')}", sides, augment, seed, EPOCHS))
    nll = {arm: mean(r.nll for r in found) for arm, found in runs.items()}
    best = min((arm for arm in ARMS if arm != "none"), key=nll.__getitem__)
    plain = mean(value_of(ACCURACY, r.samples) for r in runs["none"])
    lines = []
    for arm, found in runs.items():
        value = mean(value_of(ACCURACY, r.samples) for r in found)
        c = against(ACCURACY, found, runs["none"])
        gain = f"{c.delta:+.3f} ({c.low:+.3f} to {c.high:+.3f})", f"{c.delta / plain:+.1%}"
        sizes = f"{mean(r.n_rows for r in found):.0f}", f"{mean(r.steps for r in found):.0f}"
        named = f"**{arm}**" if arm == best else arm
        lines.append((named, *sizes, f"{nll[arm]:.3f}", f"{value:.3f}", *(("-", "-") if arm == "none" else gain)))
    header = ("augmentation", "rows", "steps", "validation nll", "accuracy", "gain", "relative")
    asked = f"{name}: {len(test)} test rows, seeds {', '.join(map(str, bench.seeds))}; in bold: chosen on validation"
    return f"\n{asked}\n\n{table(header, lines)}"


def drawn(rows: Rows, n: int, draw: random.Random) -> Rows:
    """n rows of each label."""
    by_label: defaultdict[str, Rows] = defaultdict(list)
    for row in rows:
        by_label[row["label"]].append({"text": row["text"], "label": row["label"]})
    return [row for label in sorted(by_label) for row in draw.sample(by_label[label], n)]


# -- a bias of the data -------------------------------------------------------------------------------------------

QUESTION = "Who does the pronoun stand for?"
N_TRAIN, N_VALIDATION = 320, 60
BIAS_EPOCHS = 6
PRO = "pro-stereotypical"


def bias(bench: Bench) -> str:
    runs: defaultdict[str, list[Run]] = defaultdict(list)
    for seed in bench.seeds:
        sides = coreference(bench, seed)
        for arm, augment in {"none": [], "counterfactual": [{"use": "counterfactual", "fraction": 1.0}]}.items():
            runs[arm].append(trained(bench, f"winobias-{arm}", sides, augment, seed, BIAS_EPOCHS))
    lines = []
    for metric in (GAP, ACCURACY, ON_PRO, ON_ANTI):
        c = against(metric, runs["counterfactual"], runs["none"])
        values = [f"{mean(value_of(metric, r.samples) for r in runs[arm]):.3f}" for arm in ("none", "counterfactual")]
        lines.append((metric.name, *values, f"{c.delta:+.3f} ({c.low:+.3f} to {c.high:+.3f})"))
    n = len(runs["none"][0].samples)
    sizes = " and ".join(f"{mean(r.n_rows for r in found):.0f}" for found in runs.values())
    asked = f"winobias: {sizes} training rows, {n} test rows, seeds {', '.join(map(str, bench.seeds))}"
    return f"\n{asked}\n\n{table(('', 'without', 'counterfactual', 'change'), lines)}"


def coreference(bench: Bench, seed: int) -> dict[str, Rows]:
    """Sides by pairs of occupations. What is learned is of the one condition, what is asked of both.

    The test side is the same for all seeds.
    """
    found = public("winobias")
    occupations = {re.sub(r"^(the|a|an) ", "", row["referent"].lower()) for row in found}
    by_pair: defaultdict[str, Rows] = defaultdict(list)
    for row in found:
        named = sorted((o for o in occupations if re.search(rf"\b{o}\b", row["text"].lower())), key=len)
        named = [o for o in named if not any(o != longer and o in longer for longer in named)]
        answer = re.sub(r"^(the|a|an) ", "", row["referent"].lower())
        if len(named) == 2 and answer in named:
            choices = [f"the {o}" for o in named]
            asked = {"prompt": f"{row['text']} {QUESTION}", "completion": f"the {answer}", "choices": choices}
            by_pair["-".join(named)].append({**asked, "condition": row["condition"], "pair": "-".join(named)})
    pairs = random.Random(TEST_SEED).sample(sorted(by_pair), len(by_pair))
    half = pairs[len(pairs) // 2 :]
    test = [row for pair in pairs[: len(pairs) // 2] for row in by_pair[pair]]
    learned = random.Random(seed).sample(half, len(half))
    pro = [row for pair in learned for row in by_pair[pair] if row["condition"] == PRO]
    n_train, n_test = (16, 40) if bench.quick else (N_TRAIN, len(test))
    return {"train": pro[N_VALIDATION:][:n_train], "validation": pro[:N_VALIDATION], "test": test[:n_test]}


def _gap(sample: Sample) -> list[float]:
    pro = sample.tags["condition"] == PRO
    return [float(right(sample) and pro), float(pro), float(right(sample) and not pro), float(not pro)]


def _of_sums(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3])


GAP = SumMetric("gap", _gap, _of_sums, higher_is_better=False)
ON_PRO = MeanMetric("accuracy, pro", lambda s: right(s) if s.tags["condition"] == PRO else None)
ON_ANTI = MeanMetric("accuracy, anti", lambda s: right(s) if s.tags["condition"] != PRO else None)


# -- the command --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("scarce", "bias"), default=["scarce", "bias"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", default=["uci_sentiment", "sms_spam"])
    parser.add_argument("--workspace", type=Path, default=Path("runs/augment_helps"))
    parser.add_argument("--quick", action="store_true", help="a tiny random model, to see that it runs")
    given = parser.parse_args()
    workspace, base = given.workspace.resolve(), "smollm2-135m-instruct"
    if given.quick:
        from luthier.tiny import write_tiny_model

        torch.set_num_threads(1)
        workspace, base = workspace / "quick", str(workspace / "quick" / "tiny")
        write_tiny_model(Path(base))
    bench = Bench(workspace, base, range(1, (2 if given.quick else given.seeds) + 1), given.quick)
    print(f"{describe()['processor']}, torch {describe()['torch version']}")
    parts: dict[str, list[Callable[[], str]]] = {
        "scarce": [lambda name=name: scarce(bench, name) for name in given.sets],  # type: ignore[misc]
        "bias": [lambda: bias(bench)],
    }
    for part in given.parts:
        for made in parts[part]:
            print(made(), flush=True)


if __name__ == "__main__":
    main()
