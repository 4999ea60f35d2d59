"""Configurations as people write them for three trainers, invented for these tests; each with what must come of it.

`settings` are places of the recipe; `states` are keys with the state that they must end in, where it says something.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

INFO = """
{
  "faq": {"file_name": "faq.json"},
  "chats": {"file_name": "chats.jsonl", "formatting": "sharegpt",
    "columns": {"messages": "messages", "system": "system"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}},
  "old_chats": {"file_name": "old.json", "formatting": "sharegpt"},
  "open_chats": {"file_name": "open.json", "formatting": "openai", "columns": {"messages": "turns"}},
  "pages": {"file_name": "pages.jsonl", "columns": {"prompt": "body"}},
  "turns": {"file_name": "turns.json", "columns": {"prompt": "ask", "response": "say", "history": "before"}},
  "asked": {"file_name": "asked.csv", "columns": {"prompt": "ask", "response": "say", "system": "sys"}},
  "pairs": {"file_name": "pairs.json", "ranking": true, "columns": {"prompt": "q", "chosen": "a", "rejected": "b"}},
  "rated": {"file_name": "rated.json", "columns": {"prompt": "q", "response": "a", "kto_tag": "good"}},
  "hub": {"hf_hub_url": "someone/answers", "subset": "en", "revision": "v2", "file_name": "not-read.json"},
  "scripted": {"script_url": "make_rows"}
}
"""


@dataclass(frozen=True)
class Case:
    text: str
    settings: dict[str, Any]
    states: dict[str, str] = field(default_factory=dict)


AXOLOTL = {
    "qlora": Case(
        """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
adapter: qlora
datasets:
  - {path: data/faq.jsonl, type: alpaca}
val_set_size: 0.1
output_dir: ./out/support qlora
sequence_len: 2048
sample_packing: yes
eval_sample_packing: no
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
tf32: false
gradient_checkpointing: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.01
wandb_project:
special_tokens:
  pad_token: <pad>
""",
        {
            "name": "support-qlora",
            "model.quantize": "4bit",
            "model.adapt.method": "lora",
            "model.adapt.rank": 32,
            "model.adapt.alpha": 16,
            "model.adapt.target": "all-linear",
            "train.examples_per_step": 8,
            "train.epochs": 4,
            "train.learning_rate": 2e-4,
            "train.weight_decay": 0.01,
            "train.checks_per_epoch": 4,
            "train.keep": "last",
            "train.early_stopping": None,
            "data.max_tokens": 2048,
            "data.split.valid_fraction": 0.1,
            "data.sources.0.format": "prompt_completion",
            "data.sources.0.fields": {"prompt": "{instruction}\n\n{input?}", "completion": "output"},
        },
        {
            "gradient_accumulation_steps": "no_effect",
            "sample_packing": "no_effect",
            "warmup_steps": "not_supported",
            "special_tokens.pad_token": "no_effect",
            "wandb_project": "no_effect",
        },
    ),
    "full, with chats and a test set": Case(
        """
base_model: ./models/small
datasets:
  - path: data/chats.jsonl
    type: chat_template
    field_messages: turns
    roles_to_train: [assistant]
    train_on_eos: turn
test_datasets:
  - {path: data/held.jsonl, type: chat_template, split: train}
chat_template: tokenizer_default
micro_batch_size: 1
gradient_accumulation_steps: 16
learning_rate: 0.00001
warmup_ratio: 0.1
lr_scheduler: constant_with_warmup
early_stopping_patience: 2
load_best_model_at_end: true
deepspeed: deepspeed_configs/zero3.json
max_grad_norm: 0
""",
        {
            "model.adapt.method": "full",
            "train.examples_per_step": 16,
            "train.schedule": "constant",
            "train.warmup_fraction": 0.1,
            "train.early_stopping.patience_checks": 2,
            "train.keep": "best",
            "train.max_grad_norm": None,
            "train.epochs": 1,
            "data.max_tokens": 512,
            "data.sources.0.fields": {"messages": "turns"},
            "data.sources.1.split": "validation",
        },
        {"deepspeed": "not_supported", "datasets.0.train_on_eos": "no_effect", "chat_template": "no_effect"},
    ),
    "sharegpt": Case(
        """
base_model: a/b
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
datasets:
  - path: data/old.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
    roles: {assistant: [gpt, model]}
  - {path: data/older.jsonl, type: sharegpt, conversation: chatml}
chat_template: chatml
micro_batch_size: 4
gradient_accumulation_steps: 1
learning_rate: 1.0e-4
""",
        {"model.adapt.target": ("q_proj", "v_proj"), "data.sources.1.path": "data/older.jsonl"},
        {
            "datasets.0.roles": "not_supported",
            "datasets.1.conversation": "not_supported",
            "chat_template": "not_supported",
        },
    ),
    "continued pre-training": Case(
        """
