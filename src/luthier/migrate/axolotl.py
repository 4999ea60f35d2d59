"""Axolotl: the YAML of `axolotl train`.

Looked up in utils/schemas/ and docs/ of axolotl-ai-cloud/axolotl (2026). It reads YAML 1.1, turns texts into numbers,
and drops keys that it does not know.
"""

from __future__ import annotations

from typing import Any

from luthier.migrate.axolotl_keys import OTHERS
from luthier.migrate.data import FILES, HEAD, PATH_DOC, SHARDS, SPLIT, STREAMED, listed, part_of_name, places
from luthier.migrate.engine import Fate, Rule, Table, View
from luthier.migrate.kinds import anything, either, flag, mapping, mappings, names, number, text, whole
from luthier.migrate.lora import (
    ALPHA,
    DORA,
    DROPOUT,
    INIT,
    LORA_PLUS,
    LORA_PLUS_EMBEDDINGS,
    PARAMETERS,
    RANK,
    RSLORA,
    WHOLE_MODULES,
    bits,
    targets,
)
from luthier.migrate.peer import Peer, Sources
from luthier.migrate.rules import carried, fixed, keys, no_effect, not_supported, only, with_default
from luthier.migrate.shapes import Shape, fate_of, instruction
from luthier.migrate.trainer import (
    ADAM,
    BASE,
    CLIPPING,
    FOREIGN_CODE,
    HALVES,
    LOSS,
    NOISE,
    OPTIMIZER,
    OUTPUT,
    REVISION,
    RUNTIME,
    STRATEGIES,
    batch,
    best,
    epochs,
    held_out,
    packing,
    patience,
    schedule,
    steps_at_most,
    too_long,
    warmup,
)

OWN_TEMPLATE = "the one that the tokenizer brings is used: see luthier check"
REWRITTEN = "write them as `messages`, or as prompt and completion"
LEARNED = "here the assistant's turns are, and messages that say `learn: true`"

# -- data ------------------------------------------------------------------------------------------------

ABOUT = "{instruction}\n\n{input?}"
TYPES = {
    "alpaca": Shape("prompt_completion", {"prompt": ABOUT, "completion": "output"}),
    "gpteacher": Shape("prompt_completion", {"prompt": ABOUT, "completion": "response"}),
    "alpaca_chat": Shape("prompt_completion", {"prompt": ABOUT, "completion": "response"}),
    "alpaca_chat.load_concise": Shape("prompt_completion", {"prompt": ABOUT, "completion": "response"}),
    "alpaca_chat.load_qa": Shape("prompt_completion", {"prompt": "question", "completion": "answer"}),
    "alpaca_chat.load_camel_ai": Shape("prompt_completion", {"prompt": "message_1", "completion": "message_2"}),
    "alpaca_w_system": Shape("prompt_completion", {"prompt": ABOUT, "completion": "output", "system": "system"}),
    "alpaca_w_system.load_open_orca": Shape(
        "prompt_completion", {"prompt": "question", "completion": "response", "system": "system_prompt"}
    ),
    "jeopardy": Shape("prompt_completion", {"prompt": "question", "completion": "answer"}),
    "oasst": Shape("prompt_completion", {"prompt": "INSTRUCTION", "completion": "RESPONSE"}),
    "summarizetldr": Shape("prompt_completion", {"prompt": "article", "completion": "summary"}),
    "context_qa": Shape("prompt_completion", {"prompt": "{article}\n\n{question}", "completion": "answer"}),
    "context_qa.load_v2": Shape("prompt_completion", {"prompt": "{context}\n\n{question}", "completion": "answer"}),
    "creative_acr.load_answer": Shape("prompt_completion", {"prompt": "instruction", "completion": "revision"}),
    "metharme": Shape("prompt_completion", {"prompt": "prompt", "completion": "generation"}),
}
"""`type` -> how such rows are read; what stands after a colon says how Axolotl asked, in no template of the model's."""


def _tags(view: View) -> tuple[str, str]:
    """What a message calls its role and its content."""
    given = view("message_property_mappings") or {}
    role = given.get("role") or view("message_field_role") or "role"
    return str(role), str(given.get("content") or view("message_field_content") or "content")


def _chat(view: View, default: str) -> Shape | None:
    fields = {"messages": view("field_messages") or default}
    return Shape("messages", fields) if _tags(view) in (("role", "content"), ("from", "value")) else None


