"""Sequence-to-sequence models that translate: of transformers, or of CTranslate2 (a folder with a `model.bin`, and the
tokenizer's files beside it), which runs the same models in less memory and time.

Sentence by sentence, greedily. Nothing is cut, neither of a sentence nor of its translation.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from luthier.errors import DataError, ModelError, extra
from luthier.prepare.augment.apertium import Translate, Translated
from luthier.prepare.augment.contract import Unmade
from luthier.settings import located

BATCH = 16
WHERE = "data.augment: back_translate"


class Loaded(NamedTuple):
    tokenizer: Any
    max_tokens: float
    """Of a sentence."""
    write: Callable[[list[str], int], list[tuple[str, bool]]]
    """Of some sentences, with room for so many tokens: what each becomes, and whether that came to its end."""


def pair(folders: Sequence[str], folder: Path, pivot: str) -> tuple[Translate, Translate]:
    """Raises DataError LU-D141 where there are no two folders of models, ModelError LU-M002 without CTranslate2."""
    paths = [located(one, folder) for one in folders]
    for path in paths:
        if len(paths) != 2 or not (path / "config.json").is_file():
            found = f"models.{pivot} names no two folders of models with a config.json: {', '.join(map(str, paths))}"
            raise DataError.of("LU-D141", WHERE, found, "[there, back], from the recipe")
        if _is_ctranslate2(path) and importlib.util.find_spec("ctranslate2") is None:
            raise ModelError.of("LU-M002", WHERE, f"{path} is a model of CTranslate2", extra("ctranslate2"))
    return _translator(paths[0]), _translator(paths[1])


def _is_ctranslate2(folder: Path) -> bool:
    return (folder / "model.bin").is_file()


def _translator(folder: Path) -> Translate:
    """Of a folder, whose model is loaded when it is first asked."""
    loaded: list[Loaded] = []

    def translate(texts: Sequence[str]) -> list[Translated | Unmade]:
        if not loaded:
            loaded.append(_ctranslate2(folder) if _is_ctranslate2(folder) else _transformers(folder))
        pieces = [re.split(r"(\n+|(?<=[.!?])[ ]+)", text) for text in texts]
        sentences = [*dict.fromkeys(p for text in pieces for p in text[::2] if p.strip())]
        done = dict(zip(sentences, _written(loaded[0], sentences), strict=True))
        return [_joined([done.get(piece, piece) for piece in text]) for text in pieces]

    return translate


def _joined(pieces: Sequence[str | Unmade]) -> Translated | Unmade:
    failed = next((piece for piece in pieces if isinstance(piece, Unmade)), None)
    return failed or Translated("".join(map(str, pieces)))


def _written(model: Loaded, sentences: Sequence[str]) -> list[str | Unmade]:
    """What the model writes for each."""
    lengths = [len(ids) for ids in model.tokenizer(list(sentences), verbose=False)["input_ids"]] if sentences else []
    order = sorted((i for i, n in enumerate(lengths) if n <= model.max_tokens), key=lambda i: lengths[i])
    found: list[str | Unmade] = [Unmade("a sentence is too long for the translator")] * len(sentences)
    for at in range(0, len(order), BATCH):
        group = order[at : at + BATCH]
        room = 2 * max(lengths[i] for i in group) + 10
        for i, (text, ended) in zip(group, model.write([sentences[i] for i in group], room), strict=True):
            found[i] = text.strip() if ended else Unmade("the translator came to no end")
    return found


def _transformers(folder: Path) -> Loaded:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def write(sentences: list[str], room: int) -> list[tuple[str, bool]]:
        batch = tokenizer(sentences, return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=room)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        ends = torch.isin(ids[:, 1:], torch.tensor(model.generation_config.eos_token_id)).any(dim=1).tolist()
        return list(zip(texts, ends, strict=True))

    positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    return Loaded(tokenizer, min(tokenizer.model_max_length, positions), write)


def _ctranslate2(folder: Path) -> Loaded:
    from ctranslate2 import Translator
    from transformers import AutoTokenizer

    model, tokenizer = Translator(str(folder)), AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def write(sentences: list[str], room: int) -> list[tuple[str, bool]]:
        asked = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(sentences)["input_ids"]]
        lengths = {"min_decoding_length": 0, "max_decoding_length": room, "max_input_length": 0}  # 0: not cut
        results = model.translate_batch(asked, beam_size=1, return_end_token=True, **lengths)
        ids = [tokenizer.convert_tokens_to_ids(one.hypotheses[0]) for one in results]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [(text, tokenizer.eos_token_id in one) for text, one in zip(texts, ids, strict=True)]

    return Loaded(tokenizer, tokenizer.model_max_length, write)
