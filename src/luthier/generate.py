"""Generation for many prompts at once, greedy or drawn; what several begin with is computed, kept and read once.

    n rows of a batch, L tokens of a row after left padding

Models that share run their prompts as one packed tree and then a token a row, with `cache.py` as their attention;
others run padded rows with transformers' cache, recurrent ones one by one. This module knows nothing of text: ids in,
ids out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from luthier.attention import TreePlan
from luthier.batch import make_batch, split_by_tokens
from luthier.cache import RowCache
from luthier.decoder import LOGITS_CHUNK, Decoder
from luthier.encode import Encoded
from luthier.progress import Advance

TOKENS_AT_ONCE = 16_384
"""Tokens whose keys and values are kept at a time, with those to be written: 46 KB each in the built-in model."""
ROWS_AT_ONCE = 32
"""Rows that are padded together in models that share nothing."""


Choose = Callable[[Tensor, Sequence[int], int], Tensor]
"""Logits (n, V), the prompts' numbers (n) and how many tokens each has already -> the next tokens (n,)."""


def greedy(logits: Tensor, prompts: Sequence[int], step: int) -> Tensor:
    """The likeliest token of each row."""
    return logits.argmax(-1)


def drawn(temperature: float, seed: int) -> Choose:
    """Tokens drawn from softmax(logits / temperature), by the Gumbel-max trick (Gumbel 1954).

    The noise is a function of (seed, prompt, step) alone: the same in any batch, and the same for two models, whose
    answers to one prompt then differ by what the models are and less by luck.
    """

    def choose(logits: Tensor, prompts: Sequence[int], step: int) -> Tensor:
        noise = torch.stack([_exponential(logits.shape[-1], seed, prompt, step) for prompt in prompts])
        return (logits / temperature - noise.log().to(logits.device)).argmax(-1)

    return choose


def _exponential(n: int, seed: int, prompt: int, step: int) -> Tensor:
    key = hashlib.sha256(f"{seed} {prompt} {step}".encode()).digest()
    return torch.empty(n).exponential_(generator=torch.Generator().manual_seed(int.from_bytes(key[:7], "big")))


@torch.no_grad()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_ids: Collection[int],
    advance: Advance,
    choose: Choose = greedy,
) -> list[list[int]]:
    """A continuation of each prompt, without the end token, at most `max_new_tokens` long."""
    decoder.model.eval()
    if decoder.recurrent or (decoder.n_virtual and not decoder.shares):  # peft's prompts: one row, no position ids
        return [
            _alone(decoder, prompt, i, max_new_tokens, end_ids, advance, choose) for i, prompt in enumerate(prompts)
        ]
    answers: list[list[int]] = [[] for _ in prompts]
    write, groups = (_packed, _alike(prompts, max_new_tokens)) if decoder.shares else (_padded, _similar(prompts))
    for group in groups:
        chosen = _of_group(choose, group)
        written = write(decoder, [list(prompts[i]) for i in group], max_new_tokens, end_ids, advance, chosen)
        for i, answer in zip(group, written, strict=True):
            answers[i] = answer
    return answers


def _of_group(choose: Choose, group: Sequence[int]) -> Choose:
    """Within a group, rows go by their place in it."""
    return lambda logits, rows, step: choose(logits, [group[row] for row in rows], step)


