"""TRL: the YAML of `trl sft --config`, whose keys are ScriptArguments, SFTConfig, ModelConfig and DatasetMixtureConfig.

Looked up in TRL 1.16; a test compares the keys with those of the TRL that is installed. TRL reads YAML 1.1 and parses
texts as numbers. Which trainer runs is said on its command line, so a file for `trl dpo` is known by its keys alone.
"""

from __future__ import annotations

from luthier.migrate.data import FILES, FOLDER, PATH_DOC, SPLIT, STREAMED, listed, part_of_name, places
from luthier.migrate.engine import Fate, Rule, Table, View
from luthier.migrate.kinds import flag, mapping, mappings, names, or_none, text, whole
from luthier.migrate.lora import (
    ALPHA,
    DORA,
    DROPOUT,
    PARAMETERS,
    RANK,
    RSLORA,
    WHOLE_MODULES,
    bits,
    targets,
)
from luthier.migrate.peer import Peer, Sources
from luthier.migrate.rules import fixed, keys, no_effect, not_supported, only, with_default
from luthier.migrate.shapes import Shape
from luthier.migrate.trainer import (
    ATTENTION,
    BASE,
    FOREIGN_CODE,
    IN_ONE_PROCESS,
    REVISION,
    RUNTIME,
    held_out,
    packing,
    too_long,
    training,
)

WANTED = "not yet: preferences and rewards are no training data here"
LEARNED = "prompts are not learned; a message that says `learn: true` is"


# -- data ------------------------------------------------------------------------------------------------


def sources(view: View) -> Sources:
    found: list[str] = []
    if view("datasets"):
        for entry in view.inside("datasets"):
            found += _of_many(entry)[0]
    elif view("dataset_name"):
        found = _of_one(view)[0]
    field = view("dataset_text_field")
    reading = Shape("text", {"text": field}).settings() if field not in (None, "text") else {}
    return [{"path": path} | reading for path in found]


def _of_one(view: View) -> tuple[list[str], Fate]:
    if view("datasets"):
        return [], Fate("no_effect", "datasets is given, and wins")
    return places(view("dataset_name"), [], view, view("dataset_config"))


def _of_many(entry: View) -> tuple[list[str], Fate]:
    return places(entry("path"), listed(entry("data_files")), entry, entry("name"))


ENTRY: Table = {
    "path": Rule(text, PATH_DOC, lambda value, view: _of_many(view)[1], required=True),
    "data_files": FILES,
    "split": SPLIT,
    "name": part_of_name("a configuration", lambda view: _of_many(view)[0]),
    "data_dir": FOLDER,
    "columns": no_effect("columns that the model does not read are kept as tags"),
    "fraction": not_supported("a share of the mixture", "limit the rows in the files, or all of them by data.limit"),
}


def _text_field(value: str, view: View) -> Fate:
    if value == "text":
        return Fate("no_effect", "the format is told from the columns, and `text` is known")
    return Shape("text", {"text": value}).fate()


# -- what is learned ---------------------------------------------------------------------------------------


def _completion_only(value: bool, view: View) -> Fate:
    return Fate("no_effect", "as here") if value else Fate("not_supported", f"learned the prompts too; {LEARNED}")


def _assistant_only(value: bool, view: View) -> Fate:
    if value:
        return Fate("no_effect", "as here")
    return Fate("not_supported", f"of `messages`, learned every turn; here the assistant's: {LEARNED}")


def _trains_adapter(value: bool, view: View) -> Fate:
    return Fate("carried", "", {"model.adapt.method": "lora" if value else "full"})


def _longest(value: int | None, view: View) -> Fate:
    if value is None:
        return Fate("carried", "the model's context window", {"data.max_tokens": None})
    return Fate("carried", too_long(cut=True), {"data.max_tokens": value})


LONGEST = Rule(or_none(whole), f"`data.max_tokens`; {too_long(cut=True)}", _longest, default=1024, null=True)
PEFT_DEFAULT = "PEFT's choice"


def _targets(value: list[str], view: View) -> Fate:
    if value == [PEFT_DEFAULT]:
        return Fate(
            "not_supported", "PEFT chose modules by architecture, mostly q_proj and v_proj; the recipe has all-linear"
        )
    return targets("all-linear").by(value, view)


LORA = only(
    lambda view: bool(view("use_peft")),
    "use_peft is off",
    {
        "lora_r": with_default(RANK, 16),
        "lora_alpha": with_default(ALPHA, 32),
        "lora_dropout": with_default(DROPOUT, 0.05),
        "lora_target_modules": Rule(
            names, targets("all-linear").doc + "; empty is not supported: all-linear", _targets, default=[PEFT_DEFAULT]
        ),
        "lora_target_parameters": PARAMETERS,
        "lora_modules_to_save": WHOLE_MODULES,
        "use_rslora": RSLORA,
        "use_dora": DORA,
        "load_in_8bit": bits(8),
        "load_in_4bit": bits(4),
    },
)

