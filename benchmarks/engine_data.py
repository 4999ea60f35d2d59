"""The conversations on which `engine.py` measures, made by seeded generators from our own text; and their work.

`chats` are customers' questions under one system prompt; `skewed` are texts of very different lengths without a system
message (SmolLM2's template then writes one of its own). Both are rendered and masked by `luthier.encode`, so lengths
are those of the given tokenizer. `as_rows` and what follows it give them TRL's form; `useful_flops` counts what a step
on them must compute, `products_rate` times matrix products of its shapes. Nothing here trains.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapt import trainable
from luthier.batch import Batch, common_prefix
from luthier.conversation import Message, make_conversation
from luthier.decoder import Decoder
from luthier.encode import Encoded, Encoder

Examples = list[Encoded]
Make = Callable[[Encoder, int, int], Examples]
"""Of an encoder, a number of examples and a seed."""

POLICY = (
    "You are the assistant of Northlight Energy, which supplies homes and small shops with electricity and gas. "
    "Answer in a friendly and exact way, in four sentences at most, and only from what is written here. Meter "
    "readings are due on the first day of each quarter and can be sent by the app, by telephone or by post. A "
    "reading that is missing is estimated from last year's use and corrected with the next bill. Bills are paid by "
    "direct debit on the tenth; who pays late is reminded once without a fee and then charged three euros. A "
    "contract runs for twelve months and ends with one month's notice; customers who move keep their price at the "
    "new address if they tell us two weeks before. The green tariff costs one cent more for each kilowatt hour and "
    "comes from wind farms on the coast. When the supply fails, name the local grid operator's line, which is open "
    "day and night. Anybody who smells gas must open the windows, touch no switch, leave the house and call the "
    "emergency number. Never ask for a password or for a full bank account number, never promise a refund, and hand "
    "over to a colleague when a customer is angry or in danger."
)
POLICY_TOKENS = 220
TOPICS = (
    (
        "I moved to {place} {when} and my old contract still runs for {n} months. Can I take my price with me?",
        "Welcome to {place}! Yes, you keep your price at the new address as long as you tell us two weeks before "
        "the move. Please send me the date, the new address and the number of the new meter, and I will change the "
        "contract for the remaining {n} months. You will get a letter that confirms it, and nothing else changes "
        "for you.",
    ),
    (
        "My bill for {place} is {n}0 euros higher than last year although I used the heating less. How can that be?",
        "I understand that this is a surprise. Your reading was missing this time, so the use was estimated from "
        "last year's figure, when the winter in {place} was cold. Please send us a photo of the meter by the app or "
        "by post, and we will correct the difference of {n}0 euros with your next bill.",
    ),
    (
        "What would the green tariff cost me if I use about {n}00 kilowatt hours, and where does the power come from?",
        "The green tariff costs one cent more for each kilowatt hour, so {n}00 kilowatt hours come to {n} euros "
        "more. The electricity is made by wind farms on the coast. You can change {when} in the app under your "
        "contract, it takes a few days, and you may go back to the old tariff at the end of any quarter.",
    ),
    (
        "The lights in our shop in {place} went out {when} and the neighbours have no power either. What should I "
        "do now?",
        "I am sorry to hear that. When the neighbours are without power too, the fault is in the grid of {place} "
        "and not in your house. Please call the local grid operator, whose line is open day and night; they can say "
        "how long the repair will take. Switch off ovens and irons until the supply is back.",
    ),
    (
        "I could not pay the bill {when} because I was in hospital for {n} days. Will there be a fee?",
        "I hope that you are well again. We send one reminder without a fee, so nothing is charged if you pay "
        "within the next {n} days. If this is too soon, tell me a date that suits you and I will note it. The "
        "direct debit on the tenth of next month runs as usual and you need not change anything.",
    ),
)
PLACES = "Aalborg Brest Chester Delft Erfurt Faro Galway Huelva Jena Kotka Lugo Malmo".split()
TIMES = ("last week", "on Monday", "yesterday evening", "on the third of May", "this morning", "at the end of March")
OPENINGS = ("", "Hello, ", "Good morning. ", "Hi there! ", "One question: ")
CLOSINGS = ("", " Can I help you with anything else?", " Please keep this message until the next bill has come.")


def chats(encoder: Encoder, n: int, seed: int, policy_tokens: int = POLICY_TOKENS) -> Examples:
    """Questions and answers under the first `policy_tokens` tokens of a policy; with 0 each has a number of its own."""
    rng, policy = random.Random(seed), _policy(encoder, policy_tokens)
    found = []
    for i in range(n):
        asked, answered = rng.choice(TOPICS)
        slots = {"place": rng.choice(PLACES), "when": rng.choice(TIMES), "n": rng.randint(2, 28)}
        found.append(
            _encoded(
                encoder,
                i,
                system=policy or str(rng.randint(10**6, 10**7)),
                user=rng.choice(OPENINGS) + asked.format(**slots),
                assistant=answered.format(**slots) + rng.choice(CLOSINGS),
            )
        )
    return found


def skewed(encoder: Encoder, n: int, seed: int) -> Examples:
    """Words without sense: log-normal lengths, of 6 to 100 tokens in the prompt and 18 to 198 in the answer."""
    rng, words = random.Random(seed), _words(encoder)

    def text(low: int, high: int, mean: float, sigma: float) -> str:
        return " ".join(rng.choices(words, k=min(max(int(rng.lognormvariate(mean, sigma)), low), high)))

    return [_encoded(encoder, i, user=text(6, 100, 3.0, 0.8), assistant=text(18, 198, 4.0, 0.75)) for i in range(n)]


SETS: dict[str, Make] = {"A": chats, "B": skewed}


def chats_sharing(policy_tokens: int) -> Make:
    return partial(chats, policy_tokens=policy_tokens)


def in_common(examples: Examples) -> int:
    """Tokens with which all examples begin."""
    return min(common_prefix(examples[0].ids, e.ids) for e in examples)


def _encoded(encoder: Encoder, i: int, **texts: str) -> Encoded:
    return encoder(make_conversation([Message(role=role, content=text) for role, text in texts.items()], f"row {i}"))


def _policy(encoder: Encoder, n_tokens: int) -> str:
    """As many words of the policy, over and over, as have at most `n_tokens` tokens."""
    words = (POLICY.split() * (1 + n_tokens // len(POLICY.split())))[:n_tokens]
    while len(encoder.tokenizer(" ".join(words))["input_ids"]) > n_tokens:
        words.pop()
    return " ".join(words)


def _words(encoder: Encoder) -> list[str]:
    """The general probe's words that are one token after a space, so that words count as tokens."""
    rows = files("luthier").joinpath("probe", "general.jsonl").read_text(encoding="utf-8").splitlines()
    words = sorted({word for row in rows for word in json.loads(row)["text"].split() if word.isalpha()})
    ids = encoder.tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    return [word for word, tokens in zip(words, ids, strict=True) if len(tokens) == 1]


