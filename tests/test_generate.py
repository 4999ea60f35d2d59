"""Greedy generation equals transformers' own, token for token, however prompts are put together."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import ARCHITECTURES, built

from luthier import cache
from luthier import generate as generation
from luthier.conversation import Message
from luthier.decoder import Decoder
from luthier.encode import Encoder
from luthier.generate import drawn, generate
from luthier.models import Base, find_base, load_model, load_tokenizer

NEVER = 10_000
"""An end token that no tiny model has."""


@pytest.fixture(scope="module")
def decoder(tiny: Path) -> Decoder:
    return Decoder(load_model(find_base(str(tiny)), torch.device("cpu"), torch.float32))


def prompts(n: int, seed: int, *, shared: int = 0, vocabulary: int = 500) -> list[list[int]]:
    """Ragged prompts, with a common beginning."""
    rng = random.Random(seed)
    start = rng.choices(range(3, vocabulary), k=shared)
    return [start + rng.choices(range(3, vocabulary), k=rng.randint(1, 25)) for _ in range(n)]


def own(decoder: Decoder, prompt: Sequence[int], n: int, end_ids: Collection[int]) -> list[int]:
    """What transformers' own greedy loop writes after one prompt."""
    ids = torch.tensor([list(prompt)])
    model: Any = decoder.model
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": sorted(end_ids)}
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, **settings)
    new: list[int] = out[0, len(prompt) :].tolist()
    return next((new[:i] for i, token in enumerate(new) if token in end_ids), new)


def ours(decoder: Decoder, given: Sequence[Sequence[int]], n: int, end_ids: Collection[int]) -> list[list[int]]:
    counted = 0

    def advance(done: int = 1, **_: object) -> None:
        nonlocal counted
        counted += done

    answers = generate(decoder, given, max_new_tokens=n, end_ids=end_ids, advance=advance)
    assert counted == len(given)
    return answers


@pytest.mark.parametrize("shared", [0, 1, 30])
@pytest.mark.parametrize("n", [1, 7])
def test_ragged_prompts_are_continued_as_by_transformers(decoder: Decoder, shared: int, n: int) -> None:
    given = prompts(n, seed=shared + n, shared=shared)
    assert ours(decoder, given, 20, {NEVER}) == [own(decoder, p, 20, {NEVER}) for p in given]