def shape(view: View) -> Shape | None:
    """How the rows of a data set are read; None where nothing here reads them."""
    named = view("type")
    if view.top("rl"):
        return Shape("rated" if view.top("rl") == "kto" else "preference")
    if isinstance(named, dict):
        return _own_type(view.inside("type")[0]) if named else TYPES["alpaca"]
    if named is None:
        return Shape("tokens")
    kind = named.partition(":")[0]
    if kind.startswith("chat_template"):
        return _chat(view, "messages")
    if kind.startswith("sharegpt"):
        return Shape("messages", {"messages": view("field_messages") or "conversations"})
    if kind in ("completion", "pretrain"):
        return Shape("text", {"text": view("field") or view("text_column") or "text"})
    return TYPES.get(kind)


def _own_type(view: View) -> Shape:
    asked, about = view("field_instruction") or "instruction", view("field_input") or "input"
    return instruction(asked, about, view("field_output") or "output", "\n\n", view("field_system"))


def _read_as(value: Any, view: View) -> Fate:
    return fate_of(shape(view))


def _type(value: Any, view: View) -> Fate:
    fate = _read_as(value, view)
    own = isinstance(value, str) and value.partition(":")[0] in TYPES
    if fate.state == "carried" and own:
        return Fate("carried", f"{fate.said}; asked in the model's chat template, not in Axolotl's own words")
    return fate


def _part_of_type(value: Any, view: View) -> Fate:
    return _read_as(value, view.above) if view.above else Fate("carried")


def _roles_to_train(value: list[str], view: View) -> Fate:
    if value and set(value) <= {"assistant", "gpt"}:
        return Fate("no_effect", "as here")
    return Fate("not_supported", f"which turns are learned; {LEARNED}")


def _located(view: View) -> tuple[list[str], Fate]:
    return places(view("path"), listed(view("data_files")), view, view("name"), view("revision"))


def _path(value: str, view: View) -> Fate:
    return _located(view)[1]


READ_AS = "`data.sources`: format and fields"
FORMAT_OF = Rule(text, READ_AS, _read_as)
OWN_TYPE: Table = {
    **keys("field_instruction field_input field_output field_system", Rule(text, READ_AS, _part_of_type)),
    **keys(
        "format no_input_format system_format",
        not_supported(
            "a form of words around the columns", "the model's chat template says who speaks; see luthier check"
        ),
    ),
    "system_prompt": not_supported("a system text", "data.system", text),
    **keys(
        "field_prompt field_chosen field_rejected field_completion field_label prompt_format chosen_format "
        "rejected_format completion_format",
        Rule(anything, READ_AS, _part_of_type),
    ),
}
SOURCE: Table = {
    "path": Rule(text, PATH_DOC, _path, required=True),
    "data_files": FILES,
    "ds_type": no_effect("how a file is read is told from the file"),
    "split": SPLIT,
    "name": part_of_name("a configuration", lambda view: _located(view)[0]),
    "revision": part_of_name("a revision", lambda view: _located(view)[0], HEAD),
    **keys("shards shards_idx skip", SHARDS),
    "preprocess_shards": RUNTIME,
    "trust_remote_code": FOREIGN_CODE,
    "type": Rule(either(text, mapping), READ_AS, _type, inner=OWN_TYPE),
    "field": FORMAT_OF,
    "text_column": FORMAT_OF,
    **keys("field_messages message_field_role message_field_content", FORMAT_OF),
    "message_property_mappings": Rule(mapping, READ_AS, _read_as),
    **keys(
        "conversation chat_template chat_template_jinja",
        not_supported("a chat template for these rows", OWN_TEMPLATE, off=(None, "", "tokenizer_default")),
    ),
    **keys(
        "field_tools field_thinking template_thinking_key split_thinking",
        not_supported(
            "tools or thinking in columns of their own", "calls are not learned yet; thinking is part of the answer"
        ),
    ),
    "roles": not_supported("other names of the roles", "name them user, assistant, system and tool in the rows"),
    "roles_to_train": Rule(names, f"no effect: assistant; others are not supported: {LEARNED}", _roles_to_train),
    "train_on_eos": fixed(text, ("turn",), "which end tokens are learned", "the one after each learned turn is"),
    "train_on_eot": fixed(text, ("turn",), "which end tokens are learned", "the one after each learned turn is"),
    "message_field_training": fixed(text, ("learn",), "the key by which a message is learned", "call it `learn`"),
    "message_field_training_detail": not_supported("parts of a message that are learned", "whole messages are"),
    "drop_system_message": not_supported("system turns are left out", "take them out of the rows", flag),
    **keys(
        "input_transform input_format field_human field_model logprobs_field temperature step_separator "
        "max_completion_length train_on_last_step_only length sequence_length min_input_id max_input_id seed",
        not_supported("a way to make or read rows", REWRITTEN, off=(None,)),
    ),
}
TEXTS: Table = SOURCE | {"type": with_default(SOURCE["type"], "pretrain")}
"""For `pretraining_dataset`."""
LISTED = either(mappings, mapping, text)


