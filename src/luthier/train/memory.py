"""Memory that is enough: layers computed again where it would not be, and what to do when it runs out all the same.

What a step keeps for its backward pass is measured at load on a few tokens, layer by layer, and multiplied by the
tokens of the largest micro-batch. Gradients do not depend on what is computed again nor on how a step is cut, so
nothing of this changes what is learned. This module knows nothing of losses or techniques.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

from luthier.batch import make_batch
from luthier.decoder import LOGITS_CHUNK, Decoder, probe_rows
from luthier.errors import Stopped, first_line
from luthier.machine import available_bytes, give_back_freed_memory
from luthier.recompute import kept_bytes
from luthier.settings import Train
from luthier.train.data import StepData
from luthier.train.optim import MOMENT_BYTES

T = TypeVar("T")

USED_SHARE = 0.8
"""Of the memory that is free at load, what a step is planned to take: the allocator needs some between its blocks."""


def recompute(decoder: Decoder, settings: Train, n_tokens: int, device: torch.device) -> str:
    """Let layers be computed again: so many, or as many as a batch of `n_tokens` needs in what is free on `device`.

    Returns what is to be said where layers are asked for that cannot be computed again.
    """
    wanted = settings.recompute_layers
    if not decoder.recomputable:
        return f"; {wanted} layers cannot be computed again" if wanted not in ("auto", 0) else ""
    compute_again(decoder, _as_needed(decoder, settings, n_tokens, device) if wanted == "auto" else wanted)
    return ""


def compute_again(decoder: Decoder, n: int) -> None:
    """The last `n` layers, where any can be."""
    if decoder.recomputable:
        decoder.recompute = min(n, len(decoder.layers()[1]))


def _as_needed(decoder: Decoder, settings: Train, n_tokens: int, device: torch.device) -> int:
    free = available_bytes(device)
    if free and device.type == "cpu":  # which the processes of this machine share
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if free is None:
        return 0
    n_layers = len(decoder.layers()[1])
    whole, least = (_kept_a_token(decoder, n) * n_tokens for n in (0, n_layers))
    a_layer = (whole - least) / n_layers  # what one layer keeps beside its input
    room = USED_SHARE * free - _beside(decoder, settings, n_tokens) - least
    if room >= whole - least or a_layer <= 0:
        return 0
    n_kept = int((room - a_layer) // a_layer)  # while a layer is computed again, all of it is there
    return n_layers - max(n_kept, 0)


def _kept_a_token(decoder: Decoder, n_recomputed: int) -> float:
    """Bytes for the backward pass."""
    batch = make_batch(probe_rows(decoder), share=decoder.shares).to(decoder.device)
    before, decoder.recompute = decoder.recompute, n_recomputed
    try:
        return kept_bytes(lambda: decoder.hidden(batch), decoder.model.parameters()) / batch.ids.numel()
    finally:
        decoder.recompute = before


def _beside(decoder: Decoder, settings: Train, n_tokens: int) -> int:
    """Gradients, moments, merged weights, and logits with their gradient."""
    n_learned = sum(p.numel() for p in decoder.model.parameters() if p.requires_grad)
    gradients = 0 if settings.update_in_backward else torch.float32.itemsize  # a layer's at most
    merged = sum(p.nbytes for p in decoder.layers()[1].parameters()) if decoder.fused else 0
    vocabulary = int(decoder.body.config.get_text_config().vocab_size)
    logits = 3 * min(n_tokens, LOGITS_CHUNK) * vocabulary * torch.float32.itemsize
    return (gradients + MOMENT_BYTES[settings.optimizer]) * n_learned + merged + logits


class Relief:
    """What gives way when memory runs out, in this order.

    Every layer is computed again; micro-batches become smaller; frozen layers are not kept any more (`trunk.py`
    computes them for as many examples at once as were asked for at load).
    """

    def __init__(self, decoder: Decoder, data: StepData, say: Callable[[str], None]) -> None:
        self._decoder, self._data, self._say = decoder, data, say
        self._at_load = data.tokens_per_micro_batch
        self._n = 0

    @property
    def said(self) -> str:
        """How often memory ran out, to be added to the path in words."""
        return f"; memory ran out {self._n} times, and each time something gave way" if self._n else ""

    def __call__(self, work: Callable[[], T], again: bool = True) -> T:
        """The result of `work`, tried `again` in less memory where that runs out.

        Only what changes nothing before it has a result may be tried again. Raises Stopped LU-S003 where a single
        example is too much, or nothing may be tried.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                found = first_line(error)
                if not again:
                    advice = "train.recompute_layers, train.optimizer: adamw_8bit, adapters, or fewer examples_per_step"
                    raise Stopped.of("LU-S003", "memory", f"ran out while weights change: {found}", advice) from None
            # Only here, behind the `except`, is what the failed attempt held free again.
            give_back_freed_memory()
            if self._decoder.device.type == "cuda":
                torch.cuda.empty_cache()
            self._give_way(found)

    def _give_way(self, found: str) -> None:
        self._n += 1
        decoder, data = self._decoder, self._data
        n_layers = len(decoder.layers()[1]) if decoder.recomputable else 0
        if decoder.recompute < n_layers:
            decoder.recompute = n_layers
            self._say(f"memory ran out: all {n_layers} layers are computed again in the backward pass from now on")
            return
        if data.tokens_per_micro_batch <= data.shortest and decoder.shortcut is not None:
            decoder.shortcut, data.tokens_per_micro_batch = None, self._at_load
            self._say(f"memory ran out: all layers run in every step, {self._at_load} tokens at once, from now on")
            return
        if data.tokens_per_micro_batch <= data.shortest:
            raise Stopped.of(
                "LU-S003",
                "memory",
                f"ran out with a single example in a micro-batch: {found}",
                "a shorter data.max_tokens, a smaller or quantised model.base, or fewer trained weights",
            )
        data.tokens_per_micro_batch //= 2
        self._say(f"memory ran out: micro-batches of {data.tokens_per_micro_batch} tokens from now on")


def ran_out(error: BaseException) -> bool:
    """Whether memory is what was missing: torch says so by a class of its own on GPUs alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error)
    return any(sign in words for sign in _SIGNS)


_SIGNS = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "could not create a primitive")
"""The last one is oneDNN's, in which torch multiplies bfloat16: no room for the code that it compiles."""
