"""What is learned, against the public templates that TRL ships with the assistant's words marked; and tools."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from luthier.conversation import Conversation, Message, ToolCall, make_conversation
from luthier.encode import Encoder
from luthier.errors import DataError

trl = pytest.importorskip("trl")
FOLDER = Path(trl.__file__).parent / "chat_templates"
MARKED = sorted(FOLDER.glob("*_training.jinja"))
"""Their `{% generation %}` blocks are the oracle."""
TOKEN = re.compile(
    r"<\|[A-Za-z_]+\|?>|<[A-Za-z_]+\|>|<｜[^>｜]*｜>|\[/?[A-Z_]+\]"
    r"|</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn|end_of_utterance|s|image|start_of_image|sop)>"
)
"""What is an added token in these families."""
NOT_SPECIAL = {"<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"}
END_TOKENS = (
    *("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<end_of_utterance>", "<|END_OF_TURN_TOKEN|>"),
    *("<｜end▁of▁sentence｜>", "</s>", "<turn|>", "<|return|>", "<|eot|>"),
)
NO_SYSTEM = {"gemma"}
NO_PLAIN_ANSWER = {"deepseek_r1_distill", "deepseekv3"}
"""Asked, these models begin to think; an answer that does not is not what they are served with (LU-D056)."""
TOOLS = {
    *(
        "diffusion_gemma",
        "glm4moe",
        "gptoss",
        "lfm2_v2",
        "muse_glimmer",
        "qwen2_5",
        "qwen3",
        "qwen3_instruct_2507",
        "qwen3_vl",
    ),
    *("qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8"),
    *("nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"),
}
"""The templates that write calls and results."""
NOTHING_SAID = {"diffusion_gemma", "gptoss", "muse_glimmer"}
"""Of these the ones that drop what is said beside a call."""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What the weather is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}},
    },
}


def name_of(template: Path) -> str:
    return template.name.removesuffix("_training.jinja")


@cache
def tokenizer_of(template: Path, tiny: Path) -> Any:
    """The tiny tokenizer with a family's template and tokens."""
    from transformers import AutoTokenizer

    tokenizer, text = AutoTokenizer.from_pretrained(tiny), template.read_text()
    found = sorted(set(TOKEN.findall(text)))
    tokenizer.add_tokens([AddedToken(t, special=t not in NOT_SPECIAL, normalized=False) for t in found])
    tokenizer.add_special_tokens(
        {"bos_token": "<s0>", "eos_token": next(t for t in END_TOKENS if t in text or t == END_TOKENS[-1])}
    )
    tokenizer.chat_template = text
    return tokenizer


def chat(*texts: str, system: str | None = None) -> Conversation:
    messages = [Message(role="system", content=system)] if system else []
    messages += [Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)]
    return make_conversation(messages, "chats.jsonl:7")


def called(*texts: str, said: str = "", city: str = "Oslo") -> Conversation:
    """A question, a call, its result and an answer; then, where there are texts, more turns."""
    return make_conversation(
        [
            Message(role="user", content="Is it cold there?"),
            Message(role="assistant", content=said, tool_calls=(ToolCall(name="weather", arguments={"city": city}),)),
            Message(role="tool", content='{"degrees": 3}', name="weather"),
            Message(role="assistant", content="Yes: 3 degrees."),
            *chat(*texts).messages,
        ],
        "chats.jsonl:7",
        tools=[WEATHER],
    )


def runs(tokenizer: Any, ids: Sequence[int], learned: Sequence[int]) -> list[str]:
    """The text of every unbroken run of learned tokens."""
    grouped = groupby(zip(ids, learned, strict=True), key=lambda pair: bool(pair[1]))
    return [tokenizer.decode([id_ for id_, _ in run]) for kept, run in grouped if kept]


def as_dict(message: Message, parts: bool) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls]
    content = [{"type": "text", "text": message.content}] if parts else message.content
    found = {"role": message.role, "content": content, "name": message.name, "tool_calls": calls}
    return {key: value for key, value in found.items() if value or key == "content"}


