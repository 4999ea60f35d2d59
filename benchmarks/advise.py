"""What `luthier advise` foretells, against what is measured; and what its advice costs, against fixed rules.

    python benchmarks/advise.py [--base smollm2-135m-instruct] [--rounds 3] [--threads 1] [--only lora-4,full]
    python benchmarks/advise.py --regret --data FOLDER [--sets sms_spam,dstc9_faq,banking77,legal_summarization]
                                [--rows 300] [--tests 100] [--epochs 2] [--trials] [--workspace regret]

**Foretold.** One trial step of LoRA (rank 16, 4 examples of 128 tokens) is all that is measured before. From it, peak
memory and time are foretold for twelve other combinations of technique, length and batch, none of which it tried. Then
each is measured: its memory in a fresh process (the most that the process ever held), its time in another, in turns
with the trial's own step, `--rounds` times. A step's time is its processor time by thread, and what is compared is the
time over that of the trial's step in the same round (the median of the rounds' ratios): other work on the machine
slows both. Half of each example is learned; examples share nothing.

**Regret.** On each set (`--data` holds a folder for each) every technique of the advice is trained and judged on the
same test rows by an ordinary run in the workspace, which is kept: a killed command goes on where it was. Then
(best - advised) / (best - base) is shown for the advice, for LoRA of rank 16 and for the technique with most learned
weights that fits. `--rows` bounds each side, `--trials` lets the advice try before it chooses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from luthier import cost, lifecycle, recipe
from luthier.adapt import adapt
from luthier.batch import make_batch
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.machine import describe
from luthier.models import Base, find_base, load_model
from luthier.progress import Lines
from luthier.records import AdviceReport, EvalReport
from luthier.settings import Adapt, Lora
from luthier.train import repeatable
from luthier.tune.advise_rules import CANDIDATES
from luthier.tune.advise_trial import gradient, stepper, trial_step
from luthier.tune.decide import Advisor

TRIAL = (128, 4)
"""Tokens of an example, and examples, of the one step that is tried."""
COMBINATIONS = [
    (name, length, batch)
    for name in ("lora-4", "lora-64", "lora-16-upper", "full", "last-layers", "ia3")
    for length, batch in (((64, 4), (256, 3)) if name in ("lora-4", "full", "ia3") else ((32, 12), (512, 1)))
]
WITHIN = {"memory": 0.10, "time": 0.25}


def examples(length: int, n: int, vocabulary: int = 400) -> list[Encoded]:
    learn = [t >= length // 2 for t in range(length)]
    return [Encoded([(37 * i + 11 * t) % vocabulary for t in range(length)], learn, str(i), "") for i in range(n)]


def technique(name: str, n_layers: int) -> Adapt:
    return next(c for c in CANDIDATES if c.name == name).adapt(n_layers)


def foretold(arguments: argparse.Namespace) -> Iterator[str]:
    base = find_base(arguments.base)
    torch.set_num_threads(arguments.threads)
    n_layers = json.loads((base.folder / "config.json").read_text())["num_hidden_layers"]
    with TemporaryDirectory() as scratch:
        tried = trial_step(base, Lora(), [examples(*TRIAL)], Path(scratch))
        reference = told(base, Lora(), TRIAL)
        process = tried.peak_bytes - reference.memory.peak
        yield f"{describe()['processor']}, {arguments.threads} threads; besides the model {process / 2**20:,.0f} MiB\n"
        yield "| technique | tokens x examples | GiB foretold | measured | off | time foretold | measured | off |"
        yield "|---|---|---|---|---|---|---|---|"
        held = {"memory": 0, "time": 0}
        combinations = [c for c in COMBINATIONS if not arguments.only or c[0] in arguments.only]
        for name, *shape in combinations:
            how = technique(name, n_layers)
            mine = told(base, how, shape)
            memory = mine.memory.peak + process
            seconds = tried.rates.seconds(mine.work + mine.update)
            ratio = seconds / tried.rates.seconds(reference.work + reference.update)
            measured = trial_step(base, how, [examples(*shape)], Path(scratch)).peak_bytes
            taken = in_turns(arguments, name, shape)
            off = {"memory": memory / measured - 1, "time": ratio / taken - 1}
            for what, by in off.items():
                held[what] += abs(by) <= WITHIN[what]
            cells = f"{memory / 2**30:.2f} | {measured / 2**30:.2f} | {off['memory']:+.0%}"
            yield f"| {name} | {shape[0]} x {shape[1]} | {cells} | {ratio:.2f} | {taken:.2f} | {off['time']:+.0%} |"
    n = len(combinations)
    yield f"\nwithin 10 % of memory: {held['memory']} of {n}; within 25 % of time: {held['time']} of {n}"


def told(base: Base, how: Adapt, shape: Sequence[int]) -> cost.StepCost:
    return cost.step_cost(cost.on_shapes(base, how), [make_batch(examples(*shape))], gradient)


def in_turns(arguments: argparse.Namespace, name: str, shape: Sequence[int]) -> float:
    """The step's time over that of the trial's step: the median of the rounds, in a process of its own."""
    pair = json.dumps([name, *shape])
    given = ["--base", arguments.base, "--rounds", str(arguments.rounds), "--threads", str(arguments.threads)]
    done = subprocess.run(
        [sys.executable, __file__, *given, "--child", pair], check=True, capture_output=True, text=True
    )
    return float(done.stdout.splitlines()[-1])


def child(arguments: argparse.Namespace) -> None:
    name, *shape = json.loads(arguments.child)
    torch.set_num_threads(arguments.threads)
    repeatable()
    base = find_base(arguments.base)
    n_layers = json.loads((base.folder / "config.json").read_text())["num_hidden_layers"]
    steps = [
        stepper(Decoder(adapt(load_model(base), how, base, 0)), [make_batch(examples(*of))])
        for how, of in ((Lora(), TRIAL), (technique(name, n_layers), shape))
    ]
    rounds = [[step() for step in steps] for _ in range(arguments.rounds + 1)]
    print(median(mine / reference for reference, mine in rounds[1:]))


# -- regret ----------------------------------------------------------------------------------------------


def regret(arguments: argparse.Namespace) -> Iterator[str]:
    names = [c.name for c in CANDIDATES]
    yield f"| set | metric | base | {' | '.join(names)} | advised | its regret | lora-16's | the largest's |"
    yield "|---" * (len(names) + 7) + "|"
    for name in arguments.sets:
        advice, found, base, metric = judged(arguments, name)
        values = {technique: value for technique, (value, _, _) in found.items()}
        best = max([base, *values.values()])
        span = best - base or 1.0  # nothing is better than the base: in points of the metric
        fits = {a.name: a.n_trainable for a in advice.candidates if not a.out}
        largest = max(fits, key=lambda n: fits[n])
        cells = ["{:.3f} ({:.2f} to {:.2f})".format(*found[n]) if n in found else "" for n in names]
        of = [f"{(best - values[n]) / span:.2f}" for n in (advice.chosen, "lora-16", largest)]
        chosen = f"{advice.chosen} | {' | '.join(of)} ({largest})"
        yield f"| {name} | {metric} | {base:.3f} | {' | '.join(cells)} | {chosen} |"


Value = tuple[float, float, float]
"""With the ends of its interval; more is better."""


def judged(arguments: argparse.Namespace, name: str) -> tuple[AdviceReport, dict[str, Value], float, str]:
    """The advice, each technique's value, the base's, and the metric: the first rule's."""
    target, say = arguments.data / name, Lines(lambda text: print(text, file=sys.stderr, flush=True))
    given = (
        f"model.base={arguments.base}", f"data.limit={arguments.rows}", f"evaluate.limit={arguments.tests}",
        f"train.epochs={arguments.epochs}", "train.checks_per_epoch=1", "evaluate.suites=[]",
        "evaluate.probe_documents=20",
    )  # fmt: skip
    auto = f"model.adapt={{method: auto, trials: {str(arguments.trials).lower()}}}"
    kept = {"workspace": arguments.workspace, "report": say}
    asked = lifecycle.run(target, overrides=(*given, auto), until="advise", advisor=Advisor(), **kept)
    advice = AdviceReport.read(asked.folder / "advise" / "advice.json")
    metric = recipe.load(asked.folder / "recipe.yaml").release.rules[0].metric
    values, base = dict[str, Value](), 0.0
    for candidate in advice.candidates:
        if not candidate.out:
            run = lifecycle.run(target, overrides=(*given, *candidate.settings), until="evaluate", **kept)
            found = EvalReport.read(run.folder / "evaluate" / "evaluation.json").metrics[metric]
            sign = 1 if found.higher_is_better else -1
            ends = sorted(sign * end for end in (found.value_low, found.value_high))
            values[candidate.name], base = (sign * found.value, ends[0], ends[1]), sign * found.baseline
    return advice, values, base, metric


# -- the command -----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--regret", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("data"))
    sets = "sms_spam,dstc9_faq,banking77,legal_summarization"
    parser.add_argument("--sets", type=lambda text: text.split(","), default=sets.split(","))
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--trials", action="store_true")
    parser.add_argument("--workspace", type=Path, default=Path("regret"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    for line in regret(arguments) if arguments.regret else foretold(arguments):
        print(line, flush=True)


if __name__ == "__main__":
    main()
