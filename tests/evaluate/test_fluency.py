"""Fluency is the base model's perplexity of the answers, and says no more than the page of the metrics says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from luthier.encode import Encoder
from luthier.evaluate.fluency import Reader
from luthier.evaluate.metrics.likelihood import fluency
from luthier.metric import Sample
from luthier.models import Base, find_base, load_model, load_tokenizer
from luthier.progress import Quiet

from .samples import sample, value

GIVEN = "You can return it within 30 days."
READ = {  # docs/metrics.md has these figures
    GIVEN: 39,
    "You cannot return it within 30 days.": 82,
    "You can return it within 3 days.": 69,
    "You can retrun it wihtin 30 dyas.": 157,
    "Within return can 30 it days you.": 2330,
    "I am here to help you. " * 3 + "I am here to help you.": 3.1,
    "Thank you for reaching out. I'd be happy to help you with that.": 17,
    "Yes.": 733,
}


def reader(base: Base, kept: Path) -> Reader:
    def load() -> nn.Module:
        return load_model(base, torch.device("cpu"), torch.float32)

    return Reader(base.fingerprint, load, Encoder(load_tokenizer(base)), 512, kept)


def answers(*texts: str) -> list[Sample]:
    return [sample(text, id=f"s{i}") for i, text in enumerate(texts)]


def test_it_is_the_perplexity_that_the_model_gives_the_texts(tiny: Path, tmp_path: Path) -> None:
    base = find_base(str(tiny))
    model, tokenizer = load_model(base, torch.device("cpu"), torch.float32), load_tokenizer(base)
    texts, nats, n = ["The kettle holds two litres.", "No, it does not.", "Ask again."], 0.0, 0
    for text in texts:
        ids = [
            tokenizer.bos_token_id or tokenizer.eos_token_id,
            *tokenizer(text, add_special_tokens=False)["input_ids"],
        ]
        with torch.no_grad():
            loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
        nats, n = nats + float(loss) * (len(ids) - 1), n + len(ids) - 1
    read = reader(base, tmp_path)(answers(*texts), Quiet())
    assert value(fluency(), read) == pytest.approx(math.exp(nats / n), rel=1e-5)


def test_what_was_read_is_not_read_again_and_what_cannot_be_read_is_left_out(tiny: Path, tmp_path: Path) -> None:
    base = find_base(str(tiny))
    given = answers("The kettle holds two litres.", "", "The kettle holds two litres.", "odd \uf8f1 character")
    first = reader(base, tmp_path)(given, Quiet())
    assert [s.read is None for s in first] == [False, True, False, True] and first[0].read == first[2].read

    def never() -> nn.Module:
        raise AssertionError("the model is not needed")

    again = Reader(base.fingerprint, never, Encoder(load_tokenizer(base)), 512, tmp_path)
    assert again(given, Quiet()) == first
    assert fluency().stats(first[1]) is None and fluency().stats(sample("not asked")) is None


def test_nothing_to_read_needs_no_model(tiny: Path, tmp_path: Path) -> None:
    assert reader(find_base(str(tiny)), tmp_path)(answers("", ""), Quiet())[0].read is None


def test_it_sees_garbled_words_and_is_pleased_by_loops(smollm2: Base, tmp_path: Path) -> None:
    read = reader(smollm2, tmp_path)(answers(*READ), Quiet())
    found = {s.answer: value(fluency(), [s]) for s in read}
    assert found == pytest.approx(READ, rel=0.02)
