"""Answers by servers: OpenAI-compatible ones that hold the base model write what is asked of base and tuned model.

- A prompt goes as token ids, so it is the one that was trained on, whatever template a server has; it names every
  setting of sampling, because servers fill in others (vLLM: those of the model's generation_config.json).
- The tuned model is loaded as a LoRA adapter by vLLM's `POST /load_lora_adapter`, under a name made of its hash, so
  that no other is asked in its place, and unloaded afterwards.
- A server is asked only after it began at least half of CHECKED greedy answers as the model does on this machine; one
  that cannot be reached is left out, and that is said.
- Every answer that arrives is kept beside the exams', by the request that it answers. An answer that does not arrive
  is an error, because an evaluation with holes compares nothing; the next run asks only what is missing.

This module knows nothing of suites or metrics.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from luthier import kept
from luthier.decoder import Decoder
from luthier.errors import ModelError, printable
from luthier.evaluate.exam import Answer, Asked, Drawing, Write, write_here
from luthier.files import locked
from luthier.http import Endpoint, Failed, key_in, parse, post, post_all
from luthier.progress import Advance, Reporter
from luthier.settings import Servers, fingerprint
from luthier.store import folder_hash

CHECKED = 4
"""Prompts that are also answered on this machine, for each server."""
BEGINNING = 16
"""Tokens of an answer that are compared."""
GONE = 64
"""So many requests in a row without an answer: the rest is not asked."""
UNCHANGED = {
    "top_p": 1,
    "top_k": -1,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""Nothing between the logits and the choice but the temperature."""

Said = list[int] | tuple[str, bool]
"""An answer as ids, where the server tells them, or as text and whether it was cut off."""


def connect(settings: Servers) -> Endpoint:
    """Raises ModelError LU-M006 where there is no key."""
    return Endpoint(settings.url, key_in(settings.key_env), settings.timeout_s, settings.at_once)


@contextlib.contextmanager
def writing(
    settings: Servers, model: str, adapter: Path | None, answers: Path, name: str, report: Reporter
) -> Iterator[Write]:
    """The servers' way to write answers; they are reached when the first answer is missing.

    Args:
        settings: Where the servers are.
        model: Fingerprint of the weights.
        adapter: The folder of the tuned model, None for the base.
        answers: The folder in which answers are kept, as `served-KEY.jsonl`.
        name: What the model is called here: base or tuned.
        report: Told which servers are left out.

    What is written raises ModelError LU-M007 (no server can be asked), LU-M008 (a server has another model) and LU-M009
    (answers are missing).
    """
    endpoint, path = connect(settings), _kept_in(settings, model, answers)
    served_as = f"luthier-{folder_hash(adapter)[:16]}" if adapter else settings.model
    ready: Endpoint | None = None
    with contextlib.ExitStack() as afterwards:

        def write(decoder: Decoder, asked: Asked, advance: Advance) -> list[Answer]:
            nonlocal ready
            bodies = [_body(served_as, asked, number) for number in range(len(asked.prompts))]
            keys = [fingerprint(body) for body in bodies]
            with locked(path.with_suffix(".lock")):  # two runs of one workspace may ask the same
                known: dict[str, Said] = {row["key"]: row["said"] for row in kept.rows(path) if "key" in row}
                missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
                advance(len(keys) - len(missing))
                if missing:
                    if ready is None:
                        loaded = afterwards.enter_context(_loaded(endpoint, served_as, adapter, report))
                        ready = _checked(loaded, served_as, decoder, asked, name, path, report)
                    known |= _ask(ready, missing, path, advance)
            return [_answer(asked, known[key]) for key in keys]

        yield write


def about(settings: Servers, model: str, answers: Path, name: str) -> list[str]:
    """What a reader must know of the answers that servers wrote."""
    checks = [row["check"] for row in kept.rows(_kept_in(settings, model, answers)) if "check" in row]
    if not checks:
        return []
    alike, n = (sum(column) for column in zip(*checks, strict=True))
    text = f"{name}: the written answers come from servers of {settings.model}; of {n} prompts that were also answered"
    text += f" on this machine, {alike} began alike (the first {BEGINNING} tokens)"
    return [text + ("" if alike == n else "; the numerics of other kernels differ")]


# -- which servers ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _loaded(endpoint: Endpoint, served_as: str, adapter: Path | None, report: Reporter) -> Iterator[Endpoint]:
    """The servers with the adapter; what was not there before is unloaded afterwards. Raises ModelError LU-M007."""
    if adapter is None:
        yield endpoint
        return
    body = {"lora_name": served_as, "lora_path": str(adapter.resolve())}
    ours: list[Endpoint] = []
    holding: list[str] = []
    failures: dict[str, str] = {}
    try:
        for at in _each(endpoint):
            try:
                post(at, "load_lora_adapter", body, bytes)
                ours.append(at)
            except Failed as failed:
                if "already been" not in str(failed):  # loaded, by a run that goes on or was killed
                    failures[at.urls[0]] = str(failed)
                    continue
            holding += at.urls
        yield _without(endpoint, holding, failures, f"cannot load the adapter {adapter.resolve()}", report)
    finally:
        for at in ours:
            try:
                post(at, "unload_lora_adapter", {"lora_name": served_as}, bytes)
            except Failed as failed:
                report.say(f"{at.urls[0]} still holds the adapter {served_as}: {failed}")