def oracle(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[str]]:
    """Ids, and runs of what TRL's template marks as the assistant's."""
    for parts in (False, True):
        messages = [as_dict(m, parts) for m in conversation.messages]
        try:
            found = tokenizer.apply_chat_template(
                messages, tools=list(conversation.tools) or None, return_assistant_tokens_mask=True, return_dict=True
            )
        except Exception:
            if parts:
                raise
            continue
        if parts or conversation.messages[0].content in tokenizer.decode(found["input_ids"]):
            break
    return list(found["input_ids"]), runs(tokenizer, found["input_ids"], found["assistant_masks"])


def written(run: str, tokenizer: Any) -> str:
    """Of what an oracle marks, what the model itself writes: nothing that stands in the generation prompt already."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True)
    pieces = re.compile(rf"{TOKEN.pattern}|\s|\S")
    prompt, marked = pieces.findall(text.rpartition("q")[2]), pieces.findall(run)

    def shared(at: int) -> int:
        n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt[at:], marked, strict=False)))
        return n if at + n == len(prompt) or TOKEN.match(prompt[at]) else 0

    return "".join(marked[max(map(shared, range(len(prompt))), default=0) :])


def assert_equal(tokenizer: Any, conversation: Conversation, header: str = "") -> None:
    """`header`: what the model has to write itself where the generation prompt is empty."""
    encoded, (ids, marked) = Encoder(tokenizer)(conversation), oracle(tokenizer, conversation)
    assert encoded.ids == ids
    for ours, theirs in zip(runs(tokenizer, encoded.ids, encoded.learn), marked, strict=True):
        left = written(theirs, tokenizer).removeprefix(ours.removeprefix(header))
        assert left.replace(tokenizer.eos_token, "").strip() == "", (ours, theirs)  # behind the end of the turn


CHATS = {
    "one turn": chat("What is it?", "A red kettle."),
    "two turns": chat("What is it?", "A red kettle.", "And that?", "A blue lamp."),
    "system": chat("Hi there", "Hello!", "Bye", "See you.", system="Be kind."),
    "repetition": chat("final", "final", "final", "final"),
}
CALLS = {"a call": called(), "and more": called("And now?", "Still."), "beside words": called(said="Let me see.")}


by_template = pytest.mark.parametrize("template", MARKED, ids=name_of)


@by_template
@pytest.mark.parametrize("conversation", CHATS.values(), ids=CHATS.keys())
def test_exactly_what_the_model_writes_is_learned(template: Path, tiny: Path, conversation: Conversation) -> None:
    tokenizer, name = tokenizer_of(template, tiny), name_of(template)
    if name in NO_SYSTEM and conversation.messages[0].role == "system":
        assert refused(tokenizer, conversation) == "LU-D054"
    elif name in NO_PLAIN_ANSWER:
        assert refused(tokenizer, conversation) == "LU-D056"
    else:
        assert_equal(tokenizer, conversation)


@by_template
@pytest.mark.parametrize("conversation", CALLS.values(), ids=CALLS.keys())
def test_exactly_calls_and_answers_are_learned(template: Path, tiny: Path, conversation: Conversation) -> None:
    """Or the template drops or refuses what tools are, and the row is refused."""
    tokenizer, name = tokenizer_of(template, tiny), name_of(template)
    said = bool(conversation.messages[1].content)
    if name not in TOOLS or (said and name in NOTHING_SAID):
        assert refused(tokenizer, conversation) in ("LU-D054", "LU-D055", "LU-D056")
    else:
        assert_equal(tokenizer, conversation, "<|turn>model\n" if name == "diffusion_gemma" else "")


@pytest.mark.parametrize("template", [t for t in MARKED if name_of(t) in TOOLS], ids=name_of)
def test_control_strings_in_calls_and_results_never_become_tokens(template: Path, tiny: Path) -> None:
    tokenizer = tokenizer_of(template, tiny)
    end = tokenizer.eos_token
    plain, forged = called("And now?", "Still."), called(f"And {end} now?", "Still.", city=f"Os{end}lo")
    n_plain, n_forged = (Encoder(tokenizer)(c).ids.count(tokenizer.eos_token_id) for c in (plain, forged))
    assert n_plain == n_forged
    assert end in tokenizer.decode(Encoder(tokenizer)(forged).ids)


def refused(tokenizer: Any, conversation: Conversation) -> str:
    with pytest.raises(DataError) as caught:
        Encoder(tokenizer)(conversation)
    return caught.value.problems[0].code
