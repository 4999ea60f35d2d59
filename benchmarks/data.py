"""Preparing many conversations: Luthier against datasets, TRL and datasketch on the same file.

    LUTHIER_DATA=/path/to/data python benchmarks/data.py [--rows 200000] [--only luthier] [--workspace folder]

The file holds chats of one or two turns, cut from the shared sets with every fourth word drawn anew, so that rows
differ; a tenth are copies with one word changed. Luthier reads, audits, drops near-duplicates (whole conversations at
Jaccard 0.8 of word shingles), splits without leaks, and encodes with the chat template and its mask. The peers load
the file (`datasets`), tokenise it as `SFTTrainer` does when it is made (with the assistant's mask, on two processes),
and look every conversation up in and add it to a MinHash LSH (datasketch, 128 permutations, threshold 0.8); nobody
splits, audits or verifies there. Each runs in a process of its own; memory is what the process holds at most, and by
how much that grows from a file of a tenth of the rows. Luthier uses all processors, as it does by itself; its memory is
that of the largest of its processes. `--only luthier,luthier_alone,luthier_on_ray` compares that with one process, and
with Ray on all processors of this machine, where memory is the driver's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SETS = ("bitext_intents", "personality_chat", "dstc9_faq", "dolly_sample", "self_instruct", "gsm8k")
COPIES = 0.1
SYSTEM = "You are a helpful assistant of a shop."
SIMILARITY = 0.8
TEMPLATE = """{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}\
{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}\
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"""
"""SmolLM2's, with the marks that TRL needs for its mask."""


def write_rows(path: Path, n: int, data: Path) -> None:
    draw = random.Random(0)
    pool = []
    for name in SETS:
        for line in (data / name / "train.jsonl").read_text(encoding="utf-8").splitlines():
            pool.append(" ".join(v for v in json.loads(line).values() if isinstance(v, str)).split())
    words = sorted({word for text in pool for word in text})
    recent: list[list[dict[str, str]]] = []

    def text(length: int) -> str:
        found: list[str] = []
        while len(found) < length:
            found += draw.choice(pool)[: length - len(found)]
        found[::4] = [draw.choice(words) for _ in found[::4]]
        return " ".join(found)

    with path.open("w", encoding="utf-8") as out:
        for _ in range(n):
            if recent and draw.random() < COPIES:
                chat = [dict(turn) for turn in draw.choice(recent)]
                last = chat[-1]["content"].split()
                last[draw.randrange(len(last))] = "another"
                chat[-1]["content"] = " ".join(last)
            else:
                chat = [{"role": "system", "content": SYSTEM}]
                for _ in range(draw.choice((1, 1, 2))):
                    chat.append({"role": "user", "content": text(draw.randrange(8, 40))})
                    chat.append({"role": "assistant", "content": text(draw.randrange(20, 90))})
                recent.append(chat)
                del recent[:-5000]
            out.write(json.dumps({"messages": chat}) + "\n")


def luthier(path: Path, **where: object) -> dict[str, object]:
    from luthier.encode import Encoder
    from luthier.models import find_base, load_tokenizer
    from luthier.prepare import prepare
    from luthier.recipe import validate

    data = {"sources": [{"path": path.name}], "clean": [{"use": "dedupe", "similarity": SIMILARITY}]}
    rules = [{"metric": "token_f1", "must": "beat_baseline"}]
    tree = {"name": "big", "data": data, "prepare": where, "release": {"rules": rules}}
    recipe = validate(tree, "recipe.yaml", path.parent)
    encoder = Encoder(load_tokenizer(find_base("smollm2-135m-instruct")))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        report = prepare(recipe, path.parent, Path(out), encoder)
    seconds = {"all": time.perf_counter() - started}
    dropped = next(step.dropped for step in report.steps if step.name == "dedupe")
    return {"seconds": seconds, "dropped": sum(dropped.values())}


def luthier_alone(path: Path) -> dict[str, object]:
    return luthier(path, processes=1)


def luthier_on_ray(path: Path) -> dict[str, object]:
    return luthier(path, engine="ray")


def peers(path: Path) -> dict[str, object]:
    import datasets
    from datasketch import MinHash, MinHashLSH
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from luthier.models import find_base, load_tokenizer
    from luthier.similar import shingles

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(find_base("smollm2-135m-instruct"))
    tokenizer.chat_template = TEMPLATE
    tiny = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model, seconds = LlamaForCausalLM(tiny), {}
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        started = time.perf_counter()
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=out)
        seconds["load"] = time.perf_counter() - started
        started = time.perf_counter()
        config = SFTConfig(out, assistant_only_loss=True, dataset_num_proc=2, use_cpu=True, max_length=None)
        SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
        seconds["tokenise"] = time.perf_counter() - started
        started = time.perf_counter()
        index, dropped = MinHashLSH(threshold=SIMILARITY, num_perm=128), 0
        for i, row in enumerate(rows):
            text = "\n".join(m["content"] for m in row["messages"] if m["role"] != "system")
            found = MinHash(num_perm=128)
            found.update_batch([shingle.encode() for shingle in shingles(text)])
            if index.query(found):
                dropped += 1
            else:
                index.insert(str(i), found)
        seconds["near-duplicates"] = time.perf_counter() - started
    seconds["all"] = sum(seconds.values())
    return {"seconds": seconds, "dropped": dropped}


WAYS = {f.__name__: f for f in (luthier, luthier_alone, luthier_on_ray, peers)}


def measured(way: str, path: Path) -> dict[str, object]:
    """In a process of its own; with the most memory that it and its children ever held, each, in bytes."""
    given = [sys.executable, __file__, "--child", way, "--file", str(path)]
    done = subprocess.run(given, check=True, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rows: int, ways: list[str], workspace: Path, data: Path) -> Iterator[str]:
    small, large = workspace / f"{rows // 10}.jsonl", workspace / f"{rows}.jsonl"
    for path, n in ((small, rows // 10), (large, rows)):
        if not path.is_file():
            write_rows(path, n, data)
    yield f"{rows:,} conversations, {large.stat().st_size / 1e6:.0f} MB\n"
    yield "| | s | of which | rows dropped | peak MiB | bytes a row that it grows by |"
    yield "|---|---|---|---|---|---|"
    for way in ways:
        little, much = measured(way, small), measured(way, large)
        seconds = much["seconds"]
        assert isinstance(seconds, dict)
        parts = ", ".join(f"{name} {s:.0f}" for name, s in seconds.items() if name != "all")
        peak, before = int(str(much["peak"])), int(str(little["peak"]))
        grows = (peak - before) / (rows - rows // 10)
        yield f"| {way} | {seconds['all']:.0f} | {parts} | {much['dropped']} | {peak >> 20} | {grows:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--only", type=lambda text: text.split(","), default=["luthier", "peers"])
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "luthier-data-benchmark")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        found = WAYS[arguments.child](arguments.file)
        kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(json.dumps(found | {"peak": kib << 10}))
        return
    arguments.workspace.mkdir(parents=True, exist_ok=True)
    folder = Path(os.environ.get("LUTHIER_DATA", Path(__file__).parents[2] / "shared" / "data"))
    for line in table(arguments.rows, arguments.only, arguments.workspace, folder):
        print(line, flush=True)


if __name__ == "__main__":
    main()
