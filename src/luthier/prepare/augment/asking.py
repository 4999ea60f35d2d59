"""Asking a language model for many replies, none of them twice: kept on disk by what was asked, tokens counted.

Replies are kept as they arrive, in groups, under LUTHIER_CACHE: a run that was stopped asks only for what is missing,
and the same recipe on the same rows asks nothing. A reply that did not come is not kept. Where none of a group came the
endpoint is gone, and that is an error, unless only a few are missing, which it may never answer. This module knows
nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier import chat as chats
from luthier import kept
from luthier.chat import Chat, Reply
from luthier.conversation import Message
from luthier.errors import DataError, printable
from luthier.files import cache_folder, locked
from luthier.settings import check_urls, fingerprint

FIRST, GROUP = 4, 64
"""Conversations that are asked and kept together; the first are few, so that a dead endpoint is told soon."""


class Asking:
    """A chat with a memory. `settings` is what decides a reply besides the conversation."""

    def __init__(self, chat: Chat, settings: Mapping[str, Any], method: str) -> None:
        self._chat, self._method = chat, method
        self._path = cache_folder() / "augment" / f"{fingerprint(dict(settings))[:32]}.jsonl"
        self.tokens = {"prompt": 0, "reply": 0}
        """Of all replies that were given back, kept ones too."""

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        """A reply to each, in order. Raises DataError LU-D142 where the model gives none any more."""
        keys = [fingerprint([m.model_dump() for m in messages]) for messages in conversations]
        with locked(self._path.with_suffix(".lock")):  # two runs may ask the same
            known = self._kept()
            missing = [*{key: m for key, m in zip(keys, conversations, strict=True) if key not in known}.items()]
            at, size = 0, FIRST
            while group := missing[at : at + size]:
                said = dict(zip((key for key, _ in group), self._chat([m for _, m in group]), strict=True))
                self._keep(said)
                if all(reply.failure for reply in said.values()) and (len(said) >= FIRST or not known.keys() & keys):
                    raise self._gone(said, len(missing) - at)
                known |= said
                at, size = at + size, GROUP
        replies = [known[key] for key in keys]
        self.tokens["prompt"] += sum(r.prompt_tokens for r in replies)
        self.tokens["reply"] += sum(r.reply_tokens for r in replies)
        return replies

    def _gone(self, said: Mapping[str, Reply], n_missing: int) -> DataError:
        why = next(reply.failure or "" for reply in said.values())
        found = f"{n_missing} replies did not come, the first because: {printable(why, 300)}"
        advice = "those that came are kept: the same command asks only for what is missing"
        return DataError.of("LU-D142", f"data.augment: {self._method}", found, advice)

    def _kept(self) -> dict[str, Reply]:
        return {row.pop("key"): Reply(**row) for row in kept.rows(self._path)}

    def _keep(self, replies: Mapping[str, Reply]) -> None:
        came = {key: reply for key, reply in replies.items() if reply.failure is None}
        fields = ("text", "model", "prompt_tokens", "reply_tokens")
        kept.append(self._path, ({"key": key, **{f: getattr(r, f) for f in fields}} for key, r in came.items()))


def connect(
    method: str,
    *,
    folder: Path,
    model: str,
    url: str | Sequence[str] | None,
    key_env: str | None,
    max_new_tokens: int,
    timeout_s: float,
    at_once: int,
) -> Asking:
    """With `url` an OpenAI-compatible server's `model`, else a base model on this machine, as in `model.base`.

    Raises DataError LU-D146 for a url that is none or holds a secret; ModelError LU-M001 for no such base, LU-M006 for
    no key.
    """
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if url:
        urls = [url] if isinstance(url, str) else list(url)
        try:
            check_urls(urls, key_env)
        except ValueError as error:
            raise DataError.of("LU-D146", f"data.augment: {method}.url", str(error)) from None
        chat = chats.endpoint(
            urls, model, key_env=key_env, max_new_tokens=max_new_tokens, timeout_s=timeout_s, at_once=at_once
        )
        return Asking(chat, {**settings, "model": model, "urls": urls}, method)
    from luthier.models import find_base

    base = find_base(model, folder)
    chat = chats.local(base, max_new_tokens=max_new_tokens)
    return Asking(chat, {**settings, "model": chats.model_name(base)}, method)
