"""Speed of answers and of multiple choice: Luthier against transformers and lm-evaluation-harness.

    LUTHIER_DATA=/path/to/data python benchmarks/evaluate.py [--prompts 48] [--questions 100] [--rounds 3] [--threads 2]

Both sides run one loaded SmolLM2-135M-Instruct in one process, in turns, and their answers are compared. Answers:
greedy, 32 new tokens, against `generate` in batches of similar length, padded on the left, at three batch sizes.
Multiple choice: ARC-Easy, log-likelihood of each choice after its question, against lm-eval at three batch sizes;
its samples are compared one by one. Ratios are medians over the rounds, the peer's time over ours: of wall time, and
of processor time, which other work on the machine disturbs less (with one thread; idle threads spin).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import torch
from transformers.utils.logging import disable_progress_bar

from luthier.batch import make_batch, split_by_tokens
from luthier.conversation import Message
from luthier.decoder import Decoder, score
from luthier.encode import Encoded, Encoder
from luthier.generate import generate
from luthier.models import find_base, load_model, load_tokenizer

NEW_TOKENS = 32
TOKENS_AT_ONCE = 2048
SYSTEM = (
    "You are the assistant of an online bank. Answer the customer in one short and friendly sentence, never ask for a "
    "card number, and where you do not know the answer say so and name the telephone line."
)
QUESTIONS = (
    "What is this text about?",
    "Which people are named in the text?",
    "Which places are named in the text?",
    "When did it happen?",
    "Give the text a title.",
    "What is the first event that it tells of?",
    "Write one question that the text answers.",
    "Sum it up in one sentence.",
)
Prompts = list[list[int]]


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def situations(folder: Path, encoder: Encoder, n: int) -> Iterator[tuple[str, Prompts]]:
    """n prompts of each kind."""
    system = Message(role="system", content=SYSTEM)
    texts = [row["text"] for row in rows(folder, "banking77/test.jsonl")]
    chats = texts[:: len(texts) // n][:n]
    yield "chats, one system text", [encoder.prompt([system, Message(role="user", content=t)]) for t in chats]
    documents = [" ".join(row["text"].split()[:250]) for row in rows(folder, "probe_wikitext2/validation.jsonl")]
    asked = [f"{d}\n\n{q}" for d in documents[: -(-n // len(QUESTIONS))] for q in QUESTIONS]
    yield "questions on documents", [encoder.prompt([Message(role="user", content=t)]) for t in asked[:n]]
    tasks = rows(folder, "dolly_sample/train.jsonl")
    mixed = [t for t in (f"{row['context']}\n{row['instruction']}".strip() for row in tasks) if len(t.split()) <= 300]
    yield "mixed lengths", [encoder.prompt([Message(role="user", content=t)]) for t in mixed[:n]]


def padded(model: Any, prompts: Prompts, end_id: int, batch_size: int) -> Prompts:
    """What transformers writes: batches of similar length, padded on the left."""
    answers: Prompts = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        length = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[0] * (length - len(prompts[i])) + prompts[i] for i in batch])
        mask = torch.tensor([[0] * (length - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
        settings = {"do_sample": False, "eos_token_id": end_id, "pad_token_id": end_id}
        written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, **settings)
        for i, row in zip(batch, written[:, length:].tolist(), strict=True):
            answers[i] = row[: row.index(end_id)] if end_id in row else row
    return answers


def choices(decoder: Decoder, tokenizer: Any, questions: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """The log-likelihood of each question's choices. Questions are trees: what is asked stands once."""
    examples = []
    for q, question in enumerate(questions):
        asked = tokenizer(f"{question['prompt']}\nAnswer:")["input_ids"]
        for c, choice in enumerate(question["choices"]):
            ids = tokenizer(f"{question['prompt']}\nAnswer: {choice}")["input_ids"]
            learn = [False] * len(asked) + [True] * (len(ids) - len(asked))
            examples.append(Encoded(ids, learn, f"{q} {c}", ""))
    found: dict[str, float] = {}
    for group in split_by_tokens(examples, TOKENS_AT_ONCE, share=decoder.shares):
        nats = score(decoder, make_batch(group, share=decoder.shares))
        found.update((e.id, -nat) for e, nat in zip(group, nats.tolist(), strict=True))
    return [[found[f"{q} {c}"] for c in range(len(x["choices"]))] for q, x in enumerate(questions)]