def test_more_prompts_than_are_kept_at_once(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    given = prompts(8, seed=3, shared=5)
    whole = ours(decoder, given, 10, {NEVER})
    monkeypatch.setattr(generation, "TOKENS_AT_ONCE", 60)
    assert len(generation._alike(given, 10)) > 2
    assert ours(decoder, given, 10, {NEVER}) == whole


def test_more_prompts_than_are_padded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(built("mistral, sliding", torch.float32))
    given = prompts(8, seed=3, shared=5, vocabulary=60)
    monkeypatch.setattr(generation, "ROWS_AT_ONCE", 3)
    assert ours(decoder, given, 10, {NEVER}) == [own(decoder, p, 10, {NEVER}) for p in given]


def documents(seed: int) -> list[list[int]]:
    """A system text, documents after it, questions to some of them (one is asked twice), and a prompt of its own."""
    rng = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return rng.choices(range(3, 60), k=rng.randint(least, most))

    system, made = tokens(10, 20), [tokens(1, 30)]
    for _ in range(4):
        document = system + tokens(9, 40)
        made += [document + tokens(1, 12) for _ in range(rng.randint(1, 5))]
    made += [made[1], made[2][:-1], system]
    rng.shuffle(made)
    return made


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "granite", "cohere"])
@pytest.mark.parametrize(("least_shared", "padding"), [(1, 0), (40, 5), (10_000, 100)])
def test_what_is_kept_once_changes_no_answer(
    architecture: str, least_shared: int, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared segments on several levels, blocks of rows, and rows that leave them one after the other."""
    monkeypatch.setattr(cache, "MIN_SHARED_TOKENS", least_shared)
    monkeypatch.setattr(cache, "MAX_PADDING", padding)
    decoder = Decoder(built(architecture, torch.float32))
    for seed in range(3):
        given = documents(seed)
        free = ours(decoder, given, 12, {NEVER})
        end_ids = {free[0][2], free[3][7]}
        assert ours(decoder, given, 12, end_ids) == [own(decoder, p, 12, end_ids) for p in given]


def test_rows_end_on_their_own() -> None:
    """Ends are chosen from what the model writes, so that rows leave the batch at different times."""
    decoder = Decoder(built("llama", torch.float32))
    given = prompts(8, seed=5, shared=4, vocabulary=60)
    free = ours(decoder, given, 16, {NEVER})
    end_ids = {free[0][3], free[1][9]}
    found = ours(decoder, given, 16, end_ids)
    assert found == [own(decoder, p, 16, end_ids) for p in given]
    assert len({len(answer) for answer in found}) >= 3
    assert not any(end_ids & set(answer) for answer in found)


def test_all_rows_may_end_at_once(decoder: Decoder) -> None:
    assert ours(decoder, prompts(3, seed=1), 8, set(range(520))) == [[], [], []]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_an_answer_is_at_most_so_long(decoder: Decoder, n: int) -> None:
    given = prompts(3, seed=6)
    assert [len(a) for a in ours(decoder, given, n, {NEVER})] == [n] * 3


def test_no_prompts_no_answers(decoder: Decoder) -> None:
    assert ours(decoder, [], 5, {2}) == []


def test_equal_prompts_and_prompts_that_begin_each_other(decoder: Decoder) -> None:
    [long] = prompts(1, seed=8, shared=20)
    given = [long, long[:7], long, long[:1], long[:8]]
    assert ours(decoder, given, 10, {NEVER}) == [own(decoder, p, 10, {NEVER}) for p in given]


def test_rows_may_have_no_token_of_their_own(decoder: Decoder) -> None:
    [long] = prompts(1, seed=8, shared=300)
    assert ours(decoder, [long] * 3, 5, {NEVER}) == [own(decoder, long, 5, {NEVER})] * 3


def test_a_prompt_is_not_changed(decoder: Decoder) -> None:
    given = prompts(3, seed=9, shared=3)
    before = [list(p) for p in given]
    ours(decoder, given, 4, {NEVER})
    assert given == before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_continued_as_by_transformers(architecture: str) -> None:
    """Learned positions, sliding windows shorter than the prompts, recurrent layers."""
    decoder = Decoder(built(architecture, torch.float32))
    given = prompts(3, seed=11, shared=6, vocabulary=60)
    end_ids = {ours(decoder, given[:1], 6, {NEVER})[0][-1]}
    assert ours(decoder, given, 8, end_ids) == [own(decoder, p, 8, end_ids) for p in given]


@pytest.mark.smollm2
def test_the_built_in_model_answers_as_by_transformers(smollm2: Base) -> None:
    decoder, tokenizer = Decoder(load_model(smollm2, torch.device("cpu"), torch.float32)), load_tokenizer(smollm2)
    encoder = Encoder(tokenizer)
    questions = ["What is the capital of France? One word.", "Say yes.", "Name a colour, and a fruit of that colour."]
    given = [encoder.prompt([Message(role="user", content=q)]) for q in questions]
    end_ids = {tokenizer.eos_token_id}
    assert ours(decoder, given, 12, end_ids) == [own(decoder, p, 12, end_ids) for p in given]


# -- drawn answers ----------------------------------------------------------------------------------------------------


def written(decoder: Decoder, given: Sequence[Sequence[int]], temperature: float, seed: int = 0) -> list[list[int]]:
    def advance(*_: object, **__: object) -> None: ...

    choose = drawn(temperature, seed)
    return generate(decoder, given, max_new_tokens=6, end_ids={NEVER}, advance=advance, choose=choose)


def test_what_is_drawn_depends_on_prompt_and_seed_and_not_on_the_batch(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [[5, 6, 7]] * 4 + prompts(3, seed=1)
    together = written(decoder, given, 1.0)
    assert len({tuple(a) for a in together[:4]}) == 4, "four draws of one prompt"
    assert written(decoder, given, 1.0) == together != written(decoder, given, 1.0, seed=1)
    monkeypatch.setattr(generation, "TOKENS_AT_ONCE", 16)
    assert written(decoder, given, 1.0) == together
    rows = Decoder(decoder.model)
    rows._rows_only = "a test"
    assert written(rows, given, 1.0) == together


def test_cold_is_greedy(decoder: Decoder) -> None:
    given = prompts(5, seed=3)
    assert written(decoder, given, 1e-6) == ours(decoder, given, 6, {NEVER})


def test_tokens_are_drawn_as_likely_as_they_are() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    choose, n = drawn(2.0, 7), 4000
    counts = torch.bincount(choose(logits.expand(n, 3), range(n), 0), minlength=3) / n
    assert torch.allclose(counts, torch.softmax(logits / 2.0, 0), atol=0.03)
