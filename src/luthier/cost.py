"""What a step of training takes: memory in parts, operations by kind, and from these seconds. Computed from shapes.

    K key/value heads with G query heads each, C size of a head

The model is made on torch's meta device, where tensors have shapes and no numbers, the technique is put onto it, and
one step runs there as it will run in earnest: a ledger sees every tensor come and go and every operation's work. So
nothing here is a list of architectures or techniques: what a technique really keeps, merges and computes is counted.
A second for the built-in model, and no weight is loaded.

What shapes cannot tell are constants with their measurement, and what a trial step corrects: the memory of process and
libraries, and the machine's speed. Compiled kernels and attention are not run on shapes; what they hold and move is
written down here. Says nothing of row-by-row models, which pad, and of accelerators' kernels.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from luthier.adapt import adapt, trainable
from luthier.attention import TreePlan, n_pairs
from luthier.batch import Batch, make_batch
from luthier.decoder import CANNOT_RUN, Decoder, probe_rows
from luthier.encode import Encoded
from luthier.errors import ModelError, first_line
from luthier.models import Base, held_in, multiplied_in, pick_device, pick_dtype, quiet_transformers
from luthier.settings import Adapt, Lora, Precision

META = torch.device("meta")
UPDATE_PASSES = 10
"""How often an update reads or writes each learned weight, its gradient or a moment: seven for AdamW, three to clip."""
HOLES = {True: 0.13, False: 0.46}
"""Of the bytes that live shortly in a forward pass, the share that leaves holes between what is kept (`True`: on fused
layers). While training the C library keeps freed memory, and aligned blocks do not fill a hole of just their size.
Measured with glibc 2.36 and the built-in model: 0.13 for LoRA on fused layers; on its own layers 0.46 for LoRA and IA3,
0.45 for bottleneck adapters."""
FUSED_TRAFFIC = 0.2
"""Of the bytes that torch's operations move for a norm, a gate or a rotation, the share that a compiled kernel moves:
each tensor once. By counting, in a layer of the built-in model: 26,000 numbers a token of about 130,000."""
TURNS = 7
"""Of each operation by which the machine's speed is told."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at a step's peak, by what they are for."""

    process: int = 0
    """Interpreter, libraries, data: what a trial step tells."""
    weights: int = 0
    """Of the base model, and what the technique adds."""
    merged: int = 0
    """Matrices side by side, with adapters in them, while fused layers are entered."""
    gradients: int = 0
    moments: int = 0
    kept: int = 0
    """For the backward pass."""
    work: int = 0
    """What else lives at the peak: logits, their gradient, rooms of attention."""
    holes: int = 0
    """Freed memory between what is kept."""

    @property
    def peak(self) -> int:
        return sum(int(getattr(self, f.name)) for f in fields(self))


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be computed and moved."""

    product_flops: int
    attention_flops: int
    moved_bytes: int
    """Read and written by what is no matrix product."""

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))


@dataclass(frozen=True, slots=True)
class StepCost:
    """A step of one technique on the micro-batches that it was run on."""

    memory: Memory
    work: Work
    """Of all micro-batches, without the update."""
    update: Work
    n_tokens: int
    n_trainable: int
    n_frozen: int
    """Layers, from the first, below everything that learns."""
    frozen_flops: int
    """Of these layers' forward pass over `n_tokens`."""
    forward_flops: int
    """Of a forward pass over `n_tokens` through all layers and the head."""
    fused: bool


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast the machine is, by a few operations of the model's own shapes."""

    product_flops: float
    attention_flops: float
    moved_bytes: float
    """All a second."""

    def seconds(self, work: Work) -> float:
        """Without what overlaps, waits and calls cost: a trial step corrects for these."""
        return float(sum(getattr(work, f.name) / getattr(self, f.name) for f in fields(Work)))


Step = Callable[[Decoder, Batch], object]
"""Adds a micro-batch's gradient: the training loop's own."""


# -- a step on shapes ------------------------------------------------------------------------------------


