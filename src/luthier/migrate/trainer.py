"""What TRL and LLaMA-Factory share: the keys of transformers' TrainingArguments, and rules that Axolotl has too.

The keys are those of transformers 5 (`training_args.py`), with names that were dropped since version 4 and still stand
in people's files. Batches: examples of a step = batch of a device x accumulation x devices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from luthier.migrate.engine import Fate, Rule, Table, View
from luthier.migrate.kinds import anything, flag, names, number, text, whole
from luthier.migrate.rules import OFF, carried, choice, fixed, keys, no_effect, not_supported

REST = "`luthier check` tells the steps of the whole run"
IN_ONE_PROCESS = "Luthier trains in one process; what a step learns is the same"
EXAMPLES = "a packed row held several examples where a step here counts each: raise train.examples_per_step likewise"


# -- batches and length ----------------------------------------------------------------------------------


def batch(of_device: str, accumulation: str, default: int) -> Table:
    """The examples of a step, from the batch of a device and the steps that gradients are accumulated for."""

    def product(view: View) -> tuple[int, str]:
        parts = (view(of_device), view(accumulation) or 1, view.place.devices)
        said = "{} a device x {} accumulated x {} {}".format(*parts, "device" if parts[2] == 1 else "devices")
        return math.prod(parts), said

    def by_device(value: int, view: View) -> Fate:
        total, said = product(view)
        return Fate("carried", said, {"train.examples_per_step": total})

    def by_accumulation(value: int, view: View) -> Fate:
        total, said = product(view)
        return Fate(
            "no_effect", f"train.examples_per_step is what counts, and the product is carried: {said} = {total}"
        )

    doc = "no effect: the product is carried, in `train.examples_per_step`"
    return {
        of_device: Rule(whole, f"`train.examples_per_step`, times {accumulation} and devices", by_device, default),
        accumulation: Rule(whole, doc, by_accumulation),
    }


def epochs(default: float) -> Rule:
    def by(value: float, view: View) -> Fate:
        if value.is_integer():
            return Fate("carried", "", {"train.epochs": int(value)})
        said = f"{value:g} epochs; whole ones are counted here, so the recipe has {math.ceil(value)}"
        return Fate("not_supported", said, {"train.epochs": math.ceil(value)})

    return Rule(number, "`train.epochs`; a part of an epoch is not supported: the next whole number", by, default)


def steps_at_most() -> Rule:
    def by(value: int, view: View) -> Fate:
        if value <= 0:
            return Fate("no_effect", "is off")
        said = f"{value} steps at most; a run is train.epochs long: {REST}, so choose the epochs nearest to it"
        return Fate("not_supported", said)

    return Rule(whole, f"not supported: runs are as long as train.epochs says; {REST}", by)


def too_long(cut: bool) -> str:
    """What is said of a limit of tokens: peers cut or drop what is longer."""
    did = "a longer row was cut; here it is" if cut else "a longer row is"
    return f"{did} rejected and counted, and above data.max_rejected_fraction the run stops"


def packing() -> Rule:
    said = f"prefix-tree batches do without; {EXAMPLES} (by about its length / tokens of an example: luthier check)"

    def by(value: Any, view: View) -> Fate:
        return Fate("no_effect", "is off" if value in OFF else said)

    return Rule(anything, f"no effect: {said}", by)


# -- learning rate ---------------------------------------------------------------------------------------


def schedule(default: str) -> Rule:
    """transformers' `constant` has no warm-up."""

    def by(value: str, view: View) -> Fate:
        if value == "cosine":
            return Fate("carried", "", {"train.schedule": "cosine"})
        if value == "constant_with_warmup":
            return Fate("carried", "", {"train.schedule": "constant"})
        if value == "constant":
            return Fate("carried", "without warm-up", {"train.schedule": "constant", "train.warmup_fraction": 0.0})
        said = f"the schedule '{value[:40]}'; the recipe has cosine, which falls to 0 too"
        return Fate("not_supported", said, {"train.schedule": "cosine"})

    doc = "`train.schedule`: cosine, constant (no warm-up), constant_with_warmup; others are not supported: cosine"
    return Rule(text, doc, by, default)


