"""Chat templates in the style of the well-known families, each put on the tiny model's tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

CHATML = """{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """{{ bos_token }}{% for message in messages %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

MISTRAL = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}\
{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}\
{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% if message['role'] == 'user' %}\
{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}\
{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"""

MISTRAL_LAST = MISTRAL.replace("system if loop.first", "system if loop.index0 > turns | length - 3")
"""The system text goes into the last user turn: what stands before a turn changes with what comes after."""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}\
{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

QWEN3 = """{%- set ns = namespace(last_query=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last_query = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}{%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

PHI = """{% for message in messages %}\
{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""


@dataclass(frozen=True)
class Family:
    name: str
    template: str
    special: tuple[str, ...]
    """Special tokens that its template writes, beside those that the tiny tokenizer has."""
    end: str
    """What ends the assistant's turn."""
    plain: tuple[str, ...] = ("</think>",)
    """Added tokens that are not special, beside `<think>`."""
    bos: str | None = None
    system: bool = True
    """Whether the template takes a system message."""
    lead: str = ""
    """What the template writes between the generation prompt and an answer."""
    lead_of_last: str | None = None
    """The same for the last answer, where it differs."""
    strips_after_token: bool = False
    """Its tokens take the white space behind them with them."""

    def leads(self, n: int) -> list[str]:
        """What stands before each of n answers."""
        return [self.lead] * (n - 1) + [self.lead if self.lead_of_last is None else self.lead_of_last]


FAMILIES = (
    Family("chatml", CHATML, (), "<|im_end|>"),
    Family(
        "llama3",
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    Family("mistral", MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", bos="<s>", lead=" "),
    Family("mistral-last", MISTRAL_LAST, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", bos="<s>", lead=" "),
    Family("gemma", GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", bos="<bos>", system=False),
    Family("qwen3", QWEN3, (), "<|im_end|>", lead_of_last="<think>\n\n</think>\n\n"),
    Family(
        "phi",
        PHI,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
        strips_after_token=True,
    ),
)


def tokenizer_of(family: Family, tiny: Path) -> Any:
    """The tiny tokenizer with the family's template and tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens([AddedToken(t, special=True, rstrip=family.strips_after_token) for t in family.special])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in family.plain])
    tokenizer.chat_template = family.template
    if family.bos:
        tokenizer.bos_token = family.bos
    if family.name.startswith("mistral"):
        tokenizer.eos_token = "</s>"
    if family.name == "phi":
        tokenizer.eos_token = "<|endoftext|>"
    return tokenizer
