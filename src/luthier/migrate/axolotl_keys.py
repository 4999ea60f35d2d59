"""Axolotl's keys that decide nothing of a recipe: what they did, and why they have no effect or no counterpart."""

from __future__ import annotations

from luthier.migrate.engine import Fate, Rule, Table
from luthier.migrate.kinds import flag, mapping, number
from luthier.migrate.rules import keys, no_effect, not_supported
from luthier.migrate.trainer import (
    ATTENTION,
    CHECKPOINTS,
    DEVICES,
    GOES_ON,
    IN_ONE_PROCESS,
    LOGGED,
    RECOMPUTED,
    REPORTED,
    RUNTIME,
    UPLOADED,
)

SPECIAL_TOKENS: Table = {
    "pad_token": no_effect("nothing is padded here"),
    **keys("bos_token unk_token", no_effect("the chat template says how a text begins")),
    "eos_token": not_supported("another token that ends a turn", "the one of the chat template is learned"),
    "additional_special_tokens": not_supported("more special tokens", "name new ones in model.new_tokens"),
}
OTHERS: Table = {
    # the model
    **keys(
        "model_type type_of_model tokenizer_type processor_type tokenizer_use_fast tokenizer_legacy "
        "tokenizer_use_mistral_common tokenizer_save_jinja_files is_falcon_derived_model is_llama_derived_model "
        "is_mistral_derived_model is_qwen_derived_model base_model_ignore_patterns hf_use_auth_token",
        no_effect("model and tokenizer are loaded as their files say"),
    ),
    **keys(
        "base_model_config cls_model_config tokenizer_config",
        not_supported(
            "a configuration or tokenizer of another model", "put them into the folder that model.base names"
        ),
    ),
    **keys(
        "overrides_of_model_config model_config overrides_of_model_kwargs model_kwargs rope_scaling "
        "model_quantization_config model_quantization_config_kwargs",
        not_supported("changes to the model's configuration", "change the config.json in a folder of your own"),
    ),
    "special_tokens": Rule(
        mapping, "its keys below", lambda value, view: Fate("no_effect", "is empty"), inner=SPECIAL_TOKENS
    ),
    "added_tokens_overrides": not_supported("new texts for reserved tokens", "model.new_tokens adds tokens"),
    **keys(
        "resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings embeddings_skip_upcast "
        "fix_untrained_tokens",
        no_effect("new_tokens get their embeddings, begun as the mean of their pieces"),
    ),
    **keys(
        "random_init_weights reinit_weights",
        not_supported("random weights at the start", "train from a base model", flag),
    ),
    **keys("unfrozen_parameters", not_supported("some weights alone", "model.adapt: {method: partial, train: [...]}")),
    # adapters and few bits
    **keys(
        "lora_fan_in_fan_out lora_on_cpu qlora_sharded_model_loading merge_method peft_autocast_adapter_dtype "
        "peft_ensure_weight_tying bnb_config_kwargs",
        RUNTIME,
    ),
    "merge_lora": no_effect("release.export: [merged] leaves merged weights"),
    "gptq": not_supported("a base quantised by GPTQ", "model.quantize has 4bit and 8bit, of a whole base", flag),
    **keys(
        "peft peft_layer_replication peft_trainable_token_indices",
        not_supported("another setting of PEFT's", "see model.adapt in docs/recipe.md"),
    ),
    **keys(
        "relora relora_steps relora_warmup_steps relora_anneal_steps relora_prune_ratio relora_prune_method "
        "relora_cpu_offload jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps "
        "lisa_n_layers lisa_step_interval lisa_layers_attribute",
        not_supported("weights that are merged or switched while they learn", "train one adapter, or the whole model"),
    ),
    **keys("qat quantization llmcompressor", not_supported("quantisation of what is released", "release as it is")),
    # data
    **keys(
        "shuffle_merged_datasets shuffle_before_merging_datasets curriculum_sampling sample_packing_sequentially",
        no_effect("each epoch is another order of all rows, by seed"),
    ),
    **keys(
        "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory skip_prepare_dataset "
        "num_dataset_shards_to_save preprocess_iterable is_preprocess streaming_multipack_buffer_size "
        "pretrain_multipack_buffer_size dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor "
        "axolotl_config_path strict",
        RUNTIME,
    ),
    **keys(
        "dataset_shard_num dataset_shard_idx",
        not_supported("a part of the rows", "data.limit takes so many, drawn by seed"),
    ),
    "push_dataset_to_hub": UPLOADED,
    "dataloader_drop_last": no_effect("each row is learned from once an epoch, the last ones too"),
    "remove_unused_columns": no_effect("columns that the model does not read are kept as tags"),
    **keys("min_sample_len", not_supported("short rows were left out", "leave them out of the data", number)),
    "eval_sequence_len": no_effect("data.max_tokens is that of all sides"),
    **keys(
        "eval_sample_packing pad_to_sequence_len sample_packing_group_size sample_packing_bin_size "
        "sample_packing_eff_est sample_packing_mp_start_method multipack_real_batches batch_flattening "
        "pretrain_multipack_attn pretraining_sample_concatenation total_num_tokens total_supervised_tokens "
        "group_by_length max_packed_sequence_len",
        no_effect("nothing is packed or padded here"),
    ),
    **keys("image_size image_resize_algorithm", not_supported("pictures in rows", "rows are texts here")),
    # preference and reinforcement training
    **keys(
        "trl vllm dpo rl_beta dpo_beta dpo_label_smoothing dpo_loss_type dpo_use_weighting dpo_use_logits_to_keep "
        "dpo_padding_free dpo_generate_during_eval dpo_norm_loss orpo_alpha rpo_alpha simpo_gamma cpo_alpha "
        "kto_desirable_weight kto_undesirable_weight max_prompt_len reward_model process_reward_model "
        "center_rewards_coefficient num_labels",
        not_supported(
            "preference or reinforcement training", "not yet: preferences and rewards are no training data here"
        ),
    ),
    # learning rate and loss
    "lr_scheduler_kwargs": not_supported("the schedule's parameters", "cosine falls to 0, constant stays"),
    **keys(
        "cosine_min_lr_ratio cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor",
        not_supported("another shape of the schedule", "cosine falls to 0 after a linear warm-up"),
    ),
    **keys(
        "lr_groups embedding_lr embedding_lr_scale",
        not_supported("learning rates by module", "one rate is for all; adapters have lora_plus_ratio"),
    ),
    **keys(
        "optim_args optim_target_modules torchdistx_path adam_beta3 adam_epsilon2 dion_lr dion_momentum "
        "dion_rank_fraction dion_rank_multiple_of muon",
        not_supported("another optimizer's parameters", "AdamW learns"),
    ),
    **keys("loss_watchdog_threshold loss_watchdog_patience", no_effect("a training that diverges is stopped")),
    **keys(
        "use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks",
        not_supported("longer positions (PoSE)", "use a base model with the context that is needed"),
    ),
    **keys(
        "kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_online_server_base_url kd_online_topk",
        not_supported("distillation from a teacher", "write the teacher's answers as data"),
    ),
    "diffusion": not_supported("training as a diffusion model", "models here continue text"),
    # precision, speed and memory
    "float16": not_supported("products in float16", "train.precision has bfloat16 and float32", flag),
    **keys(
        "fp8 fp8_enable_fsdp_float8_all_gather",
        not_supported("products in 8 bits", "train.precision has bfloat16 and float32", flag),
    ),
    **keys(
        "tf32 torch_compile torch_compile_backend torch_compile_mode gc_steps low_cpu_mem_usage max_memory "
        "gpu_memory_limit device device_map eval_batch_size auto_find_batch_size use_kernels "
        "experimental_skip_move_to_device tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp "
        "chunked_cross_entropy chunked_cross_entropy_num_chunks lora_mlp_kernel lora_qkv_kernel lora_o_kernel "
        "lora_embedding_kernel unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o "
        "unsloth_rms_norm unsloth_rope liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm "
        "liger_glu_activation liger_swiglu liger_cross_entropy liger_fused_linear_cross_entropy "
        "liger_use_token_scaling cut_cross_entropy llama4_linearized_experts",
        RUNTIME,
    ),
    "plugins": not_supported("code that is loaded into Axolotl", "most make it faster; the others have no counterpart"),
    **keys(
        "gradient_checkpointing gradient_checkpointing_kwargs activation_offloading selective_checkpointing "
        "layer_offloading",
        RECOMPUTED,
    ),
    **keys(
        "xformers_attention sdp_attention eager_attention flex_attention flex_attn_compile_kwargs flash_attention "
        "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp flash_optimum "
        "attn_implementation sage_attention scaling_softmax",
        ATTENTION,
    ),
    "s2_attention": not_supported("shifted sparse attention", "attention is full here", flag),
    # devices
    **keys(
        "deepspeed deepcompile fsdp fsdp_config fsdp_version fsdp_final_state_dict_type accelerator_config "
        "dp_shard_size dp_replicate_size sequence_parallel_degree context_parallel_size heads_k_stride ring_attn_func "
        "tensor_parallel_size expert_parallel_size use_ray ray_run_name ray_num_workers resources_per_worker",
        DEVICES,
    ),
    **keys(
        "ddp ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters world_size local_rank",
        no_effect(IN_ONE_PROCESS),
    ),
    # checkpoints, logs, uploads
    **keys(
        "save_steps saves_per_epoch save_strategy save_total_limit save_first_step save_only_model save_safetensors "
        "dynamic_checkpoint",
        CHECKPOINTS,
    ),
    **keys("resume_from_checkpoint auto_resume_from_checkpoints", GOES_ON),
    "greater_is_better": no_effect("weights are best where the validation nll is lowest"),
    **keys(
        "eval_table_size eval_max_new_tokens do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset "
        "bench_split bench_source_max_len generate_samples num_generation_samples generation_max_new_tokens "
        "generation_temperature generation_top_p generation_top_k generation_do_sample generation_prompt_ratio "
        "lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model",
        no_effect("`evaluate` says what is measured, and compares with the base model"),
    ),
    **keys(
        "logging_steps include_tokens_per_second include_tkps profiler_steps profiler_steps_start "
        "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature "
        "debug",
        REPORTED,
    ),
    **keys(
        "use_wandb wandb_project wandb_entity wandb_watch wandb_name wandb_run_id wandb_mode wandb_log_model "
        "use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_comet "
        "comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online "
        "comet_experiment_config use_tensorboard use_trackio trackio_project_name trackio_run_name trackio_space_id "
        "use_otel_metrics otel_metrics_host otel_metrics_port",
        LOGGED,
    ),
    **keys("hub_model_id hub_strategy hub_revision", UPLOADED),
}