base_model: a/b
pretraining_dataset:
  - {path: data/pages.jsonl, text_column: body, type: pretrain}
max_steps: 1000
warmup_steps: 100
micro_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 5e-5
lr_scheduler: constant
""",
        {
            "data.sources.0.format": "text",
            "data.sources.0.fields": {"text": "body"},
            "train.schedule": "constant",
            "train.warmup_fraction": 0,
        },
        {"max_steps": "not_supported", "warmup_steps": "no_effect"},
    ),
    "a format of one's own": Case(
        """
base_model: a/b
adapter: lora
datasets:
  - path: json
    data_files: [data/a.jsonl, data/b.jsonl]
    type:
      field_instruction: ask
      field_input: about
      field_output: say
      field_system: sys
      format: "User: {instruction} {input}"
batch_size: 32
micro_batch_size: 4
learning_rate: 3e-4
dataset_exact_deduplication: true
excess_length_strategy: raise
default_system_message: Be brief.
tokens: [<order>, </order>]
""",
        {
            "train.examples_per_step": 32,
            "data.clean.0.similarity": 1.0,
            "data.bad_rows": "strict",
            "data.system": "Be brief.",
            "model.new_tokens": ("<order>", "</order>"),
            "data.sources.1.path": "data/b.jsonl",
            "data.sources.1.fields": {"prompt": "{ask}\n\n{about?}", "completion": "say", "system": "sys"},
        },
        {"datasets.0.type.format": "not_supported", "datasets.0.path": "no_effect"},
    ),
    "preferences": Case(
        """
base_model: a/b
rl: dpo
rl_beta: 0.1
datasets:
  - {path: data/pairs.jsonl, type: chatml.intel}
adapter: lora
micro_batch_size: 1
gradient_accumulation_steps: 1
learning_rate: 1e-6
""",
        {"train.learning_rate": 1e-6},
        {"rl": "not_supported", "rl_beta": "not_supported"},
    ),
    "typos": Case(
        """
base_model: a/b
adaptor: lora
datasets:
  - {path: data/x.jsonl, typ: alpaca, type: completion, field: body}
gradient_acumulation_steps: 4
micro_batch_size: 2
learning_rate: 1e-4
hub_modle_id: x/y
comet_api_key: hush-hush
zzz: {a: 1}
""",
        {"model.adapt.method": "full", "train.examples_per_step": 2, "data.sources.0.fields": {"text": "body"}},
        {
            "adaptor": "unknown",
            "gradient_acumulation_steps": "unknown",
            "datasets.0.typ": "unknown",
            "hub_modle_id": "unknown",
            "zzz": "unknown",
        },
    ),
    "everything that is spread": Case(
        """
base_model: a/b
fsdp: [full_shard, auto_wrap]
fsdp_config: {fsdp_offload_params: true, fsdp_state_dict_type: FULL_STATE_DICT}
context_parallel_size: 2
datasets: [{path: someone/on-the-hub, type: chat_template, split: "train[:5%]"}]
micro_batch_size: 1
gradient_accumulation_steps: 2
learning_rate: 1e-4
num_epochs: 0.5
val_set_size: 200
eval_steps: 50
train_on_inputs: true
neftune_noise_alpha: 5
optimizer: muon
lr_scheduler: linear
adam_beta2: 0.95
fp16: true
""",
        {"train.epochs": 1, "train.optimizer": "adamw", "train.schedule": "cosine"},
        dict.fromkeys(
            "fsdp fsdp_config context_parallel_size datasets.0.split num_epochs val_set_size "
            "eval_steps train_on_inputs neftune_noise_alpha optimizer lr_scheduler adam_beta2 fp16".split(),
            "not_supported",
        ),
    ),
    "LoRA in detail": Case(
        """
base_model: a/b
adapter: lora
lora_r: 8
lora_alpha: 8
peft_use_dora: true
peft_use_rslora: true
loraplus_lr_ratio: 16
lora_modules_to_save: [embed_tokens]
datasets: [{path: data/x.parquet, type: alpaca_chat.load_qa}]
micro_batch_size: 1
gradient_accumulation_steps: 1
learning_rate: 1e-4
seed: 42
bf16: false
evals_per_epoch: 2
""",
        {
            "seed": 42,
            "train.precision": "float32",
            "model.adapt.dora": True,
            "model.adapt.rslora": True,
            "model.adapt.lora_plus_ratio": 16,
            "data.sources.0.fields": {"prompt": "question", "completion": "answer"},
        },
        {"lora_modules_to_save": "not_supported"},
    ),
}

LLAMAFACTORY = {
    "lora": Case(
        """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
