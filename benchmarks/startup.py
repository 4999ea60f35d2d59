"""What a run does besides training: how long until its first step, and how fast conversations become tokens.

    python benchmarks/startup.py [--parts start,tokens] [--rounds 3] [--against OTHER/src] [--until validation]
                                 [--data FOLDER]

`start` runs the starter in processes of their own as `luthier run` does, up to the first optimizer step, with the base
dequantised before: `fresh` has everything to do, `again` finds its prepared data, and trains. The cache is empty but
for the base and the compiled kernels. `--until validation` ends where the model begins to compute. Seconds, of the
clock and of processor time in all threads, which other work on the machine disturbs less, are medians of the rounds.
`--against` takes turns with another checkout.

`tokens` encodes 20,000 labelled questions of customers (banking77, bitext_intents) and 1,700 whole dialogues
(sgd_dialogues) of `--data` (LUTHIER_DATA), with masks. All ways take turns in one process, without the first round:

    one      a call for each conversation
    many     Encoder.all: the template is rendered beside the tokenizer
    kept     every row from the file that prepare leaves beside a side; written is what it takes to write that
    trl      SFTTrainer's own preparation, dataset_num_proc=2, less that of eight rows: prompt and completion for the
             questions; for the dialogues the text alone, as TRL has no mask of all answers for this template

Ratios are medians of the rounds' own, `one` or `trl` over the way, with their range; processor time is that of all
threads and processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as `luthier` sets it; `datasets` has processes instead

from luthier.conversation import Conversation, Message, line_of, make_conversation
from luthier.encode import Encoded, Encoder
from luthier.encoded import packed, read_side, write_side
from luthier.files import cache_folder
from luthier.machine import describe, skip_in_collections
from luthier.models import find_base, load_model, load_tokenizer, quiet_transformers
from luthier.starter import write_starter
from luthier.tiny import write_tiny_model

BASE = "smollm2-135m-instruct"
N_QUESTIONS = 20_000
Seconds = tuple[float, float]
"""Of the clock, and of processors."""

CHILD = """
import json, os, sys, time
spans = []

def timed(name, work):
    def running(*given, **settings):
        began = time.time(), time.process_time()
        made = work(*given, **settings)
        spans.append((name, time.time() - began[0], time.process_time() - began[1]))
        return made
    return running

def wrap(module, name, shown):
    setattr(module, name, timed(shown, getattr(module, name)))

def imports():
    import luthier.models
    import transformers.models.llama.modeling_llama

def begin(**settings):
    timed("import torch, transformers", imports)()
    import luthier.evaluate
    import luthier.lifecycle as lifecycle, luthier.models as models, luthier.train as train, luthier.trunk as trunk
    import luthier.train.loop as loop
    wrap(models, "find_base", "find the base, verify its files")
    lifecycle._STAGES["prepare"] = timed("prepare", lifecycle._STAGES["prepare"])
    wrap(lifecycle, "_foresee", "foresee whether the rules can be judged")
    wrap(train, "load_tokenizer", "load the tokenizer")
    wrap(train, "load_model", "load the model")
    wrap(train, "adapt", "adapt it")
    wrap(train, "Decoder", "check its forward paths")
    wrap(train, "read_data", "read and encode both sides")
    wrap(trunk, "_way", "check the frozen trunk")
    wrap(loop, "nll_sums", "validation before the first step")
    step = timed("first step", loop._Steps.__call__)

    def ends(valid=None):
        whole = time.time() - float(os.environ["BEGAN"]), time.process_time()
        print(json.dumps({"whole": whole, "spans": spans, "valid": valid}), flush=True)
        os._exit(0)

    def last(steps, *given):
        step(steps, *given)
        data = steps.data
        ends([sum(b.ids.numel() for b in data.valid()), sum(len(e.ids) for e in data.validation)])

    loop._Steps.__call__ = last
    if os.environ["UNTIL"] == "validation":
        loop.nll_sums = lambda *given: ends()
    return app(**settings)