def warmup(scheduled: str, steps_default: float | None = 0) -> Table:
    """Warm-up in steps, or, below 1, as a fraction of the run; and as a ratio, which steps win over."""

    def fraction(value: float) -> Fate:
        if value > 1:
            return Fate("not_supported", f"{value:g} of the run; a fraction is at most 1")
        return Fate("carried", "", {"train.warmup_fraction": value})

    def by_steps(value: float, view: View) -> Fate:
        limit = max(view("max_steps") or 0, 0)
        if view(scheduled) == "constant":
            return Fate("no_effect", "a constant schedule has no warm-up")
        if view("warmup_ratio") and not view.given("warmup_steps"):
            return Fate("no_effect", "warmup_ratio says it")
        if value < 1:
            return fraction(value)
        if value <= limit:
            return Fate("carried", f"of max_steps {limit}", {"train.warmup_fraction": value / limit})
        said = f"{value:g} steps; here it is a fraction of the run: {REST}, N: train.warmup_fraction = {value:g}/N"
        return Fate("not_supported", said)

    def by_ratio(value: float, view: View) -> Fate:
        if view(scheduled) == "constant":
            return Fate("no_effect", "a constant schedule has no warm-up")
        if view.given("warmup_steps"):
            return Fate("no_effect", "warmup_steps is set, and wins")
        return fraction(value) if value else Fate("no_effect", "is off")

    steps_doc = f"`train.warmup_fraction` where below 1 or with max_steps; else not supported: {REST}"
    return {
        "warmup_steps": Rule(number, steps_doc, by_steps, steps_default),
        "warmup_ratio": Rule(number, "`train.warmup_fraction`", by_ratio),
    }


def _clipping(value: float, view: View) -> Fate:
    return Fate("carried", "", {"train.max_grad_norm": value or None})


CLIPPING = Rule(number, "`train.max_grad_norm`; 0 → null", _clipping)


ADAMW = "adamw adamw_torch adamw_torch_fused adamw_hf adamw_apex_fused adamw_anyprecision paged_adamw paged_adamw_32bit"
ADAMW_8BIT = "adamw_8bit adamw_bnb_8bit paged_adamw_8bit"
OPTIMIZER = choice(
    "train.optimizer",
    dict.fromkeys(ADAMW.split(), "adamw") | dict.fromkeys(ADAMW_8BIT.split(), "adamw_8bit"),
    "AdamW learns instead, and its rate may have to be another",
    "adamw",
)
ADAM = {
    "adam_beta1": fixed(number, (0.9,), "Adam's first decay", "it is 0.9 here"),
    "adam_beta2": fixed(number, (0.999,), "Adam's second decay", "it is 0.999 here"),
    "adam_epsilon": fixed(number, (1e-8,), "Adam's epsilon", "it is 1e-8 here"),
}


# -- precision -------------------------------------------------------------------------------------------


def in_bfloat16(value: Any, view: View) -> Fate:
    if str(value).lower() in ("auto", "full") or flag(value):
        return Fate("carried", "bfloat16 on a GPU that has it", {"train.precision": "auto"})
    if view("fp16"):
        return Fate("no_effect", "is off")
    return Fate("carried", "", {"train.precision": "float32"})


HALVES: Table = {
    "bf16": Rule(
        anything, "`train.precision`: true → auto (bfloat16 on a GPU that has it), false → float32", in_bfloat16
    ),
    "fp16": not_supported("products in float16", "train.precision has bfloat16 and float32", flag),
}


# -- evaluation, checkpoints, logs -----------------------------------------------------------------------


EARLIER_KEYS = ("evals_per_epoch", "eval_strategy")
"""Which decide how often is validated, where several keys speak of it."""


def _validated(key: str) -> Callable[[str, View], Fate]:
    earlier = EARLIER_KEYS[: EARLIER_KEYS.index(key)] if key in EARLIER_KEYS else EARLIER_KEYS

    def by(value: str, view: View) -> Fate:
        wins = next((one for one in earlier if one in view.table and view.given(one)), None)
        return Fate("no_effect", f"{wins} is given, and wins") if wins else _strategy(value)

    return by


