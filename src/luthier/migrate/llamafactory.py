"""LLaMA-Factory: the YAML of `llamafactory-cli train`, and the dataset_info.json that its `dataset` refers to.

Looked up in hparams/ and data/parser.py of hiyouga/LlamaFactory (2026). It reads YAML by OmegaConf (`1e-4` is a number)
and takes no key that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from luthier.migrate.data import STREAMED, is_file, places
from luthier.migrate.engine import Fate, Rule, Table, View
from luthier.migrate.kinds import flag, names, number, text, whole
from luthier.migrate.llamafactory_data import INFO, PICTURES, located, shape
from luthier.migrate.lora import (
    DORA,
    DROPOUT,
    LORA_PLUS,
    LORA_PLUS_EMBEDDINGS,
    RANK,
    RSLORA,
    WHOLE_MODULES,
    targets,
)
from luthier.migrate.peer import Peer, Sources
from luthier.migrate.rules import carried, fixed, keys, no_effect, not_supported, only, with_default
from luthier.migrate.shapes import Shape, instruction
from luthier.migrate.trainer import (
    ATTENTION,
    BASE,
    DEVICES,
    FOREIGN_CODE,
    LOGGED,
    RECOMPUTED,
    REPORTED,
    REVISION,
    RUNTIME,
    held_out,
    packing,
    patience,
    too_long,
    training,
)

NOT_YET = "not yet: preferences and rewards are no training data here"


# -- the configuration -----------------------------------------------------------------------------------


def _find(name: str, view: View) -> View | None:
    """The data set of this name; None for a file that is named itself, or a name on the hub."""
    if view.beside is not None and name in view.beside.table:
        return next(iter(view.beside.inside(name)), None)
    if is_file(name) or view("dataset_dir") == "ONLINE":
        return None
    if view.beside is None:
        raise ValueError(f"{INFO}, in which the data set '{name}' is looked up, has to be given too")
    close = get_close_matches(name, [*view.beside.tree], n=1)
    raise ValueError(f"a data set of {INFO} is expected" + (f" (did you mean '{close[0]}'?)" if close else ""))


def _source(name: str, view: View) -> dict[str, Any]:
    """A file that is named itself is ShareGPT's, a name on the hub Alpaca's, as LLaMA-Factory takes them."""
    found = _find(name, view)
    if found is None:
        paths, _ = places(name, [], view)
        alone = Shape("messages", {"messages": "conversations"}) if is_file(name) else ALPACA
        return {"path": paths[0]} | alone.settings()
    reading = shape(found)
    return {"path": located(found)[1]} | (reading.settings() if reading else {})


ALPACA = instruction("instruction", "input", "output", "\n")


def sources(view: View) -> Sources:
    held_out = [_source(name, view) | {"split": "validation"} for name in view("eval_dataset") or []]
    return [_source(name, view) for name in view("dataset") or []] + held_out


def _data_sets(value: list[str], view: View) -> Fate:
    paths = [_source(name, view)["path"] for name in value]
    return Fate("carried", f"`data.sources`: {', '.join(paths)}")


def _stage(value: str, view: View) -> Fate:
    if value == "sft":
        return Fate("no_effect", "as here")
    if value == "pt":
        said = (
            "rows are texts; LLaMA-Factory cut them at cutoff_len and joined the pieces, here a longer one is rejected"
        )
        return Fate("carried", said)
    return Fate("not_supported", f"the stage '{value[:20]}'; {NOT_YET}")


METHODS = {"lora": "lora", "full": "full", "freeze": "partial", "oft": "peft"}


def _method(value: str, view: View) -> Fate:
    if value not in METHODS:
        raise ValueError(f"{', '.join(METHODS)} is expected")
    settings: dict[str, Any] = {"model.adapt.method": METHODS[value]}
    if value == "oft":
        settings |= {"model.adapt.type": "OFT"}
    return Fate("carried", "", settings)


def _last_layers(value: int, view: View) -> Fate:
    if value > 0 and view("freeze_trainable_modules") == ["all"]:
        return Fate("carried", "", {"model.adapt.last_layers": value})
    said = "other layers than the last, or parts of them; name what is trained in model.adapt.train"
    return Fate("not_supported", said, {"model.adapt.last_layers": abs(value) or 2})


TWICE = "twice the rank"


def _alpha(value: float | str, view: View) -> Fate:
    alpha = 2.0 * view("lora_rank") if value == TWICE else value
    return Fate("carried", "", {"model.adapt.alpha": alpha})


def _bits(value: int, view: View) -> Fate:
    if value in (4, 8):
        return Fate("carried", "", {"model.quantize": f"{value}bit"})
    return Fate("not_supported", f"a base in {value} bits; model.quantize has 8bit and 4bit")


def _adapters(value: list[str], view: View) -> Fate:
    if view("create_new_adapter"):
        return Fate("carried", "", {"model.adapters": [view.place.for_recipe(path) for path in value]})
    said = "training went on with this adapter; to learn another one beside it, name it in model.adapters"
    return Fate("not_supported", said)


def _tokens(value: list[str], view: View) -> Fate:
    both = [*(view("add_tokens") or []), *(view("add_special_tokens") or [])]
    return Fate("carried", "", {"model.new_tokens": both})


def _limit(value: int, view: View) -> Fate:
    limit = value * max(len(view("dataset") or []), 1)
    return Fate("carried", f"drawn by seed, on each side: {limit} for all data sets together", {"data.limit": limit})


def _template(value: str, view: View) -> Fate:
    if value in ("default", "empty"):
        return Fate("no_effect", "the chat template that the tokenizer brings is used")
    said = f"the chat template '{value[:30]}' of its own; the one that the tokenizer brings is used: see luthier check"
    return Fate("not_supported", said)


def _masked_history(value: bool, view: View) -> Fate:
    if not value:
        return Fate("no_effect", "as here")
    return Fate("not_supported", "learned the last answer alone; here all, but for messages that say `learn: false`")


def _prompts(value: bool, view: View) -> Fate:
    if not value:
        return Fate("no_effect", "as here")
    return Fate("not_supported", "learned the prompts too; here a message that says `learn: true` is")


def _is(method: str) -> Callable[[View], bool]:
    return lambda view: bool(view("finetuning_type") == method)


LORA = only(
    _is("lora"),
    "finetuning_type is not lora",
    {
        "lora_rank": with_default(RANK, 8),
        "lora_alpha": Rule(number, "`model.adapt.alpha`; empty: twice the rank", _alpha, default=TWICE),
        "lora_dropout": DROPOUT,
        "lora_target": targets("all"),
        "use_rslora": RSLORA,
        "use_dora": DORA,
        "loraplus_lr_ratio": LORA_PLUS,
        "pissa_init": Rule(
            flag,
            "`model.adapt.init`: pissa",
            lambda value, view: Fate("carried", "", {"model.adapt.init": "pissa" if value else "default"}),
        ),
    },
)
OFT = only(
    _is("oft"),
    "finetuning_type is not oft",
    {
        "oft_rank": carried("model.adapt.params.r", whole, default=0),
        "oft_block_size": carried("model.adapt.params.oft_block_size", whole, default=32),
        "oft_target": targets("all"),
        "module_dropout": carried("model.adapt.params.module_dropout", number),
    },
)
FREEZE = only(
    _is("freeze"),
    "finetuning_type is not freeze",
    {
        "freeze_trainable_layers": Rule(
            whole, "`model.adapt.last_layers`; below 0 is not supported", _last_layers, default=2
        ),
        "freeze_trainable_modules": fixed(
            names, (["all"],), "parts of the layers", "name what is trained in model.adapt.train", default=["all"]
        ),
        "freeze_extra_modules": not_supported("modules besides layers", "name what is trained in model.adapt.train"),
    },
)
RL = keys(
    "pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing kto_chosen_weight kto_rejected_weight "
    "simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model ref_model_adapters "
    "ref_model_quantization_bit reward_model reward_model_adapters reward_model_quantization_bit reward_model_type "
    "ld_alpha",
    not_supported("preference or reinforcement training", NOT_YET, off=()),
)
OPTIMIZERS = keys(
    "use_galore use_apollo use_badam use_adam_mini use_muon", not_supported("another optimizer", "AdamW learns", flag)
) | keys(
    "galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise apollo_target "
    "apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type apollo_layerwise "
    "apollo_scale_front badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio "
    "badam_mask_mode badam_verbose",
    no_effect("a parameter of another optimizer"),
)
DATA: Table = {
    "dataset": Rule(names, "`data.sources`, by dataset_info.json", _data_sets),
    "eval_dataset": Rule(names, "`data.sources` with `split: validation`", _data_sets),
    "dataset_dir": Rule(
        text,
        f"no effect: {INFO} is given, or looked for there",
        lambda v, view: Fate("no_effect", f"{INFO} is given, or was found there"),
        default="data",
    ),
    "template": Rule(text, "not supported: the chat template that the tokenizer brings is used", _template),
    "cutoff_len": carried("data.max_tokens", whole, too_long(cut=True), default=2048),
    "train_on_prompt": Rule(flag, "no effect; true is not supported", _prompts),
    "mask_history": Rule(flag, "no effect; true is not supported", _masked_history),
    "max_samples": Rule(whole, "`data.limit`, times the data sets; drawn by seed, on each side", _limit),
    "val_size": held_out("eval_dataset"),
    "packing": packing(),
    "neat_packing": packing(),
    "default_system": carried("data.system", text),
    **keys("packing_strategy packing_similarity_threshold packing_embedding_model", no_effect("nothing is packed")),
    **keys("streaming buffer_size", STREAMED),
    **keys(
        "mix_strategy interleave_probs",
        not_supported(
            "a mixture of data sets by probabilities",
            "data.sources: weight says how often a source's rows are met in an epoch",
            off=(None, "concat"),
        ),
    ),
    **keys(
        "overwrite_cache preprocessing_batch_size preprocessing_num_workers tokenized_path data_shared_file_system "
        "cache_dir",
        RUNTIME,
    ),
    **keys("tool_format", not_supported("tools that a conversation may call", "calls are not learned yet")),
    **keys(
        "media_dir image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels "
        "video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate freeze_vision_tower "
        "freeze_multi_modal_projector freeze_language_model",
        PICTURES,
    ),
    **keys(
        "enable_thinking reasoning_effort preserve_thinking",
        not_supported(
            "how a template treats thinking", "the tokenizer's template decides; see luthier check", off=(None,)
        ),
    ),
    "ignore_pad_token_for_loss": no_effect("nothing is padded"),
    "eval_on_each_dataset": not_supported("results for each data set", "data.slices shows them by a column"),
    "eval_num_beams": not_supported("beam search", "answers are the likeliest token each time"),
}
MODEL: Table = {
    "model_name_or_path": BASE,
    "model_revision": REVISION,
    "trust_remote_code": FOREIGN_CODE,
    "adapter_name_or_path": Rule(names, "`model.adapters` with create_new_adapter; else not supported", _adapters),
    "adapter_folder": not_supported("a folder of adapters", "name the adapter's own folder in model.adapters"),
    "create_new_adapter": Rule(
        flag,
        "no effect: a new adapter is always learned",
        lambda v, view: Fate("no_effect", "a new adapter is always learned"),
        default=False,
    ),
    "additional_target": WHOLE_MODULES,
    "loraplus_lr_embedding": LORA_PLUS_EMBEDDINGS,
    **keys("pissa_iter pissa_convert", no_effect("adapters are saved as LoRA for the unchanged base")),
    "quantization_bit": Rule(whole, "`model.quantize`: 4 → 4bit, 8 → 8bit; no other", _bits),
    "quantization_method": fixed(text, ("bnb", "bitsandbytes"), "another way to quantise", "4bit is NF4, 8bit plain"),
    "quantization_type": fixed(text, ("nf4",), "other values of 4 bits", "4bit is NF4 here"),
    **keys("double_quantization quantization_device_map low_cpu_mem_usage offload_folder", RUNTIME),
    **keys("add_tokens add_special_tokens", Rule(names, "`model.new_tokens`", _tokens)),
    **keys(
        "resize_vocab use_fast_tokenizer split_special_tokens",
        no_effect("new_tokens get their embeddings; a text's control words stay text"),
    ),
    **keys(
        "new_special_tokens_config init_special_tokens freeze_original_embeddings",
        not_supported(
            "how new tokens begin", "model.new_tokens begin as the mean of their pieces", off=(None, "vocab_mean")
        ),
    ),
    "rope_scaling": not_supported("longer positions", "use a base model with the context that is needed"),
    **keys("flash_attn use_unsloth use_unsloth_gc enable_liger_kernel use_v1_kernels", ATTENTION),
    "shift_attn": not_supported("shifted short attention", "attention is full here", flag),
    "mixture_of_depths": not_supported("mixture of depths", "models are trained as they are"),
    "moe_aux_loss_coef": not_supported("a loss for the balance of experts", "there is none here"),
    **keys("disable_gradient_checkpointing use_reentrant_gc", RECOMPUTED),
    **keys("upcast_layernorm upcast_lmhead_output", no_effect("train.precision says what is multiplied in what")),
    "pure_bf16": not_supported("weights in bfloat16 while they learn", "what learns adds up in float32", flag),
    "train_from_scratch": not_supported("random weights at the start", "train from a base model", flag),
    "use_llama_pro": not_supported("new blocks of layers", "model.adapt.last_layers trains the last ones", flag),
    **keys("hf_hub_token ms_hub_token om_hub_token", no_effect("log in by `hf auth login`; a recipe holds no secret")),
    "print_param_status": REPORTED,
}
OTHERS: Table = {
    "stage": Rule(
        text, "sft: as here; pt: rows are texts; rm, ppo, dpo, kto are not supported yet", _stage, default="sft"
    ),
    "finetuning_type": Rule(
        text, "`model.adapt.method`: lora, full, freeze → partial, oft → OFT", _method, default="lora"
    ),
    "early_stopping_steps": patience(),
    **keys("use_dft_loss use_asft_loss use_eaft_loss", not_supported("another loss", "the loss is the nll", flag)),
    **keys(
        "asft_alpha eaft_alpha num_mtp_layers mtp_loss_weight",
        not_supported("a part of another loss", "the loss is the nll"),
    ),
    "disable_shuffling": not_supported("rows in their order", "each epoch is another order, by seed", flag),
    **keys("use_mca use_megatron_bridge use_hyper_parallel hyper_parallel_args hyper_parallel_cp_size use_kt", DEVICES),
    **keys(
        "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path kt_use_lora_experts "
        "kt_lora_expert_num kt_lora_expert_intermediate_size kt_config",
        DEVICES,
    ),
    **keys("ray_num_workers ray_num_cpus_per_worker ray_init_kwargs master_addr master_port", DEVICES),
    **keys(
        "fp8 fp8_backend fp8_enable_fsdp_float8_all_gather",
        not_supported("products in 8 bits", "train.precision has bfloat16 and float32", off=(None, False, "auto")),
    ),
    **keys(
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir "
        "swanlab_lark_webhook_url swanlab_lark_secret",
        LOGGED,
    ),
    **keys(
        "plot_loss include_effective_tokens_per_second enable_torch_profiler profiler_output_dir profiler_wait_steps "
        "profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory "
        "profiler_with_stack profile_modules",
        REPORTED,
    ),
    "max_new_tokens": carried("evaluate.max_new_tokens", whole),
    **keys(
        "predict_with_generate compute_accuracy generation_max_length generation_num_beams generation_config "
        "sortish_sampler skip_special_tokens max_length",
        no_effect("`evaluate` says what is measured"),
    ),
    **keys(
        "do_sample temperature top_p top_k num_beams repetition_penalty length_penalty",
        no_effect("answers are the likeliest token each time, unless evaluate.temperature says otherwise"),
    ),
    **keys(
        "infer_backend infer_dtype use_kv_cache vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank "
        "vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend",
        RUNTIME,
    ),
    **keys(
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
        "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id",
        no_effect("release.export says what leaves; this is of another command"),
    ),
}

LLAMAFACTORY = Peer(
    "llamafactory",
    "LLaMA-Factory",
    training(learning_rate=5e-5) | RL | OPTIMIZERS | LORA | OFT | FREEZE | DATA | MODEL | OTHERS,
    sources,
    "dataset",
)
