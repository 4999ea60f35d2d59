"""Greedy generation for many prompts at once; what they all begin with is computed once.

    n rows of a batch, P shared prefix tokens, L suffix tokens after left padding

This module knows nothing of text: ids in, ids out.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.batch import common_prefix
from luthier.decoder import Decoder
from luthier.progress import Advance

ROWS_AT_ONCE = 32


@torch.no_grad()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_ids: Collection[int],
    advance: Advance,
) -> list[list[int]]:
    """The most likely continuation of each prompt, without the end token, at most `max_new_tokens` long."""
    decoder.model.eval()
    if decoder.recurrent:
        return [_alone(decoder, prompt, max_new_tokens, end_ids, advance) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), list(prompts[i])))
    prefix = _shared(prompts) if decoder.shares else []
    cache = _prefill(decoder, prefix)
    answers: list[list[int]] = [[] for _ in prompts]
    for at in range(0, len(order), ROWS_AT_ONCE):
        rows = order[at : at + ROWS_AT_ONCE]
        suffixes = [list(prompts[i][len(prefix) :]) for i in rows]
        for i, answer in zip(
            rows, _decode(decoder, cache, len(prefix), suffixes, max_new_tokens, end_ids), strict=True
        ):
            answers[i] = answer
        advance(len(rows))
    return answers


def _shared(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all prompts begin with, leaving each at least one token of its own."""
    if not prompts:
        return []
    first, last = min(map(list, prompts)), max(map(list, prompts))
    return first[: min(common_prefix(first, last), min(map(len, prompts)) - 1)]


def _prefill(decoder: Decoder, prefix: list[int]) -> Any:
    """The key/value cache after the shared prefix, one row; None without one."""
    if not prefix:
        return None
    ids = torch.tensor([prefix], device=decoder.device)
    return decoder.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values


def _decode(
    decoder: Decoder,
    cache: Any,
    n_prefix: int,
    suffixes: list[list[int]],
    max_new_tokens: int,
    end_ids: Collection[int],
) -> list[list[int]]:
    n, device = len(suffixes), decoder.device
    past = copy.deepcopy(cache)
    if past is not None:
        past.batch_repeat_interleave(n)
    ids, mask = _left_padded(suffixes, n_prefix, device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, n_prefix:]
    answers: list[list[int]] = [[] for _ in suffixes]
    alive = list(range(n))  # which answer each row of the batch is writing
    for _ in range(max_new_tokens):
        out = decoder.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past, chosen = out.past_key_values, out.logits[:, -1].argmax(-1)
        going = []
        for row, token in enumerate(chosen.tolist()):
            if token not in end_ids:
                answers[alive[row]].append(token)
                going.append(row)
        if not going:
            break
        if len(going) < len(alive):  # finished rows leave the batch
            keep = torch.tensor(going, device=device)
            past.batch_select_indices(keep)
            mask, positions, chosen = mask[keep], positions[keep], chosen[keep]
            alive = [alive[row] for row in going]
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
    return answers


def _alone(
    decoder: Decoder, prompt: Sequence[int], max_new_tokens: int, end_ids: Collection[int], advance: Advance
) -> list[int]:
    """By transformers' own loop, which knows what recurrent models carry on."""
    ids = torch.tensor([list(prompt)], device=decoder.device)
    out = decoder.model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(end_ids),
        pad_token_id=0,
    )
    advance(1)
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer[:-1] if answer and answer[-1] in end_ids else answer


def _left_padded(suffixes: list[list[int]], n_prefix: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (n, L) and mask (n, P + L): the prefix and each row's own tokens are seen, padding is not."""
    length = max(map(len, suffixes))
    ids = torch.zeros(len(suffixes), length, dtype=torch.int64)
    mask = torch.zeros(len(suffixes), n_prefix + length, dtype=torch.int64)
    mask[:, :n_prefix] = 1
    for row, suffix in enumerate(suffixes):
        ids[row, length - len(suffix) :] = torch.tensor(suffix)
        mask[row, n_prefix + length - len(suffix) :] = 1
    return ids.to(device), mask.to(device)
