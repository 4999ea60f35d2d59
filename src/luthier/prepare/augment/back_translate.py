"""Back translation: into another language and back, so that the same is said in other words (Sennrich et al. 2016).

Three translators stand in for one another: Apertium, two sequence-to-sequence models a pivot (`seq2seq.py`), or an
OpenAI-compatible endpoint. Protected spans travel as placeholders. A round trip is given up where the translator did
not know too many of the words or left one of its own, lost a placeholder or came back empty; what comes back is
filtered like any candidate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from random import Random
from typing import Self

from luthier.conversation import Conversation, Message
from luthier.errors import DataError
from luthier.prepare.augment.apertium import Apertium, Translate, Translated
from luthier.prepare.augment.asking import Asking, connect
from luthier.prepare.augment.contract import Asked, Told, Unmade, changeable, check_fraction, replaced
from luthier.prepare.augment.protected import protected
from luthier.prepare.augment.seq2seq import pair

_PLACE = re.compile(r"(XQ[A-Z]+X)[^\W\dA-Z_]*")
"""A placeholder, with the ending that it may have got."""
_LANGUAGES = {
    "en": "English", "es": "Spanish", "eo": "Esperanto", "ca": "Catalan", "gl": "Galician", "fr": "French",
    "de": "German", "it": "Italian", "pt": "Portuguese", "nl": "Dutch", "pl": "Polish", "ru": "Russian",
    "tr": "Turkish", "ar": "Arabic", "hi": "Hindi", "zh": "Chinese", "ja": "Japanese",
}  # fmt: skip
_INSTRUCTION = (
    "You are a translator. Translate the user's text from {source} to {target}. Reply with the translation alone. "
    "Words such as XQAX are placeholders: keep each as it is, once."
)


def back_translate(
    *,
    folder: Path,
    via: str | Sequence[str] = ("es",),
    language: str = "en",
    models: Mapping[str, Sequence[str]] | None = None,
    url: str | Sequence[str] | None = None,
    model: str = "",
    key_env: str | None = None,
    max_unknown: float = 0.2,
    timeout_s: float = 20.0,
    at_once: int = 4,
) -> BackTranslate:
    """Each pivot gives one candidate, in an order that is drawn for each row.

    Args:
        folder: The recipe's.
        via: Pivots, as ISO 639 codes.
        language: Of the data.
        models: Pivot -> [folder of the model there, folder of the model back], of transformers or CTranslate2; then
            `via` is not read.
        url: Where an OpenAI-compatible server translates, up to and with /v1; `model` and `key_env` as for a judge.
        max_unknown: The greatest share of a text's words that Apertium may not know.
        timeout_s: For one text, or one try at the server.
        at_once: Requests in flight for each url.

    Raises DataError LU-D141, LU-D146; ModelError LU-M002, LU-M006.
    """
    check_fraction("back_translate", "max_unknown", max_unknown)
    pivots = list(models) if models else [via] if isinstance(via, str) else list(via)
    if not pivots or language in pivots or (url and not model) or (url and models):
        found = "it needs pivots other than the language itself; a url needs a model; and url and models exclude"
        raise DataError.of("LU-D146", "data.augment: back_translate", f"{found} each other", "see docs/augmentation.md")
    asking = None
    ways: dict[str, tuple[Translate, Translate]] = {}
    opened: list[Apertium] = []
    if url:
        method = "back_translate"
        asking = connect(
            method, folder=folder, model=model, url=url, key_env=key_env, max_new_tokens=1024,
            timeout_s=timeout_s, at_once=at_once,
        )  # fmt: skip
    for pivot in pivots:
        if asking:
            ways[pivot] = (_by_chat(asking, language, pivot), _by_chat(asking, pivot, language))
        elif models:
            ways[pivot] = pair(models[pivot], folder, pivot)
        else:
            there, back = Apertium(language, pivot, timeout_s), Apertium(pivot, language, timeout_s)
            opened += [there, back]
            ways[pivot] = (_one_by_one(there), _one_by_one(back))
    return BackTranslate(ways, max_unknown, opened, asking)


class BackTranslate:
    def __init__(
        self,
        ways: Mapping[str, tuple[Translate, Translate]],
        max_unknown: float,
        opened: Sequence[Apertium] = (),
        asking: Asking | None = None,
    ) -> None:
        self._ways, self._max_unknown, self._opened, self._asking = ways, max_unknown, opened, asking
        self._stack = ExitStack()
        self._known: dict[tuple[str, str], str | Unmade] = {}

    def __enter__(self) -> Self:
        for one in self._opened:
            self._stack.enter_context(one)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, conversation: Conversation, rng: Random) -> Iterator[Conversation | Unmade]:
        places = changeable(conversation)
        for pivot in self._order(rng):
            texts = [conversation.messages[i].content for i in places]
            trips = self._trips(pivot, texts)
            failed = next((trip for trip in trips if isinstance(trip, Unmade)), None)
            yield failed or replaced(conversation, {i: str(t) for i, t in zip(places, trips, strict=True)})

    def ahead(self, asked: Sequence[Asked], train: Sequence[Conversation]) -> None:
        """All that will be asked of a pivot together."""
        texts: dict[str, dict[str, None]] = {pivot: {} for pivot in self._ways}
        for conversation, rng, n in asked:
            for pivot in islice(self._order(rng), n):
                texts[pivot] |= dict.fromkeys(conversation.messages[i].content for i in changeable(conversation))
        for pivot, wanted in texts.items():
            self._trips(pivot, [*wanted])

    def told(self) -> Told:
        return Told(tokens=self._asking.tokens if self._asking else {})

    def _order(self, rng: Random) -> list[str]:
        pivots = list(self._ways)
        rng.shuffle(pivots)
        return pivots

    def _trips(self, pivot: str, texts: Sequence[str]) -> list[str | Unmade]:
        new = [text for text in dict.fromkeys(texts) if (pivot, text) not in self._known]
        for text, trip in zip(new, self._round(pivot, new), strict=True):
            self._known[pivot, text] = trip
        return [self._known[pivot, text] for text in texts]

    def _round(self, pivot: str, texts: Sequence[str]) -> list[str | Unmade]:
        there, back = self._ways[pivot]
        masked = [_masked(text) for text in texts]
        abroad = [_bare(one) for one in there([text for text, _ in masked])]
        gone = [i for i, one in enumerate(abroad) if not isinstance(one, Unmade)]
        home = dict(zip(gone, back([abroad[i].text for i in gone]), strict=True))  # type: ignore[union-attr]
        return [self._checked(text, masked[i][1], abroad[i], home.get(i)) for i, text in enumerate(texts)]

    def _checked(
        self, text: str, spans: Mapping[str, str], abroad: Translated | Unmade, home: Translated | Unmade | None
    ) -> str | Unmade:
        """What came back, made neat, or why it is of no use."""
        if isinstance(abroad, Unmade):
            return abroad
        if home is None or isinstance(home, Unmade):
            return home or Unmade("the translator gave no answer")
        unknown = [word for word in abroad.unknown if word not in spans]
        foreign = [word for word in home.unknown if word not in spans and word not in text]
        if foreign or len(unknown) > self._max_unknown * len(text.split()):
            return Unmade("words that the translator does not know")
        if any(home.text.count(name) != 1 for name in spans):
            return Unmade("a protected span was lost on the way")
        said = _neat(_PLACE.sub(lambda m: spans.get(m[1], m[1]), home.text), text)
        return said or Unmade("the translator gave no answer")


def _masked(text: str) -> tuple[str, dict[str, str]]:
    """The text with XQAX, XQBX ... in the places of protected spans, and what they stand for."""
    parts, spans, at = [], {}, 0
    for number, span in enumerate(protected(text)):
        name = f"XQ{_letters(number)}X"
        spans[name] = text[span.start : span.stop]
        parts += [text[at : span.start], name]
        at = span.stop
    return "".join([*parts, text[at:]]), spans


def _bare(one: Translated | Unmade) -> Translated | Unmade:
    """Without the endings that a language hangs onto a placeholder, as Esperanto does."""
    return one if isinstance(one, Unmade) else one._replace(text=_PLACE.sub(r"\1", one.text))


def _letters(number: int) -> str:
    return ("" if number < 26 else _letters(number // 26 - 1)) + chr(ord("A") + number % 26)


def _neat(said: str, like: str) -> str:
    """Without the spaces that translation leaves behind, and beginning with a capital if the text did."""
    lines = [re.sub(r"[ \t]+", " ", re.sub(r"[ \t]+(?=[,.;:!?])", "", line)).strip() for line in said.split("\n")]
    said = "\n".join(lines).strip()
    first = like.lstrip()[:1]
    return said[:1].upper() + said[1:] if first.isupper() else said


# -- translators ---------------------------------------------------------------------------------------------------


def _one_by_one(translate: Callable[[str], Translated | Unmade]) -> Translate:
    """Line by line: Apertium moves words over a line's end."""

    def whole(text: str) -> Translated | Unmade:
        lines = [translate(line) for line in text.split("\n")]
        failed = next((line for line in lines if isinstance(line, Unmade)), None)
        if failed:
            return failed
        done = [line for line in lines if not isinstance(line, Unmade)]
        return Translated("\n".join(line.text for line in done), tuple(w for line in done for w in line.unknown))

    return lambda texts: [whole(text) for text in texts]


def _by_chat(asking: Asking, source: str, target: str) -> Translate:
    names = {"source": _LANGUAGES.get(source, source), "target": _LANGUAGES.get(target, target)}
    system = Message(role="system", content=_INSTRUCTION.format(**names))

    def translate(texts: Sequence[str]) -> list[Translated | Unmade]:
        replies = asking([[system, Message(role="user", content=text)] for text in texts])
        return [Unmade("no reply") if r.failure is not None else Translated(r.text.strip()) for r in replies]

    return translate
