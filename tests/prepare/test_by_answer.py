"""A template that writes an answer without its thinking once there are later ones: one row for each answer."""

from __future__ import annotations

import json
from pathlib import Path

from chat_templates import FAMILIES, tokenizer_of

from luthier.conversation import read_conversations
from luthier.encode import Encoder
from luthier.prepare import prepare
from luthier.recipe import validate

[QWEN3] = [family for family in FAMILIES if family.name == "qwen3"]
ANSWERS = ("<think>\nRed, I see.\n</think>\n\nA red kettle.", "<think>\nBlue.\n</think>\n\nA blue lamp.")


def test_a_chat_that_thinks_becomes_a_row_for_each_answer(tmp_path: Path, tiny: Path) -> None:
    turns = ("What is it?", ANSWERS[0], "And that?", ANSWERS[1])
    thinking = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    rows = [{"messages": thinking}, {"messages": plain}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sources": [{"path": "data.jsonl"}], "split": {"valid_fraction": 0, "test_fraction": 0}}
    rules = [{"metric": "token_f1", "must": "beat_baseline"}]
    recipe = validate({"name": "test", "data": data, "release": {"rules": rules}}, "recipe.yaml", tmp_path)
    encoder = Encoder(tokenizer_of(QWEN3, tiny))
    report = prepare(recipe, tmp_path, tmp_path / "out", encoder)
    [encode] = [step for step in report.steps if step.name == "encode"]
    assert (encode.n_in, encode.n_out, encode.made) == (2, 3, {"one row an answer": 1})
    found = list(read_conversations(tmp_path / "out" / "train.jsonl"))
    first, second, other = found
    assert first.family == second.family != other.family
    assert (first.answer, second.answer) == ANSWERS
    for conversation in (first, second):
        encoded = encoder(conversation)
        learned = encoder.tokenizer.decode([i for i, on in zip(encoded.ids, encoded.learn, strict=True) if on])
        assert learned == conversation.answer + "<|im_end|>"
    assert "Red, I see." not in encoder.tokenizer.decode(encoder(second).ids), "as in serving"