def _entries(key: str, view: View) -> list[View]:
    value = view(key)
    if isinstance(value, str):  # an old form: the path alone
        return [View({"path": value}, TEXTS, view.place, view)]
    return view.inside(key)


def sources(view: View) -> Sources:
    found = []
    for key, side in (("datasets", {}), ("pretraining_dataset", {}), ("test_datasets", {"split": "validation"})):
        for entry in _entries(key, view):
            reading = shape(entry)
            paths, _ = _located(entry)
            found += [{"path": path} | side | (reading.settings() if reading else {}) for path in paths]
    return found


def _whole_list(value: Any, view: View) -> Fate:
    return Fate("carried", "`data.sources`, as texts")


# -- training --------------------------------------------------------------------------------------------


def _adapter(value: str, view: View) -> Fate:
    if value in ("full", "lora", "qlora"):
        return Fate("carried", "", {"model.adapt.method": "full" if value == "full" else "lora"})
    said = f"the adapter '{value[:30]}'; the recipe has LoRA, and docs/techniques.md what else there is"
    return Fate("not_supported", said, {"model.adapt.method": "lora"})


def _all_linear(value: bool, view: View) -> Fate:
    return Fate("carried", "", {"model.adapt.target": "all-linear"}) if value else Fate("no_effect", "is off")


def _some_modules(value: list[str], view: View) -> Fate:
    if view("lora_target_linear"):
        return Fate("no_effect", "lora_target_linear names all linear layers already")
    return targets("all-linear").by(value, view) if value else Fate("no_effect", "is empty")


def _excess(value: str, view: View) -> Fate:
    if value == "truncate":
        return Fate("not_supported", "longer rows were cut; here they are rejected: raise data.max_tokens")
    if value == "raise":
        return Fate("carried", "one longer row stops the run", {"data.bad_rows": "strict"})
    return Fate("no_effect", "as here")


def _duplicates(value: bool, view: View) -> Fate:
    return Fate("carried", "", {"data.clean": [{"use": "dedupe"}]}) if value else Fate("no_effect", "is off")


def _template(value: str, view: View) -> Fate:
    if value.startswith("tokenizer_default"):
        return Fate("no_effect", "as here")
    return Fate(
        "not_supported",
        f"the chat template '{value[:30]}'; the one that the tokenizer brings is used: see luthier check",
    )


def _on_inputs(value: bool, view: View) -> Fate:
    return Fate("not_supported", f"learned the prompts too; {LEARNED}") if value else Fate("no_effect", "as here")


