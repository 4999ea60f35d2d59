"""`train`: how long, how fast and in which steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.settings.section import Count, Fraction, Positive, Section

Precision = Literal["auto", "float32", "bfloat16"]


class EarlyStopping(Section):
    patience_checks: Count = 3
    """Training stops after this many validations in a row without a lower nll."""


class Train(Section):
    epochs: Count = 3
    """How often each training row is learned from, unless training stops early."""
    examples_per_step: Count = 16
    """Over all devices. How a step is cut into micro-batches is derived and does not change the gradient."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Where several processes train (`--nproc`, `--nnodes`): ddp, each holds the whole model; fsdp, a part of every
    layer ([from a laptop to a cluster](cluster.md))."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: by bitsandbytes, with AdamW's two moments in 8 bits each (Dettmers et al. 2022)."""
    precision: Precision = "auto"
    """What matrices are multiplied in during training; what learns adds up in float32. auto: bfloat16 on a GPU that has
    it, float32 elsewhere. On a CPU bfloat16 is for fused layers, and faster where the processor has it."""
    learning_rate: Positive | None = None
    """The highest one, at the end of the warm-up. None: from the technique and the model's width
    ([which](techniques.md#the-learning-rate))."""
    warmup_fraction: Fraction = 0.05
    """Of the run, in which the learning rate rises from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate after the warm-up: cosine falls to 0, constant stays."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """AdamW's, on matrices; norms and biases have none."""
    max_grad_norm: Positive | None = 1.0
    """Larger gradients are scaled down to it; null: as they are."""
    on_bad_step: Literal["stop", "skip", "roll_back"] = "stop"
    """What to do with a step whose gradient is not finite, or a spike: stop and name its rows; learn nothing from it;
    or go back to the best weights so far besides. Three in a row stop the run in any case."""
    spike: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """A gradient norm this many times the median of the last 64 steps is a spike; null: none is."""
    tokens_per_micro_batch: Count = 2048
    """Memory bound: distinct tokens in one forward pass. A single longer example still runs, alone."""
    recompute_layers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Layers whose activations are computed again in the backward pass ("gradient checkpointing"); auto: as many as
    the memory that is free asks for. Changes time and memory alone."""
    update_in_backward: bool = False
    """Update a layer's weights as soon as their gradient is there, so that the gradient never exists whole. For steps
    of one micro-batch, with `max_grad_norm: null`."""
    checks_per_epoch: Count = 2
    """Validations an epoch; each may save new best weights."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    """None: training runs to its end."""
    keep: Literal["best", "last"] = "best"
    """The weights that the run ends with: those of the lowest validation nll, or the last ones."""
    save_every_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """Seconds between checkpoints; 0 saves after every step."""
    max_minutes: Positive | None = None
    """Stop and finish the schedule within this time. Makes a run depend on the machine's speed."""

    @property
    def rate(self) -> float:
        """The learning rate, once it is known."""
        assert self.learning_rate is not None
        return self.learning_rate

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Train:
        if self.parallel == "fsdp" and (self.update_in_backward or self.optimizer != "adamw"):
            raise ValueError("parallel: fsdp is for optimizer: adamw, without update_in_backward")
        return self

    @model_validator(mode="after")
    def _can_update_in_backward(self) -> Train:
        if self.update_in_backward and not (self.max_grad_norm is None and self.spike is None):
            unknown = "the whole gradient's norm is never known"
            raise ValueError(f"update_in_backward needs max_grad_norm: null and spike: null: {unknown}")
        if self.update_in_backward and self.on_bad_step == "skip":
            raise ValueError("update_in_backward cannot skip a step that has begun: on_bad_step stop or roll_back")
        return self