def _alike(prompts: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    """Prompts that share most, as many as fit with `room` new tokens each."""
    examples = [_encoded(prompt, i) for i, prompt in enumerate(prompts)]
    return [[int(e.id) for e in group] for group in split_by_tokens(examples, TOKENS_AT_ONCE, room=room)]


def _similar(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[at : at + ROWS_AT_ONCE] for at in range(0, len(order), ROWS_AT_ONCE)]


def _encoded(prompt: Sequence[int], i: int) -> Encoded:
    return Encoded(list(prompt), [False] * len(prompt), str(i), "")


def _packed(
    decoder: Decoder,
    prompts: list[list[int]],
    max_new_tokens: int,
    end_ids: Collection[int],
    advance: Advance,
    choose: Choose,
) -> list[list[int]]:
    """The prompts as a tree, then one token of each row at a time; rows that end leave."""
    answers: list[list[int]] = [[] for _ in prompts]
    batch = make_batch([_encoded(p, i) for i, p in enumerate(prompts)]).to(decoder.device)
    rooted, dtype = batch.rooted(decoder.n_virtual), next(decoder.model.parameters()).dtype
    plan, cache = TreePlan.of(rooted), RowCache(rooted, max_new_tokens, dtype)

    def prefill(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        cache.fill(key, value)
        return plan.attend(query, key, value, scaling)

    with decoder.packed() as run:
        ends = torch.tensor([batch.leaf[i][1] - 1 for i in cache.members], device=decoder.device)
        states = run(rooted.ids, rooted.positions, prefill)[ends]
        positions = batch.positions[ends] + decoder.n_virtual
        for step in range(max_new_tokens):
            parts = [slice(at, at + LOGITS_CHUNK) for at in range(0, len(states), LOGITS_CHUNK)]
            chosen = torch.cat([choose(decoder.head(states[part]), cache.members[part], step) for part in parts])
            going = set()
            for row, (member, token) in enumerate(zip(cache.members, chosen.tolist(), strict=True)):
                if token not in end_ids:
                    answers[member].append(token)
                    going.add(row)
            if ended := len(chosen) - len(going):
                advance(ended)
                keep = torch.tensor(cache.keep(going), dtype=torch.int64, device=decoder.device)
                chosen, positions = chosen[keep], positions[keep]
            if not going or step + 1 == max_new_tokens:
                break
            positions = positions + 1
            states = run(chosen, positions, cache.attend)
    advance(len(cache.members))
    return answers


def _padded(
    decoder: Decoder,
    prompts: list[list[int]],
    max_new_tokens: int,
    end_ids: Collection[int],
    advance: Advance,
    choose: Choose,
) -> list[list[int]]:
    """Rows padded on the left, by the model's own forward pass and cache."""
    past = None
    ids, mask = _left_padded(prompts, decoder.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # which answer each row of the batch is writing
    for step in range(max_new_tokens):
        out = decoder.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past, chosen = out.past_key_values, choose(out.logits[:, -1].float(), alive, step)
        going = []
        for row, token in enumerate(chosen.tolist()):
            if token not in end_ids:
                answers[alive[row]].append(token)
                going.append(row)
        if not going:
            break
        if len(going) < len(alive):  # finished rows leave the batch
            keep = torch.tensor(going, device=decoder.device)
            past.batch_select_indices(keep)
            mask, positions, chosen = mask[keep], positions[keep], chosen[keep]
            alive = [alive[row] for row in going]
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
    advance(len(prompts))
    return answers


def _alone(
    decoder: Decoder,
    prompt: Sequence[int],
    number: int,
    max_new_tokens: int,
    end_ids: Collection[int],
    advance: Advance,
    choose: Choose,
) -> list[int]:
    """By transformers' own loop, which knows what recurrent models carry on, and peft what stands before the text."""

    def only_the_chosen(ids: Tensor, logits: Tensor) -> Tensor:
        chosen = choose(logits.float(), [number], ids.shape[1] - len(prompt))
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    ids = torch.tensor([list(prompt)], device=decoder.device)
    out = decoder.model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        logits_processor=[only_the_chosen],
        do_sample=False,
        eos_token_id=sorted(end_ids),
        pad_token_id=0,
    )
    advance(1)
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer[:-1] if answer and answer[-1] in end_ids else answer


def _left_padded(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (n, L)."""
    length = max(map(len, prompts))
    ids, mask = (torch.zeros(len(prompts), length, dtype=torch.int64) for _ in range(2))
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
