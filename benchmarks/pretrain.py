"""Continued pre-training: how a run over a large corpus starts, what it holds, and what a domain's text gives.

    python benchmarks/pretrain.py [--parts long,domain] [--tokens 10000000,100000000] [--steps 200] [--quick]
                                  [--set legal_summarization:text] [--epochs 3] [--data FOLDER]

`long` makes documents of made-up words (by seed, 40 to 1,200 words each), so many tokens in all, prepares them, and
trains a tiny model on them in processes of their own, as `luthier run` does: one that ends after `--steps` steps by a
signal, as Ctrl-C, and one that goes on. Told are the seconds from the process's first line until the model begins to
compute, how many of them go into checking the hashes of what was prepared, and those until the first step begins
(before it a run that is new validates); what the process held at most by then and at the end, all and without files.

`domain` trains SmolLM2-135M on the text of one set of `--data` (LUTHIER_DATA), by LoRA, and tells the perplexity of the
held-out documents before and after with the interval of the difference, and what became of everything else that was
measured: the forgetting table.

`--quick`: 300,000 tokens, and a tiny model in the place of SmolLM2, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from luthier import lifecycle
from luthier.conversation import Message, make_conversation
from luthier.encode import Encoder
from luthier.machine import describe
from luthier.models import find_base, load_tokenizer
from luthier.records import Comparison, EvalReport
from luthier.tiny import write_tiny_model

WINDOW, HELD_OUT = 512, 50
SETTINGS = {"epochs": 1, "examples_per_step": 8, "tokens_per_micro_batch": 4096, "learning_rate": 1e-3}
RULES = [{"metric": "perplexity", "must": "beat_baseline"}, {"metric": "general_perplexity", "must": "not_regress"}]

CHILD = """
import json, os, signal, sys, time
began = time.monotonic()
from pathlib import Path
from luthier import lifecycle, store
import luthier.train as train, luthier.train.loop as loop
from luthier.interrupts import Interrupted, install

seen, checking = {}, 0.0
def held():
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return [int(status[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")]

def checked(run, record, real=lifecycle.damaged):
    global checking
    at = time.monotonic()
    try:
        return real(run, record)
    finally:
        checking += time.monotonic() - at

def step(self, progress, interrupted, real=loop._Steps.__call__):
    if "step" not in seen:
        seen.update(step=time.monotonic() - began, first=progress.step, anon=0)
    if progress.step == seen["first"] + int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGINT)
    after = real(self, progress, interrupted)
    if after:
        seen.update(at_end=held(), last=after.step, of=self.plan.n_steps)
        seen["anon"] = max(seen["anon"], seen["at_end"][1])
    return after

def fit(*given, real=train.fit):
    seen.update(start=time.monotonic() - began, processor=time.process_time(), checking=checking, at_start=held())
    return real(*given)

lifecycle.damaged, loop._Steps.__call__, train.fit = checked, step, fit
install()
try:
    lifecycle.run(Path(sys.argv[1]), workspace=Path(sys.argv[2]), until="train")
except Interrupted:
    pass
print(json.dumps(seen))
"""


def documents(n: int, seed: int) -> Iterator[str]:
    """Of made-up words, the commonest of which are met as often as in a language."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeiounrtsldkm", k=rng.randint(2, 9))) for _ in range(20_000)]
    ranked = [1 / (k + 3) for k in range(len(words))]
    total, cumulated = 0.0, []
    for weight in ranked:
        cumulated.append(total := total + weight)
    for _ in range(n):
        yield " ".join(rng.choices(words, cum_weights=cumulated, k=rng.randint(40, 1200)))


def corpus(folder: Path, n_tokens: int, encoder: Encoder) -> int:
    """Write about so many tokens of documents; how many of these."""
    sample = [make_conversation([Message(role="text", content=text)], "") for text in documents(64, 1)]
    each = sum(len(e.ids) for e in encoder.all(sample)) / len(sample)
    n = max(round(n_tokens / each), 4 * HELD_OUT)
    with (folder / "documents.jsonl").open("w") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in documents(n, 0))
    return n


def write_recipe(folder: Path, **tree: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"name": "pretrain", "release": {"rules": RULES}} | tree))  # JSON is YAML
    return path