def graded(questions: Sequence[Mapping[str, Any]], values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """acc and acc_norm of each question, as lm-eval defines them."""

    def right(question: Mapping[str, Any], found: Sequence[float]) -> float:
        return float(max(range(len(found)), key=found.__getitem__) == question["label"])

    lengths = [[len(choice) for choice in q["choices"]] for q in questions]
    normed = [[x / n for x, n in zip(v, length, strict=True)] for v, length in zip(values, lengths, strict=True)]
    return {
        "acc": [right(q, v) for q, v in zip(questions, values, strict=True)],
        "acc_norm": [right(q, v) for q, v in zip(questions, normed, strict=True)],
    }


class Harness:
    """lm-eval on a model that is already loaded, with the questions as a task of its own in `folder`."""

    def __init__(self, model: Any, tokenizer: Any, questions: Sequence[Mapping[str, Any]], folder: Path) -> None:
        from lm_eval.tasks import TaskManager

        self._model, self._tokenizer = model, tokenizer
        (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8")
        task = {
            "task": "luthier_choices",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / "questions.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        (folder / "luthier_choices.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
        self._tasks = TaskManager(include_path=str(folder), include_defaults=False)

    def __call__(self, batch_size: int) -> tuple[list[list[float]], dict[str, list[float]]]:
        """Log-likelihoods of the choices, and acc and acc_norm of each question."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=self._model, tokenizer=self._tokenizer, batch_size=batch_size)
        settings = {"log_samples": True, "bootstrap_iters": 0, "verbosity": "ERROR"}
        out = simple_evaluate(model=model, tasks=["luthier_choices"], task_manager=self._tasks, **settings)
        samples = sorted(out["samples"]["luthier_choices"], key=lambda sample: sample["doc_id"])
        values = [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
        return values, {name: [float(sample[name]) for sample in samples] for name in ("acc", "acc_norm")}


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, Any], dict[str, list[list[float]]]]:
    """What each way found, and its (wall, processor) seconds in each round."""
    found: dict[str, Any] = {}
    seconds: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            found[name] = way()
            seconds[name].append([time.perf_counter() - wall, time.process_time() - processor])
    return found, seconds


def lines(title: str, seconds: Mapping[str, list[list[float]]], said: Mapping[str, str]) -> Iterator[str]:
    """A line for each peer: medians, and the median of the ratios within a round."""
    ours = seconds["ours"]
    for name, theirs in seconds.items():
        if name != "ours":
            cells = []
            for kind in (0, 1):
                a, b = ([x[kind] for x in side] for side in (ours, theirs))
                ratio = median(y / x for x, y in zip(a, b, strict=True))
                cells.append(f"{median(a):.1f} | {median(b):.1f} | {ratio:.2f}")
            yield f"| {title} | {name} | {' | '.join(cells)} | {said[name]} |"


def measure(folder: Path, n_prompts: int, n_questions: int, rounds: int) -> Iterator[str]:
    """The lines of the table."""
    base = find_base("smollm2-135m-instruct")
    model: Any = load_model(base, torch.device("cpu"), torch.float32)
    decoder, tokenizer = Decoder(model), load_tokenizer(base)
    end_id = tokenizer.eos_token_id
    yield "| what | peer | ours, wall s | peer | ratio | ours, processor s | peer | ratio | the same answers |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for title, prompts in situations(folder, Encoder(tokenizer), n_prompts):
        settings = {"max_new_tokens": NEW_TOKENS, "end_ids": {end_id}, "advance": lambda n=1: None}
        ways: dict[str, Callable[[], Any]] = {"ours": lambda p=prompts, s=settings: generate(decoder, p, **s)}
        for size in (8, 16, 32):
            ways[f"transformers, {size} rows"] = lambda p=prompts, n=size: padded(model, p, end_id, n)
        found, seconds = in_turns(ways, rounds)
        same = {k: sum(a == b for a, b in zip(found["ours"], v, strict=True)) for k, v in found.items()}
        yield from lines(title, seconds, {k: f"{n} of {len(prompts)}" for k, n in same.items()})
    questions = rows(folder, "probe_arc_easy/test.jsonl")[:n_questions]
    with TemporaryDirectory() as scratch:
        harness = Harness(model, tokenizer, questions, Path(scratch))
        ways = {"ours": lambda: choices(decoder, tokenizer, questions)}
        for size in (8, 16, 32):
            ways[f"lm-eval, batch size {size}"] = lambda n=size: harness(n)
        found, seconds = in_turns(ways, rounds)
    grades = graded(questions, found["ours"])
    said = {}
    for name, (values, theirs) in ((k, v) for k, v in found.items() if k != "ours"):
        gap = max(abs(x / y - 1) for a, b in zip(found["ours"], values, strict=True) for x, y in zip(a, b, strict=True))
        same = {k: sum(a == b for a, b in zip(grades[k], theirs[k], strict=True)) for k in grades}
        said[name] = f"acc {same['acc']}, acc_norm {same['acc_norm']} of {len(questions)}; nats within {gap:.0e}"
    yield from lines("multiple choice", seconds, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LUTHIER_DATA", default))
    for line in measure(folder, arguments.prompts, arguments.questions, arguments.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