import luthier.cli as cli
app, cli.app = cli.app, begin
sys.argv = ["luthier", "run", sys.argv[1], "--workspace", sys.argv[2], "--quiet"]
cli.main()
"""


def first_step(source: Path, recipe: Path, workspace: Path, cache: Path, until: str) -> dict[str, Any]:
    """Seconds of a run's parts up to its first step or validation, and validation's tokens: computed, given."""
    environment = {"PYTHONPATH": str(source), "LUTHIER_CACHE": str(cache), "BEGAN": str(time.time()), "UNTIL": until}
    command = [sys.executable, "-c", CHILD, str(recipe), str(workspace)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if not done.stdout.strip():
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def start(sources: dict[str, Path], n_rounds: int, until: str, scratch: Path) -> Iterator[str]:
    """The lines of the table of what comes before the first step."""
    find_base(BASE)
    write_starter(scratch / "starter")
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for k in range(n_rounds):
        for name, source in (list(sources.items()), list(sources.items())[::-1])[k % 2]:
            cache, workspace = scratch / f"cache {name} {k}", scratch / f"runs {name} {k}"
            cache.mkdir()
            for kept in ("models", "kernels"):
                (cache / kept).symlink_to(cache_folder() / kept)
            for which in ("fresh", "again"):
                found = first_step(source, scratch / "starter" / "recipe.yaml", workspace, cache, until)
                measured.setdefault((which, name), []).append(found)
                [train] = workspace.glob("*/train")
                train.rename(workspace / f"trained {which}")  # or it would go on from its first checkpoint
    if valid := measured["fresh", "now"][0]["valid"]:
        yield f"validation: {valid[1]:,} tokens given, {valid[0]:,} computed\n"
    columns = list(measured)
    yield f"| clock (processor) s | {' | '.join(', '.join(c) if len(sources) > 1 else c[0] for c in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for part in dict.fromkeys(span[0] for runs in measured.values() for run in runs for span in run["spans"]):
        yield row(part, [[spent(run, part) for run in measured[c]] for c in columns])
    yield row("all else", [[all_else(run) for run in measured[c]] for c in columns])
    title = "**first step taken**" if until == "step" else "**ready**"
    yield row(title, [[run["whole"] for run in measured[c]] for c in columns])


def spent(run: dict[str, Any], part: str | None = None) -> Seconds:
    """Of a part, or of all parts."""
    spans = [span[1:] for span in run["spans"] if part in (span[0], None)]
    return sum(clock for clock, _ in spans), sum(processor for _, processor in spans)


def all_else(run: dict[str, Any]) -> Seconds:
    return less(run["whole"], spent(run))


def row(title: str, cells: Sequence[Sequence[Seconds]]) -> str:
    medians = [tuple(median(one) for one in zip(*cell, strict=True)) for cell in cells]
    return f"| {title} | {' | '.join(f'{clock:.2f} ({processor:.2f})' for clock, processor in medians)} |"


# -- tokens ----------------------------------------------------------------------------------------------


def questions(folder: Path) -> list[Conversation]:
    rows = [r for name in ("banking77", "bitext_intents") for r in rows_of(folder / name)]
    texts = [(r["text"], r["intent"]) for r in rows][:N_QUESTIONS]
    turns = [[Message(role="user", content=text), Message(role="assistant", content=label)] for text, label in texts]
    return [make_conversation(messages, f"rows:{i}") for i, messages in enumerate(turns)]


def dialogues(folder: Path) -> list[Conversation]:
    rows = rows_of(folder / "sgd_dialogues")
    turns = [[Message(role=m["role"], content=m["content"]) for m in r["messages"]] for r in rows]
    return [make_conversation(messages, f"rows:{i}") for i, messages in enumerate(turns)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open(encoding="utf-8")]


def trl_rows(conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    chats = [[{"role": m.role, "content": m.content} for m in c.messages] for c in conversations]
    if all(len(chat) == 2 for chat in chats):
        return [{"prompt": chat[:1], "completion": chat[1:]} for chat in chats]
    return [{"messages": chat} for chat in chats]


def trl_prepares(rows: list[dict[str, Any]], model: Any, tokenizer: Any, scratch: Path) -> None:
    """Make a trainer, which is when it tokenises."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    given = datasets.Dataset.from_list(rows)
    settings = SFTConfig(
        output_dir=str(scratch / "trl"),
        dataset_num_proc=2,
        max_length=None,
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    with quiet_transformers():
        SFTTrainer(model=model, processing_class=tokenizer, train_dataset=given, args=settings)


def seconds_of(work: Callable[..., object], *given: Any) -> Seconds:
    began = os.times()
    work(*given)
    ended = os.times()
    return ended.elapsed - began.elapsed, sum(ended[:4]) - sum(began[:4])


def less(seconds: Seconds, other: Seconds) -> Seconds:
    return seconds[0] - other[0], seconds[1] - other[1]


def tokens(folder: Path, n_rounds: int, scratch: Path) -> Iterator[str]:
    """The lines of the table of tokenising."""
    os.environ["LUTHIER_CACHE"], real = str(scratch / "cache"), cache_folder()
    (scratch / "cache").mkdir()
    (scratch / "cache" / "models").symlink_to(real / "models")
    tokenizer = load_tokenizer(find_base(BASE))
    encoder = Encoder(tokenizer)
    model = load_model(find_base(str(write_tiny_model(scratch / "tiny", vocabulary=49152))))
    skip_in_collections()
    yield "| conversations | tokens | way | clock (processor) s | one over it | trl over it | trl over it, processor |"
    yield f"|{'---|' * 7}"
    for name, conversations in (("questions", questions(folder)), ("dialogues", dialogues(folder))):
        rows, rounds = trl_rows(conversations), []
        expected = encoder.all(conversations)
        assert expected == one_by_one(encoder, conversations)
        for _ in range(n_rounds + 1):
            found = {"one": seconds_of(one_by_one, encoder, conversations)}
            found["many"] = seconds_of(encoder.all, conversations)
            found["written"] = seconds_of(written, encoder, conversations, expected, scratch)
            found["kept"] = seconds_of(kept, encoder, scratch)
            of_eight = seconds_of(trl_prepares, rows[:8], model, tokenizer, scratch)
            found["trl"] = less(seconds_of(trl_prepares, rows, model, tokenizer, scratch), of_eight)
            rounds.append(found)
        assert kept(encoder, scratch) == expected
        count = f"{len(conversations):,} {name} | {sum(len(e.ids) for e in expected):,}"
        for way in rounds[0]:
            clock, processor = (median(r[way][kind] for r in rounds[1:]) for kind in (0, 1))
            against = [
                "" if way == "written" else ratio(rounds, *which, way) for which in ((0, "one"), (0, "trl"), (1, "trl"))
            ]
            yield f"| {count} | {way} | {clock:.2f} ({processor:.2f}) | {' | '.join(against)} |"


def written(encoder: Encoder, conversations: Sequence[Conversation], encoded: Sequence[Encoded], scratch: Path) -> None:
    tokens = (packed(one.ids, one.learn) for one in encoded)
    write_side(scratch, "train", zip(map(line_of, conversations), tokens, strict=True), encoder)


def kept(encoder: Encoder, scratch: Path) -> object:
    return list(read_side(scratch, "train", encoder))


def one_by_one(encoder: Encoder, conversations: Sequence[Conversation]) -> object:
    return [encoder(conversation) for conversation in conversations]


def ratio(rounds: Sequence[dict[str, Seconds]], kind: int, of: str, to: str) -> str:
    ratios = [r[of][kind] / r[to][kind] for r in rounds[1:]]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", default="start,tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--until", choices=("step", "validation"), default="step")
    parser.add_argument("--data", type=Path, default=os.environ.get("LUTHIER_DATA"))
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    print(", ".join(f"{k}: {v}" for k, v in describe().items() if "version" not in k), "\n", flush=True)
    ours = {"now": Path(__file__).resolve().parents[1] / "src"}
    with TemporaryDirectory() as scratch:
        if "start" in parts:
            sources = ({"before": arguments.against.resolve()} if arguments.against else {}) | ours
            for text in start(sources, arguments.rounds, arguments.until, Path(scratch)):
                print(text, flush=True)
        if "tokens" in parts and arguments.data:
            for text in tokens(arguments.data, arguments.rounds, Path(scratch)):
                print(text, flush=True)


if __name__ == "__main__":
    main()