# -- as TRL takes them ----------------------------------------------------------------------------------

TRL_TOKENS_AT_ONCE = 3200
PACKED_TOKENS = 1024


def as_rows(examples: Examples) -> list[dict[str, Any]]:
    """As TRL prepares its data: token ids, and labels of -100 where nothing is learned."""
    return [
        {"input_ids": e.ids, "labels": [i if learn else -100 for i, learn in zip(e.ids, e.learn, strict=True)]}
        for e in examples
    ]


def pack(examples: Examples) -> list[dict[str, Any]]:
    from datasets import Dataset
    from trl import pack_dataset

    assert max(len(e.ids) for e in examples) <= PACKED_TOKENS  # TRL would cut it
    return list(pack_dataset(Dataset.from_list(as_rows(examples)), PACKED_TOKENS, "bfd"))


def rows_at_once(rows: list[dict[str, Any]]) -> int:
    """The largest power of two that is within TRL_TOKENS_AT_ONCE when padded."""
    longest, size = max(len(row["input_ids"]) for row in rows), 1
    while 2 * size * longest <= TRL_TOKENS_AT_ONCE:
        size *= 2
    return size


def n_learned(batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """As `Trainer` counts them for its loss."""
    return torch.stack([batch["labels"][..., 1:].ne(-100).sum() for batch in batches]).sum()


# -- their work -----------------------------------------------------------------------------------------


def projections(decoder: Decoder) -> dict[str, Tensor]:
    """The matrices (out, in) of the body's layers, without adapters."""
    modules = decoder.body.named_modules()
    return {name: m.weight.detach() for name, m in modules if isinstance(m, nn.Linear) and "lora_" not in name}


def head_weight(decoder: Decoder) -> Any:
    return decoder.model.get_output_embeddings().weight.detach()


def useful_flops(decoder: Decoder, trees: Sequence[Batch], method: str) -> int:
    """By the formulas of `engine.py`."""
    config, weights = decoder.body.config, projections(decoder)
    n, m = sum(b.ids.numel() for b in trees), sum(b.predict_at.numel() for b in trees)
    p = sum(w.numel() for w in weights.values())
    attention = 12 * visible_pairs(trees) * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    if method == "full":
        return attention + 6 * n * p + 6 * m * head_weight(decoder).numel()
    blind = sum(w.numel() for name, w in weights.items() if re.search(r"layers\.0\.self_attn\.[qkv]_proj", name))
    adapters = sum(p.numel() for p in trainable(decoder.model).values())
    return attention + 4 * n * p - 2 * n * blind + 4 * n * adapters + 4 * m * head_weight(decoder).numel()


def visible_pairs(trees: Sequence[Batch]) -> int:
    """Each token sees its ancestors, those before it in its segment, and itself."""
    return sum(
        n * sum(tree.segments[a].stop - tree.segments[a].start for a in tree.ancestors(i)) + n * (n + 1) // 2
        for tree in trees
        for i, n in enumerate(s.stop - s.start for s in tree.segments)
    )


@torch.no_grad()
def products_rate(decoder: Decoder, trees: Sequence[Batch], method: str) -> float:
    """Flops a second of each projection and of the head with as many rows as a step has: X W', Y W, and full: Y' X."""
    torch.use_deterministic_algorithms(False)  # it would fill what is about to be overwritten
    seconds, flops = 0.0, 0
    for tree in trees:
        jobs = [(w, tree.ids.numel()) for w in projections(decoder).values()]
        jobs.append((head_weight(decoder), tree.predict_at.numel()))
        xs = {(n, w.shape[1]): torch.empty(n, w.shape[1]) for w, n in jobs}
        ys = {(n, w.shape[0]): torch.empty(n, w.shape[0]) for w, n in jobs}
        gradients = {w.shape: torch.empty(w.shape) for w, _ in jobs}
        for w, n in jobs:
            x, y = xs[n, w.shape[1]].fill_(1.0), ys[n, w.shape[0]]
            started = time.perf_counter()
            torch.mm(x, w.t(), out=y)
            torch.mm(y, w, out=x)
            if method == "full":
                torch.mm(y.t(), x, out=gradients[w.shape])
            seconds += time.perf_counter() - started
            flops += (6 if method == "full" else 4) * n * w.numel()
    return flops / seconds