SFT: Table = {
    "model_name_or_path": BASE,
    "model_revision": REVISION,
    "dtype": no_effect("what learns adds up in float32; train.precision says what is multiplied"),
    "torch_dtype": no_effect("what learns adds up in float32; train.precision says what is multiplied"),
    "attn_implementation": ATTENTION,
    "use_peft": Rule(flag, "`model.adapt.method`: true → lora, false → full", _trains_adapter, default=False),
    **LORA,
    "lora_task_type": fixed(text, ("CAUSAL_LM",), "another task than to continue text", "models here do that alone"),
    "bnb_4bit_quant_type": fixed(text, ("nf4",), "other values of 4 bits", "4bit is NF4 here"),
    **keys("use_bnb_nested_quant bnb_4bit_quant_storage", RUNTIME),
    "dataset_name": Rule(text, PATH_DOC, lambda value, view: _of_one(view)[1]),
    "dataset_config": part_of_name("a configuration", lambda view: _of_one(view)[0]),
    "dataset_train_split": SPLIT,
    "dataset_test_split": SPLIT,
    **keys("dataset_streaming streaming", STREAMED),
    "ignore_bias_buffers": no_effect(IN_ONE_PROCESS),
    "datasets": Rule(mappings, "`data.sources`; each has the keys below", lambda v, view: Fate("carried"), inner=ENTRY),
    "test_split_size": held_out(),
    "dataset_text_field": Rule(text, "`data.sources`: format text; `text` has no effect: it is known", _text_field),
    "dataset_kwargs": not_supported("parameters of the data's preparation", "see what luthier check shows"),
    "dataset_num_proc": RUNTIME,
    "shuffle_dataset": no_effect("each epoch is another order"),
    "max_length": LONGEST,
    "max_seq_length": no_effect("an earlier name, which TRL reads no more"),
    "truncation_mode": no_effect("nothing is cut"),
    "packing": packing(),
    **keys("packing_strategy eval_packing padding_free pad_to_multiple_of", no_effect("nothing is packed or padded")),
    "completion_only_loss": Rule(flag, f"no effect; false is not supported: {LEARNED}", _completion_only),
    "assistant_only_loss": Rule(
        flag, f"no effect; false, TRL's default, is not supported: {LEARNED}", _assistant_only, default=False
    ),
    "loss_type": fixed(text, ("nll", "chunked_nll"), "another loss", "the loss is the nll"),
    "chat_template_path": not_supported("a chat template of its own", "the one that the tokenizer brings is used"),
    "eos_token": not_supported("another token that ends a turn", "the one of the chat template is learned"),
    "pad_token": no_effect("nothing is padded"),
    "model_init_kwargs": not_supported("parameters of the model's loading", "models are loaded as they are"),
    "trust_remote_code": FOREIGN_CODE,
    "router_aux_loss_coef": not_supported("a loss for the balance of experts", "there is none here"),
    "env": no_effect("what it sets belongs in the shell", mapping),
}

OTHER_TRAINERS = keys(
    "beta loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing use_weighting discopop_tau "
    "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps disable_dropout precompute_ref_log_probs "
    "precompute_ref_batch_size desirable_weight undesirable_weight center_rewards_coefficient max_prompt_length "
    "reward_model_name_or_path reward_funcs reward_weights scale_rewards num_generations num_generations_eval "
    "max_completion_length generation_batch_size steps_per_generation temperature top_p top_k min_p generation_kwargs "
    "chat_template_kwargs repetition_penalty cache_implementation cast_lm_head_to_fp32 ds3_gather_for_generation "
    "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url "
    "vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization "
    "vllm_max_model_length vllm_tensor_parallel_size vllm_importance_sampling_correction vllm_importance_sampling_mode "
    "vllm_importance_sampling_cap vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min num_iterations "
    "epsilon delta epsilon_high sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg "
    "vespo_lambda_neg importance_sampling_level multi_objective_aggregation mask_truncated_completions "
    "top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta "
    "entropy_target max_tool_calling_iterations off_policy_mask_threshold use_bias_correction_kl log_completions "
    "log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo "
    "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged "
    "normalize_advantages reward_clip_range",
    not_supported("preference or reinforcement training (trl dpo, kto, grpo, rloo, reward)", WANTED, off=()),
)

TRL = Peer("trl", "TRL", OTHER_TRAINERS | training(learning_rate=2e-5) | SFT, sources, "dataset_name or datasets")
