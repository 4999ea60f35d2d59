"""Conversation -> token ids and loss mask, for any chat template.

Promises:
- For text without control strings the ids equal `apply_chat_template(..., tokenize=True)` exactly.
- A control string inside a message is text, never a token: all added tokens in what users, systems and
  tools say; the special ones in what the assistant says (a `<think>` there is meant). New tokens, which a person has
  named, are tokens whoever writes them.
- What is learned runs from the end of the generation prompt to the token that ends the turn, inclusive.
- Nothing is cut: what is too long is an error of its row, but for plain text, which may be of any length.
- Many conversations at once give what each gives alone, to the bit, errors too.

How control strings are kept apart: a second copy of the tokenizer knows each added token under a private
name. The template's own tokens are renamed after rendering, those of the content are not, so one ordinary
tokenisation of the whole text gives both (piecewise tokenisation would change merges at the seams).
This module knows nothing of batches or models.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

from luthier.conversation import Conversation, Message
from luthier.conversation import Tokens as GivenTokens
from luthier.errors import DataError, ModelError
from luthier.guard import CLOSE, GUARD, OPEN, any_of
from luthier.machine import versions
from luthier.template import Fail, Template

CODE = ("encode", "template", "guard", "conversation")
"""The modules that decide what a conversation becomes."""
NAME = re.compile(OPEN)
"""Where the private name of a token begins."""
GROUP, GROUP_CHARACTERS = 256, 1 << 20
"""Conversations that are tokenised in one call: so many at most, and of long ones fewer, because each token of a call
takes a hundred bytes."""


@dataclass(frozen=True, slots=True)
class Encoded:
    ids: list[int]  # (T,)
    learn: list[bool]  # (T,) whether the loss counts this token as a target
    id: str
    source: str

    @property
    def n_learned(self) -> int:
        """Learned tokens that have a predecessor to predict them."""
        return sum(self.learn[1:])

    @property
    def last_learned(self) -> int:
        """Where the last learned token is; in a chat, what ends the turn."""
        return max(t for t, learned in enumerate(self.learn) if learned)


Tokens = tuple[list[int], list[bool]]
"""Ids (T,) and which of them are learned (T,)."""


class _Text(NamedTuple):
    """What is tokenised of a conversation, and per character whether it is learned; None for plain text."""

    named: str
    learned: bytes | None


class Encoder:
    """Encodes conversations, and prompts for generation, with one tokenizer.

    Raises ModelError LU-M020 where the tokenizer has no fast backend.
    """

    def __init__(self, tokenizer: Any, max_tokens: int | None = None, new_tokens: Collection[str] = ()) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError.of(
                "LU-M020", type(tokenizer).__name__, "is not a fast tokenizer", "use a base model with a tokenizer.json"
            )
        self.tokenizer, self.max_tokens, self._new_tokens = tokenizer, max_tokens, new_tokens
        added = {
            str(token): (id_, token.special) for id_, token in tokenizer.added_tokens_decoder.items() if str(token)
        }
        # Runs of white space are added tokens of some tokenizers (GPT-NeoX, Gemma); they control nothing.
        self._all = {name for name in added if name.replace("▁", " ").strip() and name not in new_tokens}
        self._special = {name for name in self._all if added[name][1]}
        self._private = {name: f"{OPEN}{i}{CLOSE}" if name in self._all else name for i, name in enumerate(added)}
        self._template = Template(tokenizer, self._all, self._special)
        self._added_or_guard = any_of({*self._all, GUARD})
        self._twin, self._real = _twin(backend, self._private, {n: id_ for n, (id_, _) in added.items()})

    def __reduce__(self) -> tuple[type[Encoder], tuple[Any, ...]]:
        return Encoder, (self.tokenizer, self.max_tokens, self._new_tokens)

    def __call__(self, conversation: Conversation) -> Encoded:
        """Raises DataError with one of LU-D046, LU-D047, LU-D050, LU-D052, LU-D054 to LU-D057."""
        if conversation.tokens:
            return self._checked(conversation, _given(conversation.tokens))
        text = self._text(conversation)
        return self._checked(conversation, self._tokens(text, self._twin.encode(text.named, add_special_tokens=False)))

    def all(self, conversations: Iterable[Conversation]) -> list[Encoded]:
        """Each one's, in order. Raises what the first one raises that cannot be encoded."""
        found = []
        for encoded in self.many(conversations):
            if isinstance(encoded, DataError):
                raise encoded
            found.append(encoded)
        return found

    def many(self, conversations: Iterable[Conversation]) -> Iterator[Encoded | DataError]:
        """For each, in order, what it gives alone, or the error that it raises alone.

        Templates are rendered in Python, which runs one thread at a time; the tokenizer is not Python and works on one
        group beside it while the next is rendered.
        """
        waiting = deque[Callable[[], Iterator[Encoded | DataError]]]()
        with ThreadPoolExecutor(1) as beside:
            for group in _groups(conversations):
                waiting.append(self._begun(group, beside))
                if len(waiting) > 1:
                    yield from waiting.popleft()()
            for ended in waiting:
                yield from ended()

    def _begun(
        self, group: Sequence[Conversation], beside: ThreadPoolExecutor
    ) -> Callable[[], Iterator[Encoded | DataError]]:
        """Render a group and give it to the tokenizer; what is returned waits for it."""
        texts = [self._text_or_error(c) for c in group if not c.tokens]
        named = [text.named for text in texts if isinstance(text, _Text)]
        tokenised: Future[list[Any]] = beside.submit(self._twin.encode_batch, named, add_special_tokens=False)

        def ended() -> Iterator[Encoded | DataError]:
            encodings, new = iter(tokenised.result()), iter(texts)
            for conversation in group:
                if conversation.tokens:
                    yield self._checked_or_error(conversation, _given(conversation.tokens))
                elif isinstance(text := next(new), DataError):
                    yield text
                else:
                    yield self._checked_or_error(conversation, self._tokens(text, next(encodings)))

        return ended

    def _text_or_error(self, conversation: Conversation) -> _Text | DataError:
        try:
            return self._text(conversation)
        except DataError as error:
            return error

    def _checked_or_error(self, conversation: Conversation, tokens: Tokens) -> Encoded | DataError:
        try:
            return self._checked(conversation, tokens)
        except DataError as error:
            return error

    def _checked(self, conversation: Conversation, tokens: Tokens) -> Encoded:
        """Raises DataError LU-D046, LU-D047, LU-D057."""
        fail: Fail = partial(DataError.of, where=conversation.source)
        encoded = Encoded(*tokens, conversation.id, conversation.source)
        if conversation.tokens and not all(0 <= id_ < len(self.tokenizer) for id_ in encoded.ids):
            found = f"holds token ids beyond the {len(self.tokenizer)} of the base model's tokenizer"
            raise fail("LU-D057", found=found, advice="tokenise with this base's tokenizer, or give the text")
        if self.max_tokens and len(encoded.ids) > self.max_tokens and not conversation.is_document:
            raise fail(
                "LU-D046",
                found=f"is {len(encoded.ids)} tokens long, over the limit of {self.max_tokens}",
                advice="raise data.max_tokens or shorten the row; nothing is cut",
            )
        if encoded.n_learned == 0:
            raise fail(
                "LU-D047",
                found="has no token to learn",
                advice="no assistant message is learned, or the answer is empty",
            )
        return encoded

    def spelled(self, conversation: Conversation) -> Conversation:
        """A conversation of token ids with the text that they stand for, where the tokenizer knows them all."""
        assert conversation.tokens
        ids = conversation.tokens.ids
        if any(not 0 <= id_ < len(self.tokenizer) for id_ in ids):
            return conversation  # which is refused when it is encoded
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        message = conversation.messages[0].model_copy(update={"content": text})
        return conversation.model_copy(update={"messages": (message,)})

    def fingerprint(self) -> str:
        """A hash of all that decides what a conversation becomes, but `max_tokens`, which changes no token.

        Among it the source of this code, and today's date where the template writes it.
        """
        tokenizer, template = self.tokenizer, getattr(self.tokenizer, "chat_template", None)
        what = [
            tokenizer.backend_tokenizer.to_str(),
            template,
            tokenizer.special_tokens_map,
            tokenizer.eos_token_id,
            tokenizer("")["input_ids"],
            self._template.guards,
            versions(("luthier", "tokenizers", "transformers", "jinja2")),
            [inspect.getsource(sys.modules[f"luthier.{name}"]) for name in CODE],
            date.today().isoformat() if "strftime_now" in json.dumps(template) else "",
        ]
        return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Ids (T,) after which the model writes the assistant's next message. Raises DataError LU-D052, LU-D054."""
        fail: Fail = partial(DataError.of, where="prompt")
        _refuse_private(_texts(messages, tools), fail)
        text = self._template.prompt(messages, tools, fail)
        named, _ = self._named(text, bytes(len(text)))
        return self._ids(self._twin.encode(named, add_special_tokens=False))

    def continuation(self, before: str, text: str, source: str) -> Encoded:
        """Plain text of which what follows `before` is learned, without an end: one of several ways to go on.

        As lm-evaluation-harness cuts it: the ids of the whole, less as many as `before` has alone, whose closing white
        space belongs to what follows. Without any `before`, the tokenizer's first or end token stands for it.
        Raises DataError LU-D052.
        """
        _refuse_private((before, text), partial(DataError.of, where=source))
        stem = before.rstrip()
        whole, given = (self._twin.encode(t, add_special_tokens=False).ids for t in (before + text, stem))
        opening = [id_ for id_ in self.tokenizer("")["input_ids"] if id_ != self.tokenizer.eos_token_id]
        if not given and not opening:
            first = self.tokenizer.bos_token_id
            opening = [self.tokenizer.eos_token_id if first is None else first]
        n_given = len(opening) + len(given)
        ids = [*opening, *whole]
        return Encoded(ids, [t >= n_given for t in range(len(ids))], f"{before}{text}", source)

    def _text(self, conversation: Conversation) -> _Text:
        """Raises DataError LU-D050, LU-D052, LU-D054 to LU-D056."""
        fail: Fail = partial(DataError.of, where=conversation.source)
        _refuse_private(_texts(conversation.messages, conversation.tools), fail)
        if conversation.messages[0].role != "text":
            return self._named(*self._template.learned(conversation, fail))
        if self.tokenizer.eos_token_id is None:
            raise fail("LU-D050", found="the tokenizer has no end token", advice="the model would never learn to stop")
        return _Text(conversation.answer, None)

    # -- tokens ----------------------------------------------------------------------------------------

    def _named(self, text: str, learned: bytes) -> _Text:
        """A guarded rendering with the template's tokens under their private names, and without guards."""
        parts: list[str] = []
        mask: list[bytes] = []
        at = 0
        for match in self._added_or_guard.finditer(text):
            parts.append(text[at : match.start()])
            mask.append(learned[at : match.start()])
            if match.group() != GUARD:
                name = self._private[match.group()]
                parts.append(name)
                mask.append(learned[match.start() : match.start() + 1] * len(name))
            at = match.end()
        return _Text("".join([*parts, text[at:]]), b"".join([*mask, learned[at:]]))

    def _tokens(self, text: _Text, encoding: Any) -> Tokens:
        """Ids and mask of what the twin made of a conversation's text."""
        named, learned = text
        if learned is None:  # self-supervised: opening tokens as the tokenizer adds them, text, end token
            opening = [id_ for id_ in self.tokenizer("")["input_ids"] if id_ != self.tokenizer.eos_token_id]
            ids = [*opening, *encoding.ids, self.tokenizer.eos_token_id]
            return ids, [False] * len(opening) + [True] * (len(encoding.ids) + 1)

        before = list(accumulate(learned, initial=0))
        found = [before[stop] > before[start] for start, stop in encoding.offsets]
        # The template's tokens may have swallowed white space that is not their own: their names alone decide.
        for name in NAME.finditer(named):
            found[encoding.char_to_token(name.start())] = learned[name.start()] == 1
        return self._ids(encoding), found

    def _ids(self, encoding: Any) -> list[int]:
        return list(map(self._real.__getitem__, encoding.ids))


