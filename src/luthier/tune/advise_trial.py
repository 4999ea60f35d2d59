"""A real trial step in a process of its own: what a training really holds, and how fast this machine is.

The parent writes a question, this module's command answers it in JSON; so the peak is the training's alone, and where
memory does not suffice, the system ends the child and not who asked. Seconds are processor seconds by thread: other
work on the machine does not count, and a quiet machine's clock would show about the same. On a GPU they are the
clock's, until its work is done, and the peak is what torch has reserved there.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from luthier.adapt import adapt, trainable
from luthier.batch import Batch, make_batch
from luthier.cost import Rates, measure_rates, seconds_of
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.errors import LuthierError, Problem, RunError
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
    """Of the whole process; on a GPU what it held there."""
    seconds: float
    """Of a step, as `cost.seconds_of` tells them: the median, without the first."""
    path: str
    """Which forward path ran."""
    shares: bool
    """Whether that is the packed one."""
    rates: Rates


def gradient(decoder: Decoder, batch: Batch) -> object:
    """Adds a micro-batch's gradient as the training loop does."""
    return backward(decoder, [CrossEntropy()], batch, {"token": max(batch.n_targets, 1), "sequence": len(batch.names)})


def stepper(decoder: Decoder, batches: Sequence[Batch]) -> Callable[[], float]:
    """A function that makes one step at a learning rate of 0, and says how many seconds it took."""
    optimizer = make_optimizer(trainable(decoder.model), Train(learning_rate=1e-30))
    parameters = list(trainable(decoder.model).values())

    def step() -> None:
        with decoder.entered():
            for batch in batches:
                gradient(decoder, batch)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    decoder.model.train()
    return lambda: seconds_of(step, decoder.device)


def trial_step(
    base: Base,
    how: Adapt,
    batches: Sequence[Sequence[Encoded]],
    scratch: Path,
    precision: Precision = "auto",
    recompute: int = 0,
) -> Measured:
    """Take steps on these micro-batches in a fresh process, with so many layers computed again.

    Raises RunError with what the process says of it, or LU-U041 where it ended without an answer: mostly, the system
    had no memory for it.
    """
    examples = [[(e.ids, e.learn) for e in batch] for batch in batches]
    asked = {"base": asdict(base) | {"folder": str(base.folder)}, "adapt": how.model_dump(mode="json")}
    scratch.mkdir(parents=True, exist_ok=True)
    question = scratch / "trial-step.json"
    given = {"precision": precision, "batches": examples, "threads": torch.get_num_threads(), "recompute": recompute}
    question.write_text(json.dumps(asked | given))
    done = subprocess.run([sys.executable, "-m", __name__, str(question)], capture_output=True, text=True)
    question.unlink()
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        advice = "lower train.tokens_per_micro_batch or data.max_tokens, or take a smaller base"
        raise RunError.of("LU-U041", "trial step", f"one step on the largest micro-batch failed: {said}", advice)
    found = json.loads(lines[-1])
    if "problems" in found:
        raise RunError(*(Problem(**problem) for problem in found["problems"]))
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
    decoder.recompute = asked["recompute"]
    batches = [
        make_batch([Encoded(ids, learn, str(i), "") for i, (ids, learn) in enumerate(batch)])
        for batch in asked["batches"]
    ]
    with keeping_freed_memory():
        step = stepper(decoder, [b.to(decoder.device) for b in batches])
        seconds = sorted([step() for _ in range(STEPS)][1:])
    peak = most_held(decoder.device)
    return Measured(peak, seconds[len(seconds) // 2], decoder.path, decoder.shares, _rates(decoder))


def _rates(decoder: Decoder) -> Rates:
    """Of the model's own shapes, types and device."""
    config = decoder.body.config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = kv_heads, config.num_attention_heads // kv_heads, size
    like = next(decoder.body.parameters())
    products = decoder.fused.dtype if decoder.fused else like.dtype
    return measure_rates(config.hidden_size, 4 * config.hidden_size, heads, like, products)


def most_held(device: torch.device) -> int:
    """Bytes: of a GPU what torch has reserved there at most, else what this process has held."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else held("VmHWM")


def held(key: str) -> int:
    """Bytes resident now (VmRSS) or at most (VmHWM), where Linux says it: `ru_maxrss` begins with the parent's."""
    status = Path("/proc/self/status")
    found = re.search(rf"{key}:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else peak_bytes() or 0


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(_answer(Path(sys.argv[1])))))
    except LuthierError as error:
        print(json.dumps({"problems": [asdict(problem) for problem in error.problems]}))
