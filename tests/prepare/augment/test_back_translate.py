"""Round trips through a real Apertium, a sequence-to-sequence model and a server; and what happens when one dies."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from chat_server import Asked as Request
from chat_server import Server, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import DataError, ModelError
from luthier.prepare.augment import apertium
from luthier.prepare.augment.apertium import Apertium, Translate, Translated
from luthier.prepare.augment.back_translate import BackTranslate, back_translate
from luthier.prepare.augment.contract import Unmade
from luthier.prepare.augment.seq2seq import pair

from .rows import asked, made, needs_apertium, talk

__all__ = ["serve"]  # a fixture


def ways(change: Callable[[str], str]) -> tuple[Translate, Translate]:
    def there(texts: Sequence[str]) -> list[Translated | Unmade]:
        return [Translated(change(text)) for text in texts]

    return there, lambda texts: [Translated(text) for text in texts]


# -- Apertium --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def esperanto() -> object:
    with Apertium("en", "eo", 20.0) as translate:
        yield translate


@needs_apertium
def test_one_process_answers_one_text_after_another(esperanto: Apertium) -> None:
    process = esperanto._process
    assert esperanto("hello") == Translated("halo")
    assert esperanto("good morning, friend").text.startswith("bona")  # type: ignore[union-attr]
    assert esperanto("") == Translated("")
    assert esperanto("I want a xylotropic card").unknown == ("xylotropic",)  # type: ignore[union-attr]
    assert esperanto._process is process


@needs_apertium
@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab *#@^$[]{}<>/\\\\.!?\n\t'\"é", max_size=40))
def test_its_marks_and_brackets_travel_unharmed(esperanto: Apertium, text: str) -> None:
    found = esperanto(f"hello {text}")
    assert isinstance(found, Translated)
    for mark in "*#@^$[]{}<>\\":
        assert found.text.count(mark) == text.count(mark), (text, found)
    assert esperanto("hello") == Translated("halo"), "the answer to one text is not that to the next"


@needs_apertium
def test_names_numbers_and_slots_come_back(tmp_path: Path) -> None:
    text = "Please send {name} the 2 red cards to Anna Smith at https://a.example/b?c=1 by 5:30pm."
    with back_translate(folder=tmp_path, via=["es", "eo"]) as method:
        found = asked(method, text, n=2)
        assert len(set(found)) == 2, "each pivot gives one"
        for said in found:
            for span in ("{name}", "2", "Anna Smith", "https://a.example/b?c=1", "5:30pm"):
                assert said.count(span) == 1, said
    with back_translate(folder=tmp_path, via="eo") as method:  # which would write ATMa
        assert (
            "ATM "
            in asked(method, "I made a withdrawal at the ATM machine, and it seems I have been charged too much.")[0]
        )


@needs_apertium
def test_what_no_pipe_holds_is_not_written(esperanto: Apertium) -> None:
    for text in ("word " * 20_000, "\0", "\ue001"):
        assert isinstance(esperanto(text), Unmade)
    assert isinstance(esperanto("[" * 29_000), Translated)
    assert esperanto("hello") == Translated("halo")


@needs_apertium
def test_a_process_that_dies_is_started_again() -> None:
    with Apertium("en", "eo", 20.0) as translate:
        for _ in range(3):
            assert translate._process
            os.killpg(translate._process.pid, signal.SIGKILL)
            assert translate("hello") == Translated("halo")
        process = translate._process
    assert process and process.poll() is not None and translate._process is None, "none is left behind"


@needs_apertium
def test_one_that_is_silent_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apertium, "_pipeline", lambda *_: "sleep 1000")
    started = time.monotonic()
    with Apertium("en", "eo", 0.05) as translate:
        found = [translate("hello") for _ in range(apertium.GONE - 1)]
        assert all(isinstance(one, Unmade) for one in found)
        with pytest.raises(DataError, match="LU-D142"):
            translate("hello")
    assert time.monotonic() - started < 60


@needs_apertium
def test_a_direction_that_is_not_there_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="LU-D141.*en-tlh"):
        back_translate(folder=tmp_path, via="tlh")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="apt-get install apertium"):
        back_translate(folder=tmp_path)


# -- round trips -----------------------------------------------------------------------------------------


def test_what_a_trip_loses_is_said() -> None:
    def method(change: Callable[[str], str], text: str) -> list[str]:
        return asked(BackTranslate({"xx": ways(change)}, 0.2), text)

    assert method(lambda t: t.replace("where", "at what place"), "where is Anna?") == ["at what place is Anna?"]
    assert method(lambda t: t, "where is Anna?") == ["nothing to change"]
    assert method(lambda t: t.replace("XQAX", ""), "where is Anna?") == ["a protected span was lost on the way"]
    assert method(lambda t: t + " XQAX", "where is Anna?") == ["a protected span was lost on the way"]
    assert method(lambda t: "", "where is it?") == ["the translator gave no answer"]
    assert method(lambda t: t + "  , or not ?", "Where is it") == ["Where is it, or not?"]

    def unknown(texts: Sequence[str]) -> list[Translated | Unmade]:
        return [Translated(text, ("blorb", "flurb")) for text in texts]

    assert asked(BackTranslate({"xx": (unknown, unknown)}, 0.2), "a blorb flurb here") == [
        "words that the translator does not know"
    ]

    def leaves(texts: Sequence[str]) -> list[Translated | Unmade]:
        return [Translated(f"{text} kaj", ("kaj",)) for text in texts]

    there, _ = ways(lambda t: t.replace("XQAX", "XQAXaj"))
    assert asked(BackTranslate({"xx": (there, leaves)}, 0.9), "where is it") == [
        "words that the translator does not know"
    ]
    back = ways(lambda t: t.replace("where", "at what place"))[0]
    assert asked(BackTranslate({"xx": (there, back)}, 0.2), "where is Anna?") == ["at what place is Anna?"]


def test_each_text_makes_one_trip_a_pivot() -> None:
    heard: list[str] = []

    def there(texts: Sequence[str]) -> list[Translated | Unmade]:
        heard.extend(texts)
        return [Translated(text.upper()) for text in texts]

    method = BackTranslate({"xx": (there, there)}, 0.2)
    first = asked(method, "where is it?")
    assert asked(method, "where is it?") == first == ["WHERE IS IT?"] and len(heard) == 2


# -- models and servers ----------------------------------------------------------------------------------


def write_models(folder: Path) -> None:
    """Random models of a few weights in `there` and `back`: what they say is noise."""
    torch, transformers, tokenizers = (pytest.importorskip(m) for m in ("torch", "transformers", "tokenizers"))
    torch.manual_seed(4)
    words = ["<pad>", "</s>", "<unk>", *"where is it the card . ?".split()]
    vocab = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(vocab)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=20, **names)
    config = transformers.T5Config(
        vocab_size=len(words), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    for name in ("there", "back"):
        model = transformers.T5ForConditionalGeneration(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def test_a_folder_of_a_model_translates(tmp_path: Path) -> None:
    write_models(tmp_path)
    method = back_translate(folder=tmp_path, models={"xx": ["there", "back"]}, max_unknown=1.0)
    [found] = made(method, talk("where is it ? the card .", "yes"))
    [again] = made(back_translate(folder=tmp_path, models={"xx": ["there", "back"]}), talk("where is it ? the card ."))
    assert getattr(found, "messages", [found])[0] == getattr(again, "messages", [again])[0]
    assert asked(method, "the " * 30) == ["a sentence is too long for the translator"]
    for wrong in (["there"], ["there", "nowhere"]):
        with pytest.raises(DataError, match="LU-D141"):
            back_translate(folder=tmp_path, models={"xx": wrong})


BOTH_WAYS = """
import sys
from pathlib import Path
from random import Random
from ctranslate2.converters import TransformersConverter
from luthier.prepare.augment.seq2seq import pair
from luthier.prepare.augment.apertium import Translated