dataset: faq,chats
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.1
eval_strategy: steps
eval_steps: 500
""",
        {
            "name": "sft",
            "train.examples_per_step": 8,
            "train.epochs": 3,
            "train.warmup_fraction": 0.1,
            "model.adapt.rank": 8,
            "model.adapt.alpha": 16,
            "data.limit": 2000,
            "data.split.valid_fraction": 0.1,
            "data.sources.0.fields": {"prompt": "{instruction}\n{input?}", "completion": "output"},
            "data.sources.1.format": "messages",
            "data.sources.1.fields": {"messages": "messages"},
        },
        {"template": "not_supported", "eval_steps": "not_supported", "old_chats": "no_effect"},
    ),
    "full": Case(
        """
model_name_or_path: Qwen/Qwen3-4B
finetuning_type: full
dataset: [open_chats]
cutoff_len: 4096
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1.0e-5
deepspeed: examples/deepspeed/ds_z3_config.json
eval_dataset: asked
report_to: none
early_stopping_steps: 3
load_best_model_at_end: true
optim: adamw_8bit
""",
        {
            "model.adapt.method": "full",
            "train.optimizer": "adamw_8bit",
            "train.early_stopping.patience_checks": 3,
            "train.keep": "best",
            "data.max_tokens": 4096,
            "data.sources.0.fields": {"messages": "turns"},
            "data.sources.1.split": "validation",
            "data.sources.1.fields": {"prompt": "ask", "completion": "say", "system": "sys"},
        },
        {"report_to": "no_effect", "deepspeed": "not_supported"},
    ),
    "pre-training": Case(
        """
model_name_or_path: a/b
stage: pt
dataset: pages
packing: true
learning_rate: 1e-5
lr_scheduler_type: constant
""",
        {"data.sources.0.format": "text", "data.sources.0.fields": {"text": "body"}, "train.warmup_fraction": 0},
        {"stage": "carried"},
    ),
    "preferences": Case(
        "model_name_or_path: a/b\nstage: dpo\ndataset: pairs\npref_beta: 0.1\npref_loss: sigmoid\nlora_rank: 4\n",
        {"model.adapt.rank": 4, "model.adapt.alpha": 8, "data.max_tokens": 2048, "train.learning_rate": 5e-5},
        {"stage": "not_supported", "pref_beta": "not_supported"},
    ),
    "in few bits": Case(
        """
model_name_or_path: a/b
dataset: asked, turns
quantization_bit: 4
quantization_method: bnb
double_quantization: true
lora_target: q_proj,v_proj
use_rslora: true
loraplus_lr_ratio: 4.0
fp16: true
train_on_prompt: true
mask_history: false
""",
        {
            "model.quantize": "4bit",
            "model.adapt.target": ("q_proj", "v_proj"),
            "model.adapt.rslora": True,
            "model.adapt.lora_plus_ratio": 4.0,
            "train.examples_per_step": 8,
            "train.schedule": "cosine",
        },
        {"train_on_prompt": "not_supported", "mask_history": "no_effect", "fp16": "not_supported"},
    ),
    "the last layers": Case(
        "model_name_or_path: a\ndataset: hub\nfinetuning_type: freeze\nfreeze_trainable_layers: 3\nlora_rank: 8\n",
        {
            "model.adapt.method": "partial",
            "model.adapt.last_layers": 3,
            "data.sources.0.path": "hub:someone/answers@v2:en",
        },
        {
            "lora_rank": "no_effect",
            "hub.hf_hub_url": "carried",
            "hub.file_name": "no_effect",
            "hub.subset": "carried",
            "hub.revision": "carried",
        },
    ),
    "orthogonal": Case(
        "model_name_or_path: a\ndataset: rated\nfinetuning_type: oft\noft_block_size: 16\nmodule_dropout: 0.1\n",
        {
            "model.adapt.method": "peft",
            "model.adapt.type": "OFT",
            "model.adapt.params": {"r": 0, "oft_block_size": 16, "module_dropout": 0.1},
        },
    ),
    "files themselves, and typos": Case(
        """
