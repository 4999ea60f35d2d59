"""Conversations in, replies out: a model on this machine, one behind HTTP, or a function.

A `Chat` gives each conversation its reply, in order. What could not be answered is a reply that says why: nothing is
raised for one lost item and nothing is left out. All are asked for their likeliest reply (temperature 0); a server may
still answer differently from day to day. This module knows nothing of what is asked, nor what for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

from luthier.conversation import Message, make_conversation
from luthier.errors import DataError
from luthier.http import Endpoint, Failed, key_in, parse, post_all

if TYPE_CHECKING:
    from luthier.decoder import Decoder
    from luthier.encode import Encoder
    from luthier.models import Base

TOKENS_AT_ONCE = 2048
"""Distinct tokens in one forward pass over options."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered, or why nothing was."""

    text: str
    failure: str | None = None
    """Why there is no reply, in words; `text` is then empty."""
    model: str = ""
    """Who answered: the version that the server says, or the name and digest of the weights."""
    nats: Mapping[str, float] | None = None
    """Of a choice: negative log-likelihood of each option as the whole reply."""
    prompt_tokens: int = field(default=0, compare=False)
    """Read for this reply, as the server counts them; 0 where it does not say."""
    reply_tokens: int = field(default=0, compare=False)


class Chat(Protocol):
    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        """A reply to each conversation, in order. Raises nothing for an item that has none: it says so."""


def scripted(function: Callable[[Sequence[Message]], str | Reply]) -> Chat:
    """A chat that answers by a function: for tests, and for trying a recipe without a model."""

    def chat(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        said = map(function, conversations)
        return [Reply(found, model="scripted") if isinstance(found, str) else found for found in said]

    return chat


# -- on this machine -------------------------------------------------------------------------------------


def local(base: Base, *, max_new_tokens: int) -> Chat:
    """A base model's greedy replies. It is loaded when first asked."""
    load = cache(partial(_Speaker.of, base))

    def chat(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        from luthier.generate import generate

        speaker = load()
        encode = partial(speaker.prompt, n_new=max_new_tokens)
        prompts, replies = _encoded(encode, conversations)
        written = generate(
            speaker.decoder,
            [*prompts.values()],
            max_new_tokens=max_new_tokens,
            end_ids=speaker.end_ids,
            advance=lambda *_, **__: None,
        )
        for i, ids in zip(prompts, written, strict=True):
            text = speaker.encoder.tokenizer.decode(ids, skip_special_tokens=True).strip()
            replies[i] = Reply(text, model=model_name(base), prompt_tokens=len(prompts[i]), reply_tokens=len(ids))
        return replies

    return chat


def choosing(base: Base, options: Sequence[str]) -> Chat:
    """A base model that can only reply with one of the `options`: the likeliest, with the nats of all of them.

    Conversation and options are one prefix tree, so five options cost little more than one.
    """
    load = cache(partial(_Speaker.of, base))

    def chat(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        from luthier.decoder import score_all

        speaker = load()
        asked, replies = _encoded(partial(speaker.with_options, options=options), conversations)
        examples = [example for of in asked.values() for example in of]
        nats = iter(score_all(speaker.decoder, examples, TOKENS_AT_ONCE))
        for i in asked:
            found = dict(zip(options, nats, strict=False))
            replies[i] = Reply(min(found, key=found.__getitem__), model=model_name(base), nats=found)
        return replies

    return chat


def model_name(base: Base) -> str:
    return f"{base.public_name}@{base.fingerprint[:12]}"


def _encoded(
    encode: Callable[[Sequence[Message]], Any], conversations: Sequence[Sequence[Message]]
) -> tuple[dict[int, Any], list[Reply]]:
    """What can be asked, by its place; and a reply for each place, which says why something cannot."""
    asked, replies = {}, [Reply("") for _ in conversations]
    for i, messages in enumerate(conversations):
        try:
            asked[i] = encode(messages)
        except DataError as error:
            replies[i] = Reply("", "; ".join(problem.found for problem in error.problems))
    return asked, replies


@dataclass(frozen=True, slots=True)
class _Speaker:
    """A loaded model with what it needs to speak."""

    decoder: Decoder
    encoder: Encoder
    end_ids: frozenset[int]
    window: int | None
    """Tokens."""

    @classmethod
    def of(cls, base: Base) -> _Speaker:
        from luthier.decoder import Decoder
        from luthier.encode import Encoder
        from luthier.models import context_tokens, load_model, load_tokenizer

        encoder = Encoder(load_tokenizer(base), context_tokens(base))
        turns = [Message(role="user", content="a"), Message(role="assistant", content="b")]
        example = encoder(make_conversation(turns, ""))
        ends = frozenset({encoder.tokenizer.eos_token_id, example.ids[example.last_learned]})
        return cls(Decoder(load_model(base)), encoder, ends, encoder.max_tokens)

    def prompt(self, messages: Sequence[Message], n_new: int) -> list[int]:
        ids = self.encoder.prompt(messages)
        if self.window and len(ids) + n_new > self.window:
            found = f"is {len(ids)} tokens long, over the model's window of {self.window} less {n_new} for the reply"
            raise DataError.of("LU-D046", "", found)
        return ids

    def with_options(self, messages: Sequence[Message], options: Sequence[str]) -> list[Any]:
        """The conversation with each option as what is learned."""
        before = [m.model_copy(update={"learn": False}) for m in messages]
        replies = [Message(role="assistant", content=option) for option in options]
        return [self.encoder(make_conversation([*before, reply], "")) for reply in replies]


# -- by HTTP ---------------------------------------------------------------------------------------------


def endpoint(
    urls: Sequence[str],
    model: str,
    *,
    key_env: str | None = None,
    seed: int = 0,
    max_new_tokens: int,
    timeout_s: float = 60.0,
    at_once: int = 4,
    first_wait_s: float = 1.0,
) -> Chat:
    """Any server that answers OpenAI's `POST /chat/completions`, tried as `http.py` says.

    Raises ModelError LU-M006 where the environment variable `key_env` holds no key.
    """
    to = Endpoint(tuple(urls), key_in(key_env), timeout_s, at_once, first_wait_s)
    settings = {"model": model, "temperature": 0, "seed": seed, "max_tokens": max_new_tokens}

    def chat(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        bodies = [{**settings, "messages": [m.as_openai() for m in messages]} for messages in conversations]
        found = dict(post_all(to, "chat/completions", bodies, _read))
        replies = [found[number] for number in range(len(bodies))]
        return [Reply("", str(reply)) if isinstance(reply, Failed) else reply for reply in replies]

    return chat


def _read(content: bytes) -> Reply:
    def pick(data: Any) -> tuple[Any, str, list[int]]:
        usage = data.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return data["choices"][0]["message"]["content"], str(data.get("model") or ""), counts

    text, model, (prompt_tokens, reply_tokens) = parse(content, "chat completion", pick)
    if not isinstance(text, str):
        raise Failed("the reply holds no text")
    return Reply(text, model=model, prompt_tokens=prompt_tokens, reply_tokens=reply_tokens)