def _examples(value: int, view: View) -> Fate:
    """`batch_size` is of a device, and read where no accumulation is given."""
    if view("gradient_accumulation_steps"):
        return Fate("no_effect", "micro_batch_size and gradient_accumulation_steps say it")
    total = max(value // (view("micro_batch_size") or 1), 1) * (view("micro_batch_size") or 1) * view.place.devices
    return Fate("carried", "", {"train.examples_per_step": total})


def _micro_batch(value: int, view: View) -> Fate:
    if view("batch_size") and not view("gradient_accumulation_steps"):
        return Fate("no_effect", "batch_size says it")
    return BATCH["micro_batch_size"].by(value, view)


def _in_float32(value: bool, view: View) -> Fate:
    if not value or view("bf16") is not None:
        return Fate("no_effect", "bf16 says it" if value else "is off")
    return Fate("carried", "", {"train.precision": "float32"})


BATCH = batch("micro_batch_size", "gradient_accumulation_steps", 1)
LORA = only(
    lambda view: view("adapter") != "full",
    "no adapter is trained",
    {
        "lora_r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": DROPOUT,
        "lora_target_linear": Rule(flag, "`model.adapt.target`: all-linear", _all_linear),
        "lora_target_modules": Rule(names, "`model.adapt.target`: a list of names", _some_modules),
        "lora_target_parameters": PARAMETERS,
        "lora_modules_to_save": WHOLE_MODULES,
        "peft_use_dora": DORA,
        "peft_use_rslora": RSLORA,
        "peft_init_lora_weights": INIT,
        "loraplus_lr_ratio": LORA_PLUS,
        "loraplus_lr_embedding": LORA_PLUS_EMBEDDINGS,
        **keys(
            "peft_layers_to_transform peft_layers_pattern",
            not_supported(
                "LoRA in some layers", "model.adapt.last_layers, or a regular expression in model.adapt.target"
            ),
        ),
        "load_in_8bit": bits(8),
        "load_in_4bit": bits(4),
    },
)

MAIN: Table = {
    "base_model": BASE,
    **keys("revision_of_model model_revision", REVISION),
    "trust_remote_code": FOREIGN_CODE,
    "adapter": Rule(text, "`model.adapt.method`: lora, qlora → lora; empty → full", _adapter, default="full"),
    **LORA,
    "lora_model_dir": not_supported(
        "training that goes on with an adapter", "to learn another one beside it, name it in model.adapters"
    ),
    "datasets": Rule(mappings, "`data.sources`; each has the keys below", _whole_list, inner=SOURCE),
    "pretraining_dataset": Rule(LISTED, "`data.sources`, as texts; the keys below", _whole_list, inner=TEXTS),
    "test_datasets": Rule(mappings, "`data.sources` with `split: validation`", _whole_list, inner=SOURCE),
    "val_set_size": held_out("test_datasets"),
    "dataset_exact_deduplication": Rule(flag, "`data.clean`: dedupe", _duplicates),
    "sequence_len": carried("data.max_tokens", whole, too_long(cut=False), default=512),
    "excess_length_strategy": Rule(
        text, "drop: as here; raise: `data.bad_rows: strict`; truncate is not supported", _excess
    ),
    "sample_packing": packing(),
    "streaming": STREAMED,
    "train_on_inputs": Rule(flag, f"no effect; true is not supported: {LEARNED}", _on_inputs),
    "chat_template": Rule(text, "tokenizer_default: as here; others are not supported", _template),
    **keys(
        "chat_template_jinja chat_template_kwargs eot_tokens",
        not_supported("a chat template of one's own", OWN_TEMPLATE),
    ),
    "default_system_message": carried("data.system", text),
    "tokens": carried("model.new_tokens", names),
    "rl": not_supported(
        "preference or reinforcement training", "not yet: preferences and rewards are no training data here", text
    ),
    **BATCH,
    "micro_batch_size": Rule(whole, BATCH["micro_batch_size"].doc, _micro_batch, default=1),
    "batch_size": Rule(whole, "`train.examples_per_step`, where no accumulation is given", _examples),
    "num_epochs": epochs(1.0),
    "max_steps": steps_at_most(),
    "learning_rate": carried("train.learning_rate", number),
    "lr_scheduler": schedule("cosine"),
    **warmup("lr_scheduler", steps_default=0.03),
    "weight_decay": carried("train.weight_decay", number),
    "max_grad_norm": CLIPPING,
    "optimizer": OPTIMIZER,
    **ADAM,
    **HALVES,
    "bfloat16": Rule(flag, "as bf16", lambda v, view: Fate("no_effect", "bf16 and train.precision say it")),
    "float32": Rule(flag, "`train.precision`: float32, where bf16 is not given", _in_float32),
    **keys("neftune_noise_alpha noisy_embedding_alpha", NOISE),
    "evals_per_epoch": carried("train.checks_per_epoch", whole),
    "eval_steps": not_supported("validations every so many steps", "set train.checks_per_epoch", number),
    **STRATEGIES,
    "early_stopping_patience": patience(),
    "load_best_model_at_end": best(False),
    "metric_for_best_model": LOSS,
    "seed": carried("seed", whole),
    "output_dir": OUTPUT,
}

AXOLOTL = Peer("axolotl", "Axolotl", OTHERS | MAIN, sources, "datasets, or pretraining_dataset")
