"""Apertium, a rule-based translator (Forcada et al. 2011), as a child process of each direction that is kept alive.

What Debian's `apertium` script runs is a pipeline of programs that answer each text when a NUL follows; the script
itself holds back all answers until its input ends, so the pipeline is started without it, as `apertium-wblank-mode -z`
writes it. Texts are escaped for Apertium's stream format. Of its marks `*` (a word that it does not know) is counted;
`#` and `@` (a word that it cannot write) are taken away. A process that dies or is silent is started anew.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple, Self

from luthier.errors import DataError
from luthier.prepare.augment.contract import Unmade

MAX_BYTES = 60_000
"""Of one text: it fits into a pipe of Linux, so writing never waits for a process that is stuck."""
GONE = 5
"""So many texts in a row on which the process died or was silent: it is not started again."""
_CODES = {
    "af": "afr", "bg": "bul", "br": "bre", "ca": "cat", "cy": "cym", "da": "dan", "de": "deu", "en": "eng",
    "eo": "epo", "es": "spa", "eu": "eus", "fr": "fra", "gl": "glg", "is": "isl", "it": "ita", "mk": "mkd",
    "nl": "nld", "oc": "oci", "pt": "por", "ro": "ron", "sv": "swe",
}  # fmt: skip
_PACKAGES = {("ca", "en"): "eng-cat", ("en", "eo"): "eo-en", ("en", "es"): "eng-spa", ("en", "gl"): "en-gl"}
_END = "[][\n]"
_SPECIAL = re.compile(r"[\\\^$\[\]{}/@<>]")
# Marks of our own making must not be taken for Apertium's: they travel as characters that no text has.
_MARKS = str.maketrans("*#@", "\ue001\ue002\ue003")
_UNMARKED = str.maketrans("\ue001\ue002\ue003", "*#@")


class Translated(NamedTuple):
    text: str
    unknown: tuple[str, ...] = ()
    """Words that were left as they are."""


Translate = Callable[[Sequence[str]], list[Translated | Unmade]]
"""Many texts at once, each by itself."""


class Apertium:
    """Translates from one language to another; a context manager, which holds the process.

    Raises DataError LU-D141 where Apertium or the direction is not installed, LU-D142 where it keeps dying.
    """

    def __init__(self, source: str, target: str, timeout_s: float) -> None:
        self._name, self._timeout_s = f"{source}-{target}", timeout_s
        self._pipeline = _pipeline(source, target)
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = 0

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if process := self._process:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    with suppress(OSError):
                        stream.close()
            self._process = None

    def __call__(self, text: str) -> Translated | Unmade:
        if not text.strip():
            return Translated(text)
        if any(c in text for c in "\0\ue001\ue002\ue003"):
            return Unmade("a character that the translator does not take")
        # Without a full stop the last words are translated as if more would follow.
        content = (_SPECIAL.sub(r"\\\g<0>", text.translate(_MARKS)) + f".{_END}\0").encode()
        if len(content) > MAX_BYTES:
            return Unmade("too long for the translator")
        for _ in range(2):
            try:
                answer = self._ask(content)
            except (OSError, TimeoutError):
                self.__exit__()
                self._start()
            else:
                self._failed = 0
                return _read(answer)
        self._failed += 1
        if self._failed == GONE:
            found = f"Apertium {self._name} died or was silent for {self._timeout_s:g} s on {GONE} texts in a row"
            raise DataError.of("LU-D142", "data.augment: back_translate", found, "try: echo hello | apertium en-eo")
        return Unmade("the translator gave no answer")

    def _start(self) -> None:
        # "-g" marks unknown words; the second argument is an option of the tagger, of which there is none.
        self._process = subprocess.Popen(
            ["bash", "-c", self._pipeline, "apertium", "-g", ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that the whole pipeline can be ended
            bufsize=0,
        )

    def _ask(self, content: bytes) -> str:
        """Raises TimeoutError, OSError where there is no answer."""
        process, deadline = self._process, time.monotonic() + self._timeout_s
        assert process and process.stdin and process.stdout
        process.stdin.write(content)
        answer = b""
        while not answer.endswith(b"\0"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            if not (piece := os.read(process.stdout.fileno(), 1 << 16)):
                raise OSError("it died")
            answer += piece
        return answer[:-1].decode("utf-8", "replace")


# A backslash keeps what follows it; brackets without one are Apertium's own, around what it did not look at.
_STREAM = re.compile(r"\\(.)|([*#@]+)(?=\w)|[\[\]]", re.DOTALL)


def _read(answer: str) -> Translated:
    said = answer.strip("\0").removesuffix(_END).removesuffix(".")
    marked = [m for m in _STREAM.finditer(said) if m[2] and "*" in m[2]]
    unknown = (re.match(r"\w+", said[m.end() :]) for m in marked)
    text = _STREAM.sub(lambda m: m[1] or "", said).translate(_UNMARKED)
    return Translated(text, tuple(word.group() for word in unknown if word))


def _pipeline(source: str, target: str) -> str:
    """The shell's words for the direction. Raises DataError LU-D141."""
    where = "data.augment: back_translate"
    if not shutil.which("apertium-wblank-mode"):
        advice = "apt-get install apertium apertium-eo-en apertium-eng-spa; or name models or a url"
        raise DataError.of("LU-D141", where, "Apertium 3.8 or later is not installed", advice)
    modes = Path(os.environ.get("APERTIUM_DATADIR", "/usr/share/apertium")) / "modes"
    for a, b in product((source, _CODES.get(source, source)), (target, _CODES.get(target, target))):
        if (mode := modes / f"{a}-{b}.mode").is_file():
            done = subprocess.run(["apertium-wblank-mode", "-z", str(mode)], capture_output=True, timeout=60)
            if done.returncode == 0:
                return done.stdout.decode()
    package = _PACKAGES.get((min(source, target), max(source, target)))
    advice = f"apt-get install apertium-{package}" if package else "apt-cache search apertium- shows the pairs"
    raise DataError.of("LU-D141", where, f"Apertium does not translate {source}-{target} here", advice)