def _groups(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    group, n_characters = list[Conversation](), 0
    for conversation in conversations:
        group.append(conversation)
        n_characters += sum(len(m.content) for m in conversation.messages)
        if len(group) == GROUP or n_characters >= GROUP_CHARACTERS:
            yield group
            group, n_characters = [], 0
    if group:
        yield group


def _given(tokens: GivenTokens) -> Tokens:
    return list(tokens.ids), list(tokens.learn)


def _texts(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Iterator[str]:
    """All that a person or a model wrote."""
    yield from (m.text for m in messages)
    yield from (value for m in messages for value in (m.name, m.tool_call_id, *(c.id for c in m.tool_calls)) if value)
    yield from (json.dumps(tool, ensure_ascii=False) for tool in tools)


def _refuse_private(texts: Iterable[str], fail: Fail) -> None:
    """Who could write them could write any control token: they are how the twin names those."""
    if any(c in text for text in texts for c in (GUARD, OPEN, CLOSE)):
        raise fail("LU-D052", found="holds the private-use characters U+F8F0 to U+F8F2", advice="remove them")


def _twin(backend: Any, private: dict[str, str], ids: dict[str, int]) -> tuple[Any, list[int]]:
    """A copy of the tokenizer that knows its added tokens by private names only, and its ids' real ones."""
    return _twin_of(backend.to_str(), tuple(private.items()), tuple(ids.items()))


@lru_cache(maxsize=2)  # every stage of a run makes an encoder
def _twin_of(
    tokenizer: str, names: tuple[tuple[str, str], ...], added: tuple[tuple[str, int], ...]
) -> tuple[Any, list[int]]:
    from tokenizers import Tokenizer

    settings, private, ids = json.loads(tokenizer), dict(names), dict(added)
    for token in settings["added_tokens"]:
        token["content"] = private.get(token["content"], token["content"])
    if (model := settings["model"])["type"] != "BPE":  # these find whole pieces, also such as are added tokens
        renamed = {name: alias for name, alias in private.items() if name != model.get("unk_token")}
        if isinstance(model["vocab"], list):
            model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
        else:
            model["vocab"] = {renamed.get(piece, piece): id_ for piece, id_ in model["vocab"].items()}
    settings["post_processor"] = None  # ours is text without BOS; also, ByteLevel would trim the offsets
    settings["truncation"] = settings["padding"] = None
    twin: Any = Tokenizer.from_str(json.dumps(settings))
    to_real = {twin.token_to_id(alias): ids[name] for name, alias in private.items()}
    n = max([twin.get_vocab_size(), *to_real, *twin.get_vocab().values()]) + 1
    return twin, [to_real.get(id_, id_) for id_ in range(n)]
