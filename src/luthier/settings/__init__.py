"""The settings of a recipe: everything a person decides about a run, in one frozen, strict tree.

One module for each section of a recipe; all of them are read from here. A field enters the tree with the feature that
reads it; a test walks the fields and fails on one that no code reads. The unit is in the name. What is wrong in a tree
by itself is said here; `recipe.py` reads files and checks plug-ins.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from luthier.settings.augment import AugmentUse, left_out, names_of
from luthier.settings.data import CheckUse, Cleaner, Data, Dedupe, FormatName, Source, Split, source_path
from luthier.settings.evaluate import Evaluate, Judge, Servers, SuiteUse, check_urls, metric_name
from luthier.settings.model import (
    WHOLE,
    AdaLora,
    Adapt,
    Auto,
    Bottleneck,
    Full,
    GivenAdapter,
    Lora,
    Model,
    Partial,
    Peft,
    Prefix,
    Prompt,
    PTuning,
    Quantize,
)
from luthier.settings.prepare import Prepare
from luthier.settings.release import HUMAN_PREFERENCE, Release, Rule
from luthier.settings.section import Section, Use, fingerprint, located
from luthier.settings.train import EarlyStopping, Precision, Train
from luthier.techniques import LEARNED_PROMPTS, UNMERGED

__all__ = [
    "HUMAN_PREFERENCE", "WHOLE", "AdaLora", "Adapt", "AugmentUse", "Auto", "Bottleneck", "CheckUse", "Cleaner",
    "Data", "Dedupe", "EarlyStopping", "Evaluate", "FormatName", "Full", "GivenAdapter", "Judge", "Lora", "Model",
    "PTuning", "Partial", "Peft", "Precision", "Prefix", "Prepare", "Prompt", "Quantize", "Recipe", "Release", "Rule",
    "Section", "Servers", "Source", "Split", "SuiteUse", "Train", "Use", "check_urls", "fingerprint", "left_out",
    "located", "metric_name", "names_of", "source_path",
]  # fmt: skip


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    """Letters, digits, dots, dashes and underscores: it names the run's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of everything that is drawn: sides, beginnings, orders, limits."""
    data: Data
    """Where the rows come from, what becomes of them, and which side each is on."""
    prepare: Prepare = Prepare()
    """Where they are read and compared, which changes nothing of what comes out."""
    model: Model = Model()
    """The base model, and what of it is trained."""
    train: Train = Train()
    """How long, how fast and in which steps."""
    evaluate: Evaluate = Evaluate()
    """What is asked of the base and the tuned model, who answers and who judges."""
    release: Release
    """The rules that a tuned model must pass, and what leaves the house."""

    @model_validator(mode="after")
    def _slices_exist(self) -> Recipe:
        for rule in self.release.rules:
            if unknown := set(rule.in_slices) - set(self.data.slices):
                raise ValueError(
                    f"release rule in slices {sorted(unknown)}, but data.slices has {list(self.data.slices)}"
                )
        return self

    @model_validator(mode="after")
    def _servers_can_load_what_is_trained(self) -> Recipe:
        if not self.evaluate.servers:
            return self
        adapt = self.model.adapt
        if not isinstance(adapt, Lora):
            raise ValueError("evaluate.servers load the tuned model as a LoRA adapter: use one, or evaluate without")
        if adapt.dora or adapt.rank_pattern or adapt.alpha_pattern:  # vLLM: no DoRA, and one scale for all layers
            raise ValueError("evaluate.servers load LoRA without dora, rank_pattern and alpha_pattern only")
        if self.model.new_tokens or self.model.adapters:  # their vocabulary is the base's; joined ranks may differ
            raise ValueError("evaluate.servers load no new_tokens, and no adapter that was joined with others")
        return self

    @model_validator(mode="after")
    def _can_update_in_backward(self) -> Recipe:
        if self.train.update_in_backward and isinstance(self.model.adapt, AdaLora):
            raise ValueError("train.update_in_backward: AdaLoRA needs the gradients of all layers at once")
        return self

    @model_validator(mode="after")
    def _merges_what_can_be_merged(self) -> Recipe:
        adapt = self.model.adapt
        technique = adapt.type if isinstance(adapt, Peft) else LEARNED_PROMPTS.get(adapt.method, adapt.method)
        if "merged" in self.release.export and technique in UNMERGED:
            raise ValueError(f"release.export: {technique} cannot be merged; the adapter is exported in any case")
        return self

    @property
    def needs_bitsandbytes(self) -> bool:
        """The package that holds weights in 4 bits and moments in 8."""
        return self.model.quantize == "4bit" or self.train.optimizer == "adamw_8bit"