def on_shapes(base: Base, how: Adapt, precision: Precision = "auto") -> Decoder:
    """The base with the technique on it, without numbers.

    Raises ModelError as `adapt` does for what does not fit the model, LU-M022 for a model that runs row by row.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(how, Lora) and how.changes_base:  # its beginning asks for numbers; the shapes are the same
        how = how.model_copy(update={"init": "default"})
    with quiet_transformers(), META:
        config = AutoConfig.from_pretrained(base.folder)
        model = AutoModelForCausalLM.from_config(config, dtype=held_in(precision) or pick_dtype(pick_device()))
        with _Ledger():  # which answers what a model asks of numbers
            decoder = Decoder(adapt(model, how, base, seed=0), multiplied_in(precision))
        if trouble := _runs_row_by_row(decoder):
            raise ModelError.of("LU-M022", base.name, f"its steps cannot be foretold: {trouble}")
    return decoder


def _runs_row_by_row(decoder: Decoder) -> str | None:
    """Why, as far as shapes tell: where they do not, a trial step does."""
    if not decoder.shares:
        return f"it runs {decoder.path}"
    ledger = _Ledger()
    try:
        with torch.no_grad(), ledger:
            _Body(decoder, ledger)(make_batch(probe_rows(decoder)).to(META))
    except CANNOT_RUN as error:
        return f"it runs row by row: {first_line(error)}"
    return None


def step_cost(decoder: Decoder, batches: Sequence[Batch], step: Step, moment_bytes: int = 8) -> StepCost:
    """Run one step of a decoder that is `on_shapes`; the last of several micro-batches should be the largest.

    What the decoder recomputes, or hooks of its parameters free early, is so in the figures. `moment_bytes`: of a
    learned weight in the optimizer.
    """
    learned = trainable(decoder.model)
    ledger, tokens = _Ledger(), sum(b.ids.numel() for b in batches)
    ledger.disregard(decoder.model)
    body = _Body(decoder, ledger)
    decoder.shortcut = body
    decoder.model.train()
    with META, ledger, decoder.entered():
        for batch in batches:
            step(decoder, batch.to(META))
        after = ledger.now
    decoder.shortcut = None
    gradients = sum(p.grad.nbytes for p in learned.values() if p.grad is not None)
    merged = after - gradients
    before = gradients if len(batches) > 1 else 0  # of the micro-batches before the one at the peak
    kept = max(ledger.marked - merged - before, 0)
    # Gradients come as what was kept goes, but rarely fit where it lay: together they are what the process holds.
    at_peak = max(gradients, ledger.peak - merged - kept)
    n_trainable = sum(p.numel() for p in learned.values())
    fused = decoder.fused is not None
    for p in learned.values():
        p.grad = None
    return StepCost(
        memory=Memory(
            weights=_n_bytes(decoder.model),
            merged=merged,
            gradients=gradients,
            moments=moment_bytes * n_trainable,
            kept=kept,
            work=at_peak - gradients,
            holes=round(HOLES[fused] * body.short_lived),
        ),
        work=Work(ledger.flops, body.flops, round(ledger.moved * (FUSED_TRAFFIC if fused else 1.0))),
        update=Work(0, 0, 4 * UPDATE_PASSES * n_trainable),
        n_tokens=tokens,
        n_trainable=n_trainable,
        n_frozen=body.n_frozen,
        frozen_flops=2 * tokens * _n_in_layers(decoder, body.n_frozen),
        forward_flops=2 * tokens * _n_in_layers(decoder, None) + _head_flops(decoder, batches),
        fused=fused,
    )


class _Ledger(TorchDispatchMode):
    """Sees every operation: what lives, what was the most, what was computed and moved. Answers no to each question."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.made = self.marked = self.flops = self.moved = 0
        self._live: dict[int, int] = {}

    def disregard(self, model: nn.Module) -> None:
        """The model's own tensors, which are there in any case."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._live[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:  # a model that looks at numbers: are these rows packed?
            return False
        out = func(*args, **kwargs)
        fresh = [self._sees(t) for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.peak = max(self.peak, self.now)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        elif any(fresh) or func._schema.is_mutable:  # a view moves nothing
            self.moved += sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
        return out

    def _sees(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return False
        self._live[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.made += storage.nbytes()
        weakref.finalize(storage, self._gone, key)
        return True

    def _gone(self, key: int) -> None:
        self.now -= self._live.pop(key, 0)


class _Body:
    """Runs the body on shapes in place of `Decoder.tree_states`, and notes what stays of a forward pass."""

    def __init__(self, decoder: Decoder, ledger: _Ledger) -> None:
        self._decoder, self._ledger = decoder, ledger
        self.flops = self.short_lived = self.n_frozen = 0

    def __call__(self, batch: Batch) -> Tensor:
        ledger, rooted = self._ledger, batch.rooted(self._decoder.n_virtual)
        plan, learns = TreePlan.of(rooted), list[bool]()
        _, layers = self._decoder.layers()
        running = self._decoder.fused.of(list(layers)) if self._decoder.fused else layers

        def note(_: nn.Module, given: Any, out: Any) -> None:
            learns.append((out[0] if isinstance(out, tuple) else out).requires_grad)

        hooks = [layer.register_forward_hook(note) for layer in running]
        before, made = ledger.now, ledger.made
        with self._decoder.packed() as run:
            states = run(rooted.ids, rooted.positions, lambda q, k, v, s: self._attend(q, k, v, plan))
        for hook in hooks:
            hook.remove()
        ledger.marked = ledger.now
        self.short_lived = (ledger.made - made) - (ledger.now - before)
        self.n_frozen = [*learns[:-1], True].index(True)
        return states

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, plan: TreePlan) -> Tensor:
        """Two products of all pairs forward; backward their scores again, and four gradients' worth."""
        pairs = query.shape[0] * query.shape[2] * sum(n_pairs(tile) for tile in plan.tiles)
        self.flops += (14 if query.requires_grad else 4) * pairs * query.shape[3]
        return _Attention.apply(query, key, value, plan)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    """What `attention.py`'s compiled way holds; nothing is computed."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: TreePlan) -> Tensor:
        kv_heads, n, groups, _ = query.shape
        room = query.new_empty(kv_heads * groups * max(n_pairs(tile) for tile in plan.tiles))
        out, lse = torch.empty_like(query), query.new_empty(kv_heads, n, groups)
        attended = out.transpose(0, 1).contiguous()
        ctx.save_for_backward(query, key, value, attended, lse)
        ctx.plan = plan
        del room
        return attended.view(n, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, _, lse = ctx.saved_tensors
        most = query.shape[0] * query.shape[2] * max(b.n_pairs for tile in ctx.plan.tiles for b in tile)
        rooms = (query.new_empty(most), query.new_empty(most), torch.empty_like(query), torch.empty_like(lse))
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del rooms
        return *grads, None


def _n_bytes(model: nn.Module) -> int:
    return sum({t.untyped_storage()._cdata: t.nbytes for t in (*model.parameters(), *model.buffers())}.values())


def _n_in_layers(decoder: Decoder, stop: int | None) -> int:
    """Numbers in the matrices of the first layers; adapters that are merged take part in no product."""
    layers = decoder.layers()[1][:stop]
    named = (item for layer in layers for item in layer.named_parameters())
    return sum(p.numel() for name, p in named if p.ndim == 2 and not (decoder.fused and "lora_" in name))


def _head_flops(decoder: Decoder, batches: Sequence[Batch]) -> int:
    config = decoder.body.config.get_text_config()
    return 2 * int(config.vocab_size * config.hidden_size) * sum(b.predict_at.numel() for b in batches)


# -- the machine -----------------------------------------------------------------------------------------


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Processor seconds by thread, which other work does not lengthen; of a GPU, the clock's until it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - started
    started = time.process_time()
    work()
    return (time.process_time() - started) / torch.get_num_threads()


@torch.no_grad()
def measure_rates(
    width: int, inner: int, heads: tuple[int, int, int], like: Tensor, products: torch.dtype = torch.float32
) -> Rates:
    """In about a second: products of (1024, width) and (width, inner), attention of (K, G, C), sums.

    On the device and in the type of `like`, but for products. Each is the best of several turns, because other work on
    the machine can only slow it.
    """
    made: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    x, w = torch.randn(1024, width, **made).to(products), torch.randn(inner, width, **made).to(products)
    large = torch.randn(1 << 24, **made)
    kv_heads, groups, size = heads
    plan = TreePlan.of(make_batch([Encoded(list(range(512)), [True] * 512, "", "")]).to(like.device))
    query = torch.randn(kv_heads, 512, groups, size, **made)
    key, value = torch.randn(2, kv_heads, 512, size, **made).unbind()
    pairs = kv_heads * groups * sum(n_pairs(tile) for tile in plan.tiles)

    def best(work: Callable[[], object]) -> float:
        return min(seconds_of(work, like.device) for _ in range(TURNS))

    return Rates(
        product_flops=2 * x.numel() * inner / best(lambda: x @ w.T),
        attention_flops=4 * pairs * size / best(lambda: plan.attend(query, key, value, size**-0.5)),
        moved_bytes=3 * large.nbytes / best(lambda: torch.add(large, large)),
    )
