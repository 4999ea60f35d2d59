"""A real trial step in a process of its own: what a training really holds, and how fast this machine is.

The parent writes a question, this module's command answers it in JSON; so the peak is the training's alone, and where
memory does not suffice, the system ends the child and not who asked. Seconds are processor seconds by thread: other
work on the machine does not count, and a quiet machine's clock would show about the same. On a GPU neither holds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from luthier.adapt import adapt, trainable
from luthier.batch import Batch, make_batch
from luthier.cost import Rates, measure_rates
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.errors import RunError
from luthier.machine import keeping_freed_memory, peak_bytes
from luthier.models import Base, held_in, load_model, multiplied_in
from luthier.settings import Adapt, Precision, Train
from luthier.train import repeatable
from luthier.train.loop import backward
from luthier.train.optim import make_optimizer
from luthier.train.terms import CrossEntropy

STEPS = 3


@dataclass(frozen=True, slots=True)
class Measured:
    peak_bytes: int
    """Of the whole process."""
    seconds: float
    """Processor seconds by thread of a step: the median, without the first."""
    path: str
    """Which forward path ran."""
    rates: Rates
    threads: int


def gradient(decoder: Decoder, batch: Batch) -> object:
    """Adds a micro-batch's gradient as the training loop does."""
    return backward(decoder, [CrossEntropy()], batch, {"token": max(batch.n_targets, 1), "sequence": len(batch.names)})


def stepper(decoder: Decoder, batches: Sequence[Batch]) -> Callable[[], float]:
    """A function that makes one step at a learning rate of 0, and says its processor seconds by thread."""
    optimizer = make_optimizer(trainable(decoder.model), Train(learning_rate=1e-30))
    parameters = list(trainable(decoder.model).values())

    def step() -> float:
        decoder.model.train()
        started = time.process_time()
        with decoder.entered():
            for batch in batches:
                gradient(decoder, batch)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return (time.process_time() - started) / torch.get_num_threads()

    return step


def trial_step(
    base: Base, how: Adapt, batches: Sequence[Sequence[Encoded]], scratch: Path, precision: Precision = "auto"
) -> Measured:
    """Take steps on these micro-batches in a fresh process.

    Raises RunError LU-U041 where the process ended without an answer: mostly, the system had no memory for it.
    """
    examples = [[(e.ids, e.learn) for e in batch] for batch in batches]
    asked = {"base": asdict(base) | {"folder": str(base.folder)}, "adapt": how.model_dump(mode="json")}
    scratch.mkdir(parents=True, exist_ok=True)
    question = scratch / "trial-step.json"
    given = {"precision": precision, "batches": examples, "threads": torch.get_num_threads()}
    question.write_text(json.dumps(asked | given))
    done = subprocess.run([sys.executable, "-m", __name__, str(question)], capture_output=True, text=True)
    question.unlink()
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        advice = "lower train.tokens_per_micro_batch or data.max_tokens, or take a smaller base"
        raise RunError.of("LU-U041", "trial step", f"one step on the largest micro-batch failed: {said}", advice)
    found = json.loads(lines[-1])
    return Measured(**found | {"rates": Rates(**found["rates"])})


def _answer(question: Path) -> Measured:
    from pydantic import TypeAdapter

    asked = json.loads(question.read_text())
    torch.set_num_threads(asked["threads"])
    repeatable()
    base = Base(**asked["base"] | {"folder": Path(asked["base"]["folder"])})
    how: Adapt = TypeAdapter(Adapt).validate_python(asked["adapt"])
    model = load_model(base, dtype=held_in(asked["precision"]))
    decoder = Decoder(adapt(model, how, base, 0), multiplied_in(asked["precision"]))
    batches = [
        make_batch([Encoded(ids, learn, str(i), "") for i, (ids, learn) in enumerate(batch)])
        for batch in asked["batches"]
    ]
    with keeping_freed_memory():
        step = stepper(decoder, [b.to(decoder.device) for b in batches])
        seconds = sorted([step() for _ in range(STEPS)][1:])
    peak = held("VmHWM")
    config = decoder.body.config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rates = measure_rates(
        config.hidden_size, 4 * config.hidden_size, (kv_heads, config.num_attention_heads // kv_heads, size)
    )
    return Measured(peak, seconds[len(seconds) // 2], decoder.path, rates, torch.get_num_threads())


def held(key: str) -> int:
    """Bytes resident now (VmRSS) or at most (VmHWM), where Linux says it: `ru_maxrss` begins with the parent's."""
    status = Path("/proc/self/status")
    found = re.search(rf"{key}:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else peak_bytes() or 0


if __name__ == "__main__":
    print(json.dumps(asdict(_answer(Path(sys.argv[1])))))