model_name_or_path: a/b
dataset: data/loose.jsonl
learing_rate: 1e-4
num_train_epoch: 2
swanlab_api_key: hush-hush
use_swanlab: true
adapter_name_or_path: saves/first
create_new_adapter: true
""",
        {"train.learning_rate": 5e-5, "data.sources.0.path": "data/loose.jsonl"},
        {"learing_rate": "unknown", "num_train_epoch": "unknown", "swanlab_api_key": "not_supported"},
    ),
    "a program that makes rows": Case(
        "model_name_or_path: a/b\ndataset: scripted\nuse_galore: true\npissa_init: true\nval_size: 100\n",
        {"data.sources.0.path": "data/make_rows", "model.adapt.init": "pissa"},
        {"scripted.script_url": "not_supported", "use_galore": "not_supported", "val_size": "not_supported"},
    ),
}

TRL = {
    "sft with lora": Case(
        """
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: data/faq.jsonl
learning_rate: 2e-4
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
packing: true
use_peft: yes
lora_r: 32
lora_alpha: 16
lora_dropout: 0.0
lora_target_modules: all-linear
output_dir: Qwen2-0.5B-SFT
eval_strategy: "no"
report_to: none
""",
        {
            "name": "Qwen2-0.5B-SFT",
            "model.adapt.rank": 32,
            "model.adapt.target": "all-linear",
            "train.examples_per_step": 16,
            "train.epochs": 1,
            "train.schedule": "cosine",
            "train.warmup_fraction": 0,
            "data.max_tokens": 1024,
            "data.sources.0.path": "data/faq.jsonl",
        },
        {"packing": "no_effect", "eval_strategy": "no_effect"},
    ),
    "full, by defaults": Case(
        "model_name_or_path: a/b\ndataset_name: data/chats.jsonl\n",
        {
            "model.adapt.method": "full",
            "train.examples_per_step": 8,
            "train.epochs": 3,
            "train.learning_rate": 2e-5,
            "train.keep": "last",
            "train.early_stopping": None,
            "data.max_tokens": 1024,
        },
    ),
    "a mixture": Case(
        """
model_name_or_path: a/b
datasets:
  - {path: json, data_files: [data/a.jsonl, data/b.jsonl]}
  - {path: someone/answers, name: en, fraction: 0.3}
  - {path: data/c.csv, columns: [prompt, completion]}
test_split_size: 0.05
max_length:
assistant_only_loss: true
""",
        {
            "data.max_tokens": None,
            "data.split.valid_fraction": 0.05,
            "data.sources.1.path": "data/b.jsonl",
            "data.sources.2.path": "hub:someone/answers:en",
            "data.sources.3.path": "data/c.csv",
        },
        {
            "datasets.1.path": "carried",
            "datasets.1.name": "carried",
            "datasets.1.fraction": "not_supported",
            "assistant_only_loss": "no_effect",
            "max_length": "carried",
        },
    ),
    "texts": Case(
        "model_name_or_path: a/b\ndataset_name: data/p.jsonl\ndataset_text_field: body\npacking_strategy: wrapped\n",
        {"data.sources.0.format": "text", "data.sources.0.fields": {"text": "body"}},
    ),
    "in 8 bits": Case(
        """
model_name_or_path: a/b
dataset_name: data/x.jsonl
use_peft: true
load_in_8bit: true
use_dora: true
lora_modules_to_save: [lm_head]
completion_only_loss: false
warmup_ratio: 0.05
lr_scheduler_type: cosine
optim: paged_adamw_8bit
gradient_checkpointing_kwargs: {use_reentrant: false}
fsdp: full_shard auto_wrap
""",
        {
            "model.quantize": "8bit",
            "model.adapt.dora": True,
            "model.adapt.rank": 16,
            "model.adapt.alpha": 32,
            "model.adapt.dropout": 0.05,
            "train.warmup_fraction": 0.05,
            "train.optimizer": "adamw_8bit",
        },
        {
            "completion_only_loss": "not_supported",
            "lora_modules_to_save": "not_supported",
            "gradient_checkpointing_kwargs": "no_effect",
            "fsdp": "not_supported",
        },
    ),
    "preferences": Case(
        "model_name_or_path: a\ndataset_name: data/p.jsonl\nbeta: 0.1\nprecompute_ref_log_probs: on\nmax_steps: 100\n",
        {"train.epochs": 3},
        {"beta": "not_supported", "precompute_ref_log_probs": "not_supported", "max_steps": "not_supported"},
    ),
    "rewards": Case(
        """
model_name_or_path: a/b
dataset_name: someone/questions
reward_funcs: [accuracy_reward]
num_generations: 8
use_vllm: true
vllm_mode: colocate
""",
        {},
        {"reward_funcs": "not_supported", "num_generations": "not_supported", "use_vllm": "not_supported"},
    ),
    "secrets and typos": Case(
        """
env: {HF_TOKEN: hush-hush}
model_name_or_path: a/b
dataset_name: data/x.jsonl
hub_token: hush-hush
lr_schedular_type: cosine
max_lenght: 512
steps_of_warmup: 1
warmup_steps: 0.03
push_to_hub: no
report_to: [wandb]
""",
        {"train.warmup_fraction": 0.03},
        {
            "lr_schedular_type": "unknown",
            "max_lenght": "unknown",
            "env": "no_effect",
            "push_to_hub": "no_effect",
            "report_to": "not_supported",
        },
    ),
}
PEERS = {"axolotl": AXOLOTL, "llamafactory": LLAMAFACTORY, "trl": TRL}
