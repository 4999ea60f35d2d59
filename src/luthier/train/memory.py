"""Memory that is enough: layers computed again where it would not be, and what to do when it runs out all the same.

What a step keeps for its backward pass is measured at load on a few tokens, layer by layer, and multiplied by the
tokens of the largest micro-batch. Gradients do not depend on what is computed again nor on how a step is cut, so
nothing of this changes what is learned. This module knows nothing of losses or techniques.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from luthier.batch import make_batch
from luthier.decoder import LOGITS_CHUNK, Decoder, probe_rows
from luthier.errors import Stopped, first_line
from luthier.machine import available_bytes, give_back_freed_memory
from luthier.recompute import kept_bytes
from luthier.train.data import StepData

T = TypeVar("T")

USED_SHARE = 0.8
"""Of the memory that is free at load, what a step is planned to take: the allocator needs some between its blocks."""
MOMENTS = 2
"""AdamW keeps two numbers for each weight that learns."""


def recompute(decoder: Decoder, wanted: int | Literal["auto"], n_tokens: int) -> None:
    """Let layers be computed again: so many, or as many as a batch of `n_tokens` needs in the memory that is free."""
    if wanted == "auto":
        wanted = _as_needed(decoder, n_tokens)
    if decoder.recomputable:
        decoder.recompute = min(wanted, len(decoder.layers()[1]))


def _as_needed(decoder: Decoder, n_tokens: int) -> int:
    free = available_bytes(decoder.device)
    if free is None or not decoder.recomputable:
        return 0
    n_layers = len(decoder.layers()[1])
    whole, least = (_kept_a_token(decoder, n) * n_tokens for n in (0, n_layers))
    a_layer = (whole - least) / n_layers  # what one layer keeps beside its input
    room = USED_SHARE * free - _beside(decoder, n_tokens) - least
    if room >= whole - least:
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


def _beside(decoder: Decoder, n_tokens: int) -> int:
    """Gradients, moments, merged weights, and logits with their gradient."""
    learned = sum(p.nbytes for p in decoder.model.parameters() if p.requires_grad)
    merged = sum(p.nbytes for p in decoder.layers()[1].parameters()) if decoder.fused else 0
    vocabulary = int(decoder.body.config.get_text_config().vocab_size)
    logits = 3 * min(n_tokens, LOGITS_CHUNK) * vocabulary * torch.float32.itemsize
    return (1 + MOMENTS) * learned + merged + logits


class Relief:
    """What gives way when memory runs out: first every layer is computed again, then micro-batches become smaller.

    Nothing, unless `again`: a step that has updated half of its layers cannot be taken again.
    """

    def __init__(self, decoder: Decoder, data: StepData, say: Callable[[str], None], again: bool = True) -> None:
        self._decoder, self._data, self._say, self._again = decoder, data, say, again
        self._n = 0

    @property
    def said(self) -> str:
        """How often memory ran out, to be added to the path in words."""
        return f"; memory ran out {self._n} times, and each time something gave way" if self._n else ""

    def __call__(self, work: Callable[[], T]) -> T:
        """The result of `work`, which must change nothing before it has one; tried again where memory runs out.

        Raises Stopped LU-S003 where a single example is too much, or nothing may be tried again.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                found = first_line(error)
                if not self._again:
                    advice = "set train.recompute_layers, or lower examples_per_step; or leave out update_in_backward"
                    raise Stopped.of("LU-S003", "memory", f"ran out in a step that updates: {found}", advice) from None
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