def _checked(
    endpoint: Endpoint, served_as: str, decoder: Decoder, asked: Asked, name: str, path: Path, report: Reporter
) -> Endpoint:
    """The servers that begin greedy answers as this machine does.

    Raises ModelError LU-M007, LU-M008.
    """
    prompts = list(dict.fromkeys(map(tuple, asked.prompts)))
    prompts = prompts[:: max(len(prompts) // CHECKED, 1)][:CHECKED]
    length = min(BEGINNING, asked.max_new_tokens)
    few = replace(asked, prompts=prompts, max_new_tokens=length, drawing=Drawing())
    here = write_here(decoder, few, lambda *_, **__: None)
    bodies = [_body(served_as, few, number) for number in range(len(prompts))]
    holding: list[str] = []
    failures: dict[str, str] = {}
    for at in _each(endpoint):
        found = list(post_all(at, "completions", bodies, _read))
        pairs = [(here[number].text, _answer(few, said).text) for number, said in found if not isinstance(said, Failed)]
        if not pairs:
            failures[at.urls[0]] = str(found[0][1])
            continue
        _compare(at.urls[0], pairs, name, path)
        holding += at.urls
    return _without(endpoint, holding, failures, f"cannot answer as {served_as}", report)


def _compare(url: str, pairs: Sequence[tuple[str, str]], name: str, path: Path) -> None:
    """Keep how many of (here, there) are alike. Raises ModelError LU-M008 where less than half are."""
    # What comes as text may end within a character, of which servers send what they like.
    differ = [(here, there) for here, there in pairs if here.rstrip("\ufffd") != there.rstrip("\ufffd")]
    if 2 * len(differ) > len(pairs):
        here, there = (printable(text, 80) for text in differ[0])
        found = (
            f"begins {len(differ)} of {len(pairs)} answers otherwise than {name} here: '{there}' instead of '{here}'"
        )
        advice = "serve the very weights of model.base, without a generation config: see docs/evaluate.md"
        raise ModelError.of("LU-M008", url, found, advice)
    kept.append(path, [{"check": [len(pairs) - len(differ), len(pairs)]}])


def _each(endpoint: Endpoint) -> list[Endpoint]:
    return [replace(endpoint, urls=(url,)) for url in endpoint.urls]


def _without(
    endpoint: Endpoint, urls: Sequence[str], failures: Mapping[str, str], what: str, report: Reporter
) -> Endpoint:
    """The endpoint with these urls only. Raises ModelError LU-M007 where there are none."""
    for url, reason in failures.items():
        if not urls:
            advice = "docs/evaluate.md says how such a server is started; without evaluate.servers it is done here"
            raise ModelError.of("LU-M007", url, f"{what}: {reason}", advice)
        report.say(f"{url} is left out: {what}: {reason}")
    return replace(endpoint, urls=tuple(urls))


# -- answers ---------------------------------------------------------------------------------------------


def _body(served_as: str, asked: Asked, number: int) -> dict[str, Any]:
    """The request for an answer. Its seed is its own: prompts of one seed would share their luck."""
    how, digest = asked.drawing, hashlib.sha256(f"{asked.drawing.seed} {number}".encode()).digest()
    return {
        "model": served_as,
        "prompt": list(asked.prompts[number]),
        "max_tokens": asked.max_new_tokens,
        "temperature": how.temperature,
        "seed": int.from_bytes(digest[:4], "big") >> 1 if how.temperature else 0,
        "stop_token_ids": sorted(asked.end_ids),
        "return_token_ids": True,
        **UNCHANGED,
    }


def _read(content: bytes) -> Said:
    def pick(data: Any) -> Said:
        choice = data["choices"][0]
        ids = choice.get("token_ids")
        if ids is None:
            return choice["text"].strip(), choice.get("finish_reason") == "length"
        return [int(id_) for id_ in ids]

    return parse(content, "completion", pick)


def _answer(asked: Asked, said: Said) -> Answer:
    """Up to its end, where the server did not stop."""
    if said and isinstance(said[0], str):
        text, cut = said
        for id_ in asked.end_ids:
            text, end, _ = text.partition(asked.tokenizer.decode([id_]))
            cut = cut and not end
        return Answer(text.strip(), cut)
    return asked.answer(list(takewhile(lambda id_: id_ not in asked.end_ids, said)))


def _ask(endpoint: Endpoint, missing: Mapping[str, Mapping[str, Any]], path: Path, advance: Advance) -> dict[str, Said]:
    """The missing answers, each kept when it arrives. Raises ModelError LU-M009 where one does not."""
    found: dict[str, Said] = {}
    failures: list[Failed] = []
    keys, in_a_row = list(missing), 0
    with contextlib.closing(post_all(endpoint, "completions", list(missing.values()), _read)) as replies:
        for number, reply in replies:
            if isinstance(reply, Failed):
                failures.append(reply)
                in_a_row += 1
                if in_a_row == GONE:
                    break
            else:
                found[keys[number]], in_a_row = reply, 0
                kept.append(path, [{"key": keys[number], "said": reply}])
            advance()
    if failures:
        text = f"{len(missing) - len(found)} of {len(missing)} answers did not arrive, the first because: {failures[0]}"
        advice = "those that arrived are kept: the same command asks only for what is missing"
        raise ModelError.of("LU-M009", "evaluate.servers", text, advice)
    return found


def _kept_in(settings: Servers, model: str, answers: Path) -> Path:
    return answers / f"served-{fingerprint([model, settings.model])[:32]}.jsonl"