def _strategy(value: str) -> Fate:
    if value == "epoch":
        return Fate("carried", "", {"train.checks_per_epoch": 1})
    if value in ("no", "false", "False"):
        return Fate("no_effect", "Luthier always validates, train.checks_per_epoch times an epoch")
    return Fate("not_supported", "validations every so many steps; set train.checks_per_epoch")


def best(default: bool) -> Rule:
    def by(value: bool, view: View) -> Fate:
        return Fate("carried", "" if value else "the last weights", {"train.keep": "best" if value else "last"})

    return Rule(flag, "`train.keep`: true → best, false → last", by, default)


def patience() -> Rule:
    def by(value: int, view: View) -> Fate:
        found = {"patience_checks": value} if value else None
        return Fate("carried", "" if value else "no early stopping", {"train.early_stopping": found})

    return Rule(whole, "`train.early_stopping.patience_checks`", by)


def as_name(path: str) -> str:
    """The last part of a path, as runs may be named; empty where nothing of it may."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(path).name).strip("-._")[:64]


def run_name(value: str, view: View) -> Fate:
    name = as_name(value)
    if not name:
        return Fate("no_effect", "runs lie in runs/NAME-HASH")
    return Fate("carried", "runs lie in runs/NAME-HASH", {"name": name})


OUTPUT = Rule(text, "`name`: its last part; runs lie in runs/NAME-HASH", run_name)
VALIDATED = "`train.checks_per_epoch`: epoch → 1; steps are not supported: set it"
STRATEGIES: Table = {key: Rule(text, VALIDATED, _validated(key)) for key in ("eval_strategy", "evaluation_strategy")}
LOSS = fixed(text, ("loss", "eval_loss"), "what decides which weights are best", "it is the validation nll here")


def held_out(other: str | None = None) -> Rule:
    """A part of the rows to validate on: a fraction, or, from 1 on, so many rows. `other` names such rows."""

    def by(value: float, view: View) -> Fate:
        if not value:
            return Fate("no_effect", "Luthier always validates: data.split.valid_fraction of the rows")
        if other and view(other):
            return Fate("no_effect", f"{other} is given, and wins")
        if value < 1:
            return Fate("carried", "", {"data.split.valid_fraction": value})
        return Fate("not_supported", f"{value:g} rows; a fraction here: data.split.valid_fraction = {value:g} / rows")

    return Rule(number, "`data.split.valid_fraction`; so many rows are not supported", by)


LOGGED = not_supported("logging to a service", "the log is in the run's folder")
UPLOADED = not_supported("an upload to the hub", "Luthier uploads nothing: hf upload, from the run's release/ folder")
DEVICES = not_supported("training spread over devices", IN_ONE_PROCESS)
RUNTIME = no_effect("it changes time and memory, not what is learned")
RECOMPUTED = no_effect("train.recompute_layers: auto computes as many layers again as memory asks for")
ATTENTION = no_effect("Luthier's attention goes by blocks of the prefix tree")
CHECKPOINTS = no_effect("checkpoints come by time (train.save_every_s), and a killed run goes on from the last")
REPORTED = no_effect("it changes what is shown, not what is learned")
GOES_ON = no_effect("the same command goes on where it stopped")
FOREIGN_CODE = not_supported("code from the hub", "Luthier runs none: use a model that transformers itself knows")
REVISION = not_supported(
    "a revision of the model", "fetch that revision, and name its folder in model.base", text, ("main", "")
)
NOISE = not_supported(
    "noise on the embeddings (NEFTune)", "there is none here: train.epochs and adapt.dropout also regularise"
)


def base_model(value: str, view: View) -> Fate:
    """A folder is found as data is; anything else is a name on the hub."""
    found = view.place.find(value)
    path = view.place.for_recipe(value) if found else value
    return Fate("carried", "", {"model.base": path})


BASE = Rule(text, "`model.base`: a folder, or a name on the hub", base_model, required=True)


def training(learning_rate: float, batch_of_device: int = 8) -> dict[str, Rule]:
    """The rules for transformers' TrainingArguments, with the defaults that differ between peers."""
    return {
        **batch("per_device_train_batch_size", "gradient_accumulation_steps", batch_of_device),
        "num_train_epochs": epochs(3.0),
        "max_steps": steps_at_most(),
        "learning_rate": carried("train.learning_rate", number, default=learning_rate),
        "lr_scheduler_type": schedule("linear"),
        "lr_scheduler_kwargs": not_supported("the schedule's parameters", "cosine falls to 0, constant stays"),
        **warmup("lr_scheduler_type"),
        "weight_decay": carried("train.weight_decay", number),
        "max_grad_norm": CLIPPING,
        "optim": OPTIMIZER,
        "optim_args": not_supported("the optimizer's parameters", "AdamW has none to set here"),
        "optim_target_modules": not_supported("an optimizer for some modules", "AdamW learns all"),
        **ADAM,
        "label_smoothing_factor": not_supported("smoothed labels", "the loss is the plain nll", number),
        "neftune_noise_alpha": NOISE,
        **HALVES,
        **keys("half_precision_backend fp16_opt_level fp16_backend tf32 bf16_full_eval fp16_full_eval", RUNTIME),
        **STRATEGIES,
        "eval_steps": not_supported("validations every so many steps", "set train.checks_per_epoch", number),
        "load_best_model_at_end": best(False),
        "metric_for_best_model": LOSS,
        "greater_is_better": no_effect("weights are best where the validation nll is lowest"),
        "seed": carried("seed", whole),
        "data_seed": not_supported("a seed for the order of rows", "`seed` is that of everything", whole, (None,)),
        "output_dir": OUTPUT,
        "run_name": no_effect("runs are named by `name`"),
        "report_to": Rule(
            anything,
            f"not supported: {LOGGED.doc.removeprefix('not supported: ')}",
            lambda value, view: LOGGED.by(None if names(value) in ([], ["none"]) else value, view),
        ),
        **keys("project trackio_space_id trackio_bucket_id trackio_static_space_id", REPORTED),
        **keys(
            "logging_strategy logging_steps logging_dir logging_first_step log_on_each_node logging_nan_inf_filter "
            "include_num_input_tokens_seen include_tokens_per_second log_level log_level_replica disable_tqdm "
            "skip_memory_metrics debug prediction_loss_only include_for_metrics include_inputs_for_metrics label_names",
            REPORTED,
        ),
        **keys(
            "save_strategy save_steps save_total_limit save_only_model save_on_each_node save_safetensors "
            "enable_jit_checkpoint restore_callback_states_from_checkpoint",
            CHECKPOINTS,
        ),
        **keys("resume_from_checkpoint ignore_data_skip overwrite_output_dir", GOES_ON),
        **keys("do_train do_eval do_predict", no_effect("luthier run trains, evaluates and judges")),
        **keys(
            "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
            "push_to_hub_model_id push_to_hub_organization push_to_hub_token",
            UPLOADED,
        ),
        **keys("gradient_checkpointing gradient_checkpointing_kwargs", RECOMPUTED),
        **keys("activation_checkpointing activation_checkpointing_kwargs activation_offloading", RECOMPUTED),
        **keys(
            "per_device_eval_batch_size eval_accumulation_steps eval_delay eval_on_start eval_do_concat_batches "
            "eval_use_gather_object batch_eval_metrics torch_compile torch_compile_backend torch_compile_mode "
            "use_liger_kernel liger_kernel_config use_cache torch_empty_cache_steps auto_find_batch_size jit_mode_eval "
            "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
            "dataloader_multiprocessing_context dataloader_in_order average_tokens_across_devices "
            "use_cpu no_cuda use_ipex use_mps_device full_determinism ray_scope",
            RUNTIME,
        ),
        **keys("group_by_length train_sampling_strategy length_column_name", no_effect("nothing is padded here")),
        "dataloader_drop_last": no_effect("each row is learned from once an epoch, the last ones too"),
        "remove_unused_columns": no_effect("columns that the model does not read are kept as tags"),
        **keys(
            "deepspeed fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap accelerator_config "
            "parallelism_config",
            DEVICES,
        ),
        **keys(
            "local_rank ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
            "ddp_backend ddp_timeout",
            no_effect(IN_ONE_PROCESS),
        ),
    }
