"""`model`: the base model, and what of it is trained."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from luthier.settings.section import Count, Fraction, Positive, Section
from luthier.techniques import TECHNIQUES, not_trained


def _is_pattern(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    try:
        re.compile(value if isinstance(value, str) else "")
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


Pattern = Annotated[str, AfterValidator(_is_pattern)]
Names = Annotated[str | Annotated[tuple[str, ...], Field(strict=False)], AfterValidator(_is_pattern)]


class Full(Section):
    """All of the model's own weights; saved as a whole model."""

    method: Literal["full"]


class Partial(Section):
    """Some of the model's own weights, all that one of these settings names; saved as a whole model."""

    method: Literal["partial"]
    train: Names | None = None
    """Weights: a regular expression for the whole name, '.*norm.*', or a list of parts of names, [norm, lm_head]."""
    bitfit: bool = False
    """Every bias."""
    last_layers: Count | None = None
    """All of the model's last so many layers."""

    @model_validator(mode="after")
    def _trains_something(self) -> Partial:
        if not (self.train or self.bitfit or self.last_layers):
            raise ValueError("say what to train: `train`, `bitfit` or `last_layers`")
        return self


class Lora(Section):
    """Two thin matrices beside each frozen weight (Hu et al. 2021)."""

    method: Literal["lora"] = "lora"
    rank: Count = 16
    """The thin side of the two matrices."""
    alpha: Positive = 32.0
    """Changes are scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Of an adapter's inputs, while it learns; above 0 the model runs row by row."""
    target: Names = "all-linear"
    """`all-linear`, a regular expression for whole names of modules, or a list of their endings."""
    last_layers: Count | None = None
    """Only in the model's last so many layers, where the backward pass then ends."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that large ranks learn as fast as small ones; else by alpha / rank."""
    dora: bool = False
    """Learn the norm of each row of a weight apart from its direction."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = "default"
    """pissa and olora begin with a weight's main directions; saved is the change alone, as LoRA of twice the rank."""
    lora_plus_ratio: Positive = 1.0
    """The learning rate of B, in multiples of A's."""
    rank_pattern: dict[Pattern, Count] = {}
    """Other ranks by a regular expression for the end of a module's name, e.g. {v_proj: 32}."""
    alpha_pattern: dict[Pattern, Positive] = {}
    """Other alphas, likewise."""

    @property
    def changes_base(self) -> bool:
        """Whether the adapter begins with a part of the base model's weights, which is taken out of them."""
        return self.init in ("pissa", "olora")

    @model_validator(mode="after")
    def _can_be_begun_and_saved(self) -> Lora:
        if self.changes_base and self.dora:
            raise ValueError(f"dora with init {self.init} cannot be saved as an adapter of the unchanged base model")
        if self.init == "orthogonal" and any(rank % 2 for rank in (self.rank, *self.rank_pattern.values())):
            raise ValueError("init orthogonal needs even ranks")
        return self


class AdaLora(Section):
    """LoRA whose rank moves between layers while it trains; saved as LoRA."""

    method: Literal["adalora"]
    target_rank: Count = 16
    """The mean rank of a layer at the end."""
    initial_rank: Count = 24
    """Of every layer at the beginning."""
    alpha: Positive = 32.0
    """Changes are scaled by alpha / initial_rank."""
    target: Names = "all-linear"
    """As with LoRA."""
    start_fraction: Fraction = 0.1
    """Of the steps, before any rank is taken."""
    final_fraction: Fraction = 0.3
    """Of the steps, at the end, in which the ranks stay as they are."""
    smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """How much of a weight's importance comes from earlier steps."""
    orthogonality: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of the penalty that keeps A's rows and B's columns orthogonal."""

    @model_validator(mode="after")
    def _has_a_budget_to_take(self) -> AdaLora:
        if self.target_rank >= self.initial_rank:
            raise ValueError("target_rank must be below initial_rank: the ranks between them are what is moved")
        if self.start_fraction + self.final_fraction >= 1:
            raise ValueError("start_fraction and final_fraction leave no steps in which ranks are taken")
        return self


class Peft(Section):
    """A technique of peft's beside LoRA. `{method: ia3}` is short for `{method: peft, type: IA3}`."""

    method: Literal["peft"]
    type: str
    """BEFT, BOFT, C3A, DELORA, HRA, IA3, LOHA, LOKR, MISS, OFT, VBLORA or VERA."""
    target: Names | None = None
    """As with LoRA; None: the modules that peft takes by default for this architecture."""
    params: dict[str, Any] = {}
    """What peft's configuration class of this type takes; checked against it."""

    @model_validator(mode="after")
    def _may_train(self) -> Peft:
        if reason := not_trained(self.type):
            raise ValueError(reason)
        return self


class Bottleneck(Section):
    """Small networks between the parts of each layer; the module that holds them is ours."""

    method: Literal["bottleneck"]
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """houlsby: after attention and after the MLP; pfeiffer: after the MLP; parallel: beside the MLP."""
    size: Count = 64
    """Of the bottleneck."""
    reduction: Count | None = None
    """Instead of `size`: the model's hidden size divided by it."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """Between the two layers of the bottleneck."""
    scale: Positive | None = None
    """Of what an adapter adds. None: 4 in parallel, else 1."""
    last_layers: Count | None = None
    """As with LoRA."""

    @model_validator(mode="after")
    def _has_one_size(self) -> Bottleneck:
        if self.reduction is not None and self.size != type(self).model_fields["size"].default:
            raise ValueError("give size or reduction, not both")
        return self


class Prompt(Section):
    """Prompt tuning (Lester et al. 2021): embeddings of virtual tokens that stand before every text."""

    method: Literal["prompt"]
    tokens: Count = 20
    """Virtual tokens. They take so many places of the context window."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """What they begin as, repeated or cut to their number; None: tokens drawn from the vocabulary."""


class PTuning(Section):
    """P-tuning (Liu et al. 2021): as prompt tuning, the embeddings made by a small network, which is not kept."""

    method: Literal["p_tuning"]
    tokens: Count = 20
    """Virtual tokens. They take so many places of the context window."""
    hidden: Count | None = None
    """The width of the network's two hidden layers; None: that of the model."""