def long(sizes: list[int], n_steps: int, scratch: Path) -> Iterator[str]:
    tiny = write_tiny_model(scratch / "tiny")
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))
    heads = (
        "tokens, run, start (processor) s, checking s, first step s, by then MB, at most MB, without files MB, steps"
    )
    yield f"| {heads.replace(', ', ' | ')} |"
    yield f"|{'---|' * 9}"
    for n_tokens in sizes:
        folder = scratch / str(n_tokens)
        folder.mkdir()
        n = corpus(folder, n_tokens, encoder)
        held_out = {"valid_fraction": HELD_OUT / n, "test_fraction": HELD_OUT / n}
        data = {"sources": [{"path": "documents.jsonl"}], "max_tokens": WINDOW, "documents": "joined"}
        model = {"base": str(tiny), "adapt": {"method": "full"}}
        recipe = write_recipe(folder, data=data | {"split": held_out}, model=model, train=SETTINGS)
        began = time.monotonic()
        prepared = lifecycle.run(recipe, workspace=folder / "runs", until="prepare").folder / "prepare"
        seconds = time.monotonic() - began
        found = json.loads((prepared / "audit.json").read_bytes())["tokens"]["n_tokens"]
        yield f"| {found:,.0f} in {n:,} documents | prepare | {seconds:.1f} for all | | | | | | |"
        for name in ("first", "resumed"):
            seen = in_a_process(recipe, folder / "runs", n_steps)
            held = [f"{b / 1e6:,.0f}" for b in (seen["at_start"][0], seen["at_end"][0], seen["anon"])]
            steps = f"{seen['first'] + 1:,} to {seen['last']:,} of {seen['of']:,}"
            times = " | ".join(f"{seen[of]:.1f}" for of in ("checking", "step"))
            start = f"{seen['start']:.1f} ({seen['processor']:.1f})"
            yield f"| | {name} | {start} | {times} | {' | '.join(held)} | {steps} |"


def in_a_process(recipe: Path, workspace: Path, n_steps: int) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, str(recipe), str(workspace), str(n_steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def domain(which: str, data: Path, epochs: int, base: str, scratch: Path) -> Iterator[str]:
    name, column = which.split(":")
    sources = [{"path": str(path)} for path in sorted((data / name).glob("*.jsonl")) if "_" not in path.stem]
    tree = {
        "data": {"sources": sources, "format": "text", "fields": {"text": column}, "max_tokens": WINDOW},
        "model": {"base": base},
        "train": {"epochs": epochs},
    }
    tree["data"]["split"] = {"valid_fraction": 0.1, "test_fraction": 0.2}
    began = time.monotonic()
    run = lifecycle.run(write_recipe(scratch, **tree), workspace=scratch / "runs", until="evaluate")
    report = EvalReport.read(run.folder / "evaluate" / "evaluation.json")
    yield f"{name}, column {column}, {base}: {time.monotonic() - began:.0f} s; {report.n} held-out documents\n"
    yield "| measured | n | base | tuned | better by | 95 % interval |"
    yield f"|{'---|' * 6}"
    yield from (line(metric, c) for metric, c in report.metrics.items())


def line(name: str, c: Comparison) -> str:
    return f"| {name} | {c.n} | {c.baseline:.4g} | {c.value:.4g} | {c.delta:.4g} | {c.low:.4g} to {c.high:.4g} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", default="long,domain")
    parser.add_argument("--tokens", default="10000000,100000000")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--set", default="legal_summarization:text")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=os.environ.get("LUTHIER_DATA"))
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    print(", ".join(f"{k}: {v}" for k, v in describe().items() if "version" not in k), "\n", flush=True)
    with TemporaryDirectory() as made:
        scratch, base = Path(made), "smollm2-135m-instruct"
        sizes, n_steps = [int(size) for size in arguments.tokens.split(",")], arguments.steps
        if arguments.quick:
            sizes, n_steps, base = [300_000], 5, str(write_tiny_model(scratch / "base"))
        if "long" in parts:
            for text in long(sizes, n_steps, scratch):
                print(text, flush=True)
        if "domain" in parts and arguments.data:
            print()
            for text in domain(arguments.set, arguments.data, arguments.epochs, base, scratch):
                print(text, flush=True)


if __name__ == "__main__":
    main()