folder = Path(sys.argv[1])
files = ["tokenizer.json", "tokenizer_config.json"]
TransformersConverter(str(folder / "there"), copy_files=files).convert(str(folder / "fast"))
(slow, _), (fast, _) = (pair([name, "back"], folder, "xx") for name in ("there", "fast"))
words = "where is it the card . ?".split()
texts = [" ".join(Random(n).choices(words, k=1 + n % 15)) for n in range(60)] + ["the " * 30, "it?\\nthe card. it"]
written = slow(texts)
assert fast(texts) == written
assert sum(isinstance(one, Translated) for one in written) > 20 and len({*map(str, written)}) > 5
"""


def test_a_model_of_ctranslate2_writes_what_it_writes_with_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: lm_eval, where a test before has used it, changes what transformers writes."""
    pytest.importorskip("ctranslate2")
    write_models(tmp_path)
    subprocess.run([sys.executable, "-c", BOTH_WAYS, str(tmp_path)], check=True, timeout=120)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"LU-M002(.|\n)*'\.\[ctranslate2\]'"):
        pair(["fast", "back"], tmp_path, "xx")


def test_a_server_translates_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Callable[[Request], None]], Server]
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    server = serve(lambda request: request.say(request.text.replace("where", "at what place")))
    for _ in range(2):
        method = back_translate(folder=tmp_path, via=["es"], url=server.url, model="m")
        assert asked(method, "where is Anna?") == ["at what place is Anna?"]
        assert len(server.asked) == 2, "there and back; the second time from disk"
    assert "XQAX" in server.asked[0].text and "Anna" not in server.asked[0].text
    assert "English to Spanish" in server.asked[0].body["messages"][0]["content"]


@pytest.mark.parametrize(
    "params",
    [
        {"via": []},
        {"via": ["en"]},
        {"url": "http://x/v1"},
        {"max_unknown": 2.0},
        {"url": "http://me:secret@x/v1", "model": "m"},
        {"url": "x", "model": "m"},
    ],
)
def test_wrong_parameters_are_refused(tmp_path: Path, params: dict[str, object]) -> None:
    with pytest.raises(DataError, match="LU-D146"):
        back_translate(folder=tmp_path, **params)  # type: ignore[arg-type]