class Prefix(Section):
    """Prefix tuning (Li & Liang 2021): keys and values of virtual tokens in every layer."""

    method: Literal["prefix"]
    tokens: Count = 20
    """Virtual tokens. They take so many places of the context window."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """What they begin as, repeated or cut to their number; None: tokens drawn from the vocabulary."""
    hidden: Count | None = None
    """Learned through a network with a hidden layer of this width, which is not kept and begins at random."""

    @model_validator(mode="after")
    def _begins_in_one_way(self) -> Prefix:
        if self.text is not None and self.hidden is not None:
            raise ValueError("a network (`hidden`) begins at random, not as a text: use one of the two")
        return self


class Auto(Section):
    """What is trained is chosen before training, by measurements, rules and short trials, as `luthier advise` does.

    `adapt: auto` is short for `{method: auto}`.
    """

    method: Literal["auto"]
    trials: bool = True
    """Compare the first three candidates by short trials."""
    max_train_minutes: Positive | None = None
    """Candidates whose training is predicted to take longer are out. None: `train.max_minutes`, if that is set."""


Adapt = Annotated[
    Lora | AdaLora | Peft | Bottleneck | Prompt | PTuning | Prefix | Partial | Full | Auto,
    Field(discriminator="method"),
]
WHOLE = (Full, Partial)
"""What leaves a whole model; the others leave an adapter."""


Quantize = Literal["8bit", "4bit"]


class GivenAdapter(Section):
    """A LoRA adapter that was trained before: `path`, or `{path: ..., weight: 0.5}`."""

    path: str
    """Its folder, or that of the run that trained it; relative to the recipe."""
    weight: Positive = 1.0
    """How much of its change is added."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


def _is_a_word(token: str) -> str:
    if not token.strip() or token != token.strip():
        raise ValueError("a new token holds more than white space, and none at its edges")
    return token


class Model(Section):
    base: str = "smollm2-135m-instruct"
    """A built-in name, a hub name, a folder or a .gguf file."""
    quantize: Quantize | None = None
    """Hold the linear layers of the frozen base in so few bits while adapters learn: QLoRA, load_in_4bit elsewhere.
    Evaluated and released are the adapters on the base as it is."""
    new_tokens: Annotated[tuple[Annotated[str, AfterValidator(_is_a_word)], ...], Field(strict=False)] = ()
    """Words that become one token each, wherever they are written, such as `[<order>, </order>]`; their embeddings are
    learned (method full, partial, lora or adalora)."""
    adapters: Annotated[tuple[GivenAdapter, ...], Field(strict=False)] = ()
    """LoRA adapters that stay as they are and act together with what is trained (method full, partial, lora without
    dora, or adalora)."""
    adapt: Adapt = Lora()
    """How, by its `method`; lora unless another is said. A name alone, such as `auto`, is short for `{method: auto}`;
    `{method: ia3}` for `{method: peft, type: IA3}`."""

    @property
    def virtual_tokens(self) -> int:
        """How many places of the context window a learned beginning takes."""
        return self.adapt.tokens if isinstance(self.adapt, Prompt | PTuning | Prefix) else 0

    @model_validator(mode="after")
    def _technique_takes_them(self) -> Model:
        if repeated := sorted({token for token in self.new_tokens if self.new_tokens.count(token) > 1}):
            raise ValueError(f"new_tokens names {repeated[0]!r} twice")
        if isinstance(self.adapt, Auto) and (self.new_tokens or self.adapters or self.quantize):
            raise ValueError(
                "adapt: auto chooses for a base as it is; with new_tokens, adapters or quantize, name a method"
            )
        fits = isinstance(self.adapt, Full | Partial | Lora | AdaLora)
        if self.new_tokens and not fits:
            raise ValueError("new_tokens are learned with method full, partial, lora or adalora only")
        if self.adapters and self.quantize:
            raise ValueError("adapters are added to the base's weights, which quantize rounds away: use one of the two")
        if self.adapters and (not fits or getattr(self.adapt, "dora", False)):
            raise ValueError("adapters act together with method full, partial, lora without dora, or adalora only")
        return self

    @model_validator(mode="before")
    @classmethod
    def _lora_unless_said(cls, value: Any) -> Any:
        """So that `adapt: {rank: 8}` is enough; `to_yaml`, which leaves out defaults, writes it so."""
        adapt = value.get("adapt") if isinstance(value, dict) else None
        if isinstance(adapt, str):
            adapt = {"method": adapt}
        if not isinstance(adapt, dict):
            return value
        technique = str(adapt.get("method")).upper()
        if technique in TECHNIQUES:
            adapt = {**adapt, "method": "peft", "type": technique}
        return {**value, "adapt": {"method": "lora", **adapt}}

    @model_validator(mode="after")
    def _quantizes_what_is_frozen(self) -> Model:
        if self.quantize and isinstance(self.adapt, WHOLE):
            raise ValueError(f"quantize: method {self.adapt.method} trains the base's own weights, which must be whole")
        if self.quantize and isinstance(self.adapt, Lora) and self.adapt.changes_base:
            raise ValueError(
                f"quantize: init {self.adapt.init} takes a part out of the base's weights: use another init"
            )
        return self
