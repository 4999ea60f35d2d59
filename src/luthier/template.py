"""Chat templates: a conversation as one text, and which of its characters the model learns to write.

What is learned of a turn runs from the end of the generation prompt, after which the model writes when it serves, to
the token that ends the turn. A template is a program that may write anything, so nothing of its style is assumed:
where a turn stands is told from renderings of the first messages, and of all of them with a stand-in for one content.
What a template drops, rewrites or serves otherwise than it trains is refused in words.
This module knows nothing of token ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from luthier.conversation import Conversation, Message
from luthier.errors import DataError, printable
from luthier.guard import CLOSE, OPEN, Guard, any_of
from luthier.interrupts import within

Fail = Callable[..., DataError]
"""DataError.of with the place filled in."""
STAND_IN = f"{OPEN}here{CLOSE}"
RENDER_S = 10.0
"""A template is a program; one that takes longer for one conversation never ends."""
_SPACE = re.compile(r"\s*")


class Template:
    """The chat template of a tokenizer, whose added tokens are `added` and, of these, `special`."""

    def __init__(self, tokenizer: Any, added: set[str], special: set[str]) -> None:
        self._tokenizer = tokenizer
        self._guard_added, self._guard_special = Guard.against(added), Guard.against(special)
        self.special = any_of(special)

    @property
    def guards(self) -> tuple[str, str]:
        """What is guarded against, in the texts of others and in the assistant's."""
        return self._guard_added.whole.pattern, self._guard_special.whole.pattern

    @property
    def end_token(self) -> str | None:
        token: str | None = self._tokenizer.eos_token
        return token

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], fail: Fail) -> str:
        """The guarded text after which the model writes. Raises DataError LU-D054."""
        return self.render([self._guarded(m) for m in messages], self._guard_added.inside(tools), True, fail)

    def learned(self, conversation: Conversation, fail: Fail) -> tuple[str, bytes]:
        """The guarded text and, per character, whether it is learned. Raises DataError LU-D050, LU-D054 to LU-D056."""
        messages = [self._guarded(m) for m in conversation.messages]
        chat = _Chat(self, messages, self._guard_added.inside(conversation.tools), fail)
        text = chat.rendered(len(messages))
        learned = bytearray(len(text))
        chat.check([m.learned for m in conversation.messages])
        for i, message in enumerate(conversation.messages):
            if message.learned:
                start, stop = chat.span(i)
                learned[start:stop] = b"\1" * (stop - start)
        return text, bytes(learned)

    def _guarded(self, message: Message) -> dict[str, Any]:
        guard = self._guard_special if message.role == "assistant" else self._guard_added
        content: Any = guard(message.content)
        found = {"role": message.role, "content": [{"type": "text", "text": content}] if self._takes_parts else content}
        if message.tool_calls:
            found["tool_calls"] = [
                {"type": "function", "function": guard.inside({"name": call.name, "arguments": call.arguments})}
                | ({"id": guard(call.id)} if call.id else {})
                for call in message.tool_calls
            ]
        return found | {k: guard(v) for k in ("name", "tool_call_id") if (v := getattr(message, k))}

    @cached_property
    def _takes_parts(self) -> bool:
        """Templates of models that see pictures go through the parts of a content, and lose a plain text."""
        for content in ("probe", [{"type": "text", "text": "probe"}]):
            try:
                with within(RENDER_S):
                    text = self._applied([{"role": "user", "content": content}], [], False)
            except Exception:  # a template may raise anything; a conversation's own rendering says what
                continue
            if "probe" in text and "'probe'" not in text:
                return isinstance(content, list)
        return False

    def render(self, messages: list[dict[str, Any]], tools: list[Any], generation_prompt: bool, fail: Fail) -> str:
        """Raises DataError LU-D054."""
        if not getattr(self._tokenizer, "chat_template", None):
            found = "the base model's tokenizer has no chat template"
            raise fail("LU-D054", found=found, advice="use an instruction-tuned base, or data with a `text` column")
        try:
            with within(RENDER_S):
                return self._applied(messages, tools, generation_prompt)
        except TimeoutError:
            found = f"the chat template has not ended after {RENDER_S:g} s"
            raise fail("LU-D054", found=found, advice="look at the template: it is a program of the base's") from None
        except Exception as error:  # a template may raise anything
            found = f"the chat template refuses this conversation: {printable(str(error))}"
            raise fail("LU-D054", found=found) from None

    def _applied(self, messages: list[dict[str, Any]], tools: list[Any], generation_prompt: bool) -> str:
        """As the tokenizer's `apply_chat_template` renders it, which takes as long again to look for what is not there:
        pictures, functions for tools, values of None."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        source = self._tokenizer.get_chat_template(tools=tools or None)
        rendered: str = _compile_jinja_template(source).render(
            messages=messages,
            tools=tools or None,
            documents=None,
            add_generation_prompt=generation_prompt,
            **self._tokenizer.special_tokens_map,
        )
        return rendered


class _Chat:
    """One conversation's renderings. Places are characters of the rendering of all messages, if not said otherwise."""

    def __init__(self, template: Template, messages: list[dict[str, Any]], tools: list[Any], fail: Fail) -> None:
        self._template, self._messages, self._tools, self._fail = template, messages, tools, fail
        self._known: dict[tuple[int, bool], str] = {}

    def rendered(self, n: int, generation_prompt: bool = False) -> str:
        """The first `n` messages."""
        if (n, generation_prompt) not in self._known:
            text = self._template.render(self._messages[:n], self._tools, generation_prompt, self._fail)
            self._known[n, generation_prompt] = text
        return self._known[n, generation_prompt]

    def check(self, learned: Sequence[bool]) -> None:
        """Every message must stand in the rendering, in order; system texts stand in the last user turn of some.

        An answer that is not learned may be rewritten: a template that drops earlier thinking drops it in serving, too.
        """
        text, place = self.rendered(len(self._messages)), 0
        for i, message in enumerate(self._messages):
            if message["role"] == "assistant" and not learned[i]:
                continue
            system, body = message["role"] == "system", _text(message).strip()
            found = text.find(body, 0 if system else place)
            if found < 0 and message["role"] == "tool":  # some write a result as the JSON of its text
                body = json.dumps(body, ensure_ascii=False)[1:-1]
                found = text.find(body, place)
            dropped = found >= 0 and not all(_stands(one, text, found) for one in _called(message))
            if found < 0 or dropped:
                what = f"the calls of message {i}" if dropped else f"or rewrites message {i} ({message['role']})"
                advice = f"use a base whose template {'knows tools' if dropped else 'takes this role'}"
                raise self._fail("LU-D055", found=f"the chat template drops {what}", advice=advice)
            if not system:
                place = found + len(body)

    def span(self, i: int) -> tuple[int, int]:
        """What is learned of message i: to the end of the token that ends its turn."""
        start = self._start(i, len(self._messages))
        return start, self._end(i, start)

    def _start(self, i: int, n: int) -> int:
        """Where what the model writes of message i begins in the rendering of the first `n`: where that goes on
        otherwise than the generation prompt. Compared after the message before, as earlier ones may be written
        differently once there are more (a system text in the last user turn, say)."""
        text = self.rendered(n)
        if i == 0 or self._messages[i]["role"] != "assistant":
            return self._content(i, n)[0]
        prompt = self.rendered(i, True)
        if text.startswith(prompt):
            return len(prompt)
        here, there = self._content(i - 1, n)[1], self._content(i - 1, i, True)[1]
        shared = _shared(text[here:], prompt[there:])
        if unseen := prompt[there + shared :].strip():
            raise self._fail(
                "LU-D056",
                found=f"asked, the model goes on after {printable(repr(unseen))}; message {i} does not begin with it",
                advice="the chat template serves other prompts than it trains on: write the answer's beginning so",
            )
        return here + shared

    def _content(self, i: int, n: int, generation_prompt: bool = False) -> tuple[int, int]:
        """Where the content of message i stands in the rendering of the first `n`, by a stand-in for it."""
        text = self.rendered(n, generation_prompt)
        message = self._messages[i]
        plain = isinstance(message["content"], str)
        content = STAND_IN if plain else [{"type": "text", "text": STAND_IN}]
        messages = [*self._messages[:i], {**message, "content": content}, *self._messages[i + 1 : n]]
        other = self._template.render(messages, self._tools, generation_prompt, self._fail)
        head, found, tail = other.partition(STAND_IN)
        if not found or not text.startswith(head) or not text[len(head) :].endswith(tail):
            raise self._fail(
                "LU-D055",
                found=f"cannot tell where the chat template puts message {i}",
                advice="use a base with a simpler template",
            )
        return len(head), len(text) - len(tail)

    def _end(self, i: int, start: int) -> int:
        """Where the token ends that ends the turn. Raises DataError LU-D050, LU-D055."""
        text, message = self.rendered(len(self._messages)), self._messages[i]
        begins = _SPACE.match(text, start).end()  # type: ignore[union-attr]
        if "tool_calls" not in message and text.startswith(body := _text(message).strip(), begins):
            tokens = list(islice(self._special(text, begins + len(body)), 8))
            if tokens and not text[begins + len(body) : tokens[0].start()].strip():
                return self._through_end_token(tokens)
        # Where the template wrote of its own into the turn (thinking, a channel, calls), the turn is looked at alone.
        alone = self.rendered(i + 1)
        offset = start - self._start(i, i + 1)
        closing = _closing(list(self._special(alone, start - offset)), alone)
        if not closing:
            raise self._endless()
        ends = [m.end() for m in closing if m.group() == self._template.end_token and "tool_calls" in message]
        known = ends[0] if ends else closing[0].start()
        if not text.startswith(alone[start - offset : known], start):
            raise self._fail("LU-D055", found=f"the chat template rewrites message {i} once there are more")
        if ends:
            return known + offset
        tokens = list(islice(self._special(text, known + offset), 8))
        if not tokens or text[known + offset : tokens[0].start()].strip():
            raise self._endless()  # what follows are the words of the next turn
        return self._through_end_token(tokens)

    def _special(self, text: str, start: int) -> Iterator[re.Match[str]]:
        return self._template.special.finditer(text, start)

    def _through_end_token(self, tokens: Sequence[re.Match[str]]) -> int:
        """Where the first token ends, or the tokenizer's own end token where it follows with nothing between."""
        end = tokens[0].end()
        for token in tokens:
            if token.start() > end:
                break
            end = token.end()
            if token.group() == self._template.end_token:
                return end
        return tokens[0].end()

    def _endless(self) -> DataError:
        return self._fail(
            "LU-D050",
            found="the chat template ends the assistant's turn with no special token",
            advice="the model would never learn to stop; use a base with a chat template that ends turns",
        )


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else str(content[0]["text"])


def _called(message: dict[str, Any]) -> Iterator[str]:
    """Every text of the message's tool calls."""
    left: list[Any] = [call["function"] for call in message.get("tool_calls", ())]
    while left:
        match left.pop():
            case str() as text:
                yield text
            case dict() as inner:
                left += inner.values()
            case list() as inner:
                left += inner


def _stands(one: str, text: str, start: int) -> bool:
    """As it is, or as JSON writes it."""
    return any(
        text.find(form, start) >= 0 for form in (one, *(json.dumps(one, ensure_ascii=a)[1:-1] for a in (False, True)))
    )


def _closing(tokens: list[re.Match[str]], text: str) -> list[re.Match[str]]:
    """Of some tokens those behind which nothing but white space and such tokens is left."""
    kept: list[re.Match[str]] = []
    for token in reversed(tokens):
        if text[token.end() : kept[0].start() if kept else len(text)].strip():
            break
        kept.insert(0, token)
    return kept


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
