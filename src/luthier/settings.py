"""The settings of a recipe: everything a person decides about a run, in one frozen, strict tree.

A field enters the tree with the feature that reads it; a test walks the fields and fails on one that no code reads.
The unit is in the name. What is wrong in a tree by itself is said here; `recipe.py` reads files and checks plug-ins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from luthier.conversation import Side
from luthier.errors import did_you_mean
from luthier.suites import SHIPPED, Form, metrics_of
from luthier.techniques import LEARNED_PROMPTS, TECHNIQUES, UNMERGED, not_trained

HUMAN_PREFERENCE = "human_preference"
"""The metric that people measure, in `luthier review`."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
FormatName = Literal["auto", "messages", "prompt_completion", "classification", "text"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Use(Section):
    """A plug-in and its parameters: `rouge` or `{use: rouge, stem: true}`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    use: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def names(self) -> tuple[str, ...]:
        """Its own, and that of a plug-in that it is made `of`, as `group_gap` is."""
        of = self.params.get("of")
        inner = of.get("use") if isinstance(of, dict) else of
        return (self.use, inner) if isinstance(inner, str) else (self.use,)


class Source(Section):
    path: str
    """A file or a folder of files; relative to the recipe."""
    split: Side | None = None
    """The side all rows of this source belong to; None: the recipe's split decides."""
    format: FormatName | None = None
    """None: `data.format`. Sources may differ: chats to learn from, and general texts to replay against forgetting."""
    fields: dict[str, str] | None = None
    """None: `data.fields`."""


class Dedupe(Section):
    use: Literal["dedupe"]
    similarity: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Jaccard similarity of word shingles of whole conversations; 1.0 removes exact copies only."""


class Split(Section):
    by: str = "family"
    """`given`: rows carry a `split` column. `family`, or the name of a column whose values stay together.
    A side that a file or a source gives always wins."""
    valid_fraction: Fraction = 0.05
    test_fraction: Fraction = 0.10
    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Prompts at least this similar stay on one side, or are reported as leakage where sides are given."""

    @model_validator(mode="after")
    def _leaves_something_to_train(self) -> Split:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction and test_fraction leave nothing to train on")
        return self


class Data(Section):
    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)]
    format: FormatName = "auto"
    fields: dict[str, str] = {}
    """messages, prompt, completion, text, label, system, split -> a column, or a template: '{table}\\n{question}'.
    `{column?}` may be absent from a row."""
    system: str | None = None
    """System text for conversations that have none."""
    clean: Annotated[tuple[Dedupe, ...], Field(strict=False)] = ()
    max_rejected_fraction: Fraction = 0.01
    """Above it the run stops: look at the data, not at the loss. 0 is strict."""
    limit: Count | None = None
    """At most this many conversations a side, drawn by seed; said in the report."""
    max_tokens: Count | None = None
    """A longer conversation is rejected, never cut. None: the base model's context window."""
    split: Split = Split()
    slices: Annotated[tuple[str, ...], Field(strict=False)] = ()


def _is_pattern(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    try:
        re.compile(value if isinstance(value, str) else "")
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


Pattern = Annotated[str, AfterValidator(_is_pattern)]
Names = Annotated[str | Annotated[tuple[str, ...], Field(strict=False)], AfterValidator(_is_pattern)]


class Full(Section):
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
    method: Literal["lora"] = "lora"
    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Fraction = 0.0
    target: Names = "all-linear"
    """`all-linear`, a regular expression for whole names of modules, or a list of their endings."""
    last_layers: Count | None = None
    """Only in the model's last so many layers, where the backward pass then ends."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that large ranks learn as fast as small ones; else by alpha / rank."""
    dora: bool = False
    """Learn the norm of each row of a weight apart from its direction."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = "default"
    """default, gaussian, orthogonal, pissa or olora. The last two begin with a weight's main directions; saved is the
    change alone, as LoRA of twice the rank."""
    lora_plus_ratio: Positive = 1.0
    """The learning rate of B, in multiples of A's."""
    rank_pattern: dict[Pattern, Count] = {}
    """Other ranks by a regular expression for the end of a module's name, e.g. {v_proj: 32}."""
    alpha_pattern: dict[Pattern, Positive] = {}

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


Adapt = Annotated[Full | Partial | Lora | Peft | Prompt | PTuning | Prefix, Field(discriminator="method")]
WHOLE = (Full, Partial)
"""What leaves a whole model; the others leave an adapter."""


class Model(Section):
    base: str = "smollm2-135m-instruct"
    """A built-in name, a hub name, a folder or a .gguf file."""
    adapt: Adapt = Lora()

    @model_validator(mode="before")
    @classmethod
    def _lora_unless_said(cls, value: Any) -> Any:
        """So that `adapt: {rank: 8}` is enough; `to_yaml`, which leaves out defaults, writes it so."""
        adapt = value.get("adapt") if isinstance(value, dict) else None
        if not isinstance(adapt, dict):
            return value
        technique = str(adapt.get("method")).upper()
        if technique in TECHNIQUES:
            adapt = {**adapt, "method": "peft", "type": technique}
        return {**value, "adapt": {"method": "lora", **adapt}}


class EarlyStopping(Section):
    patience_checks: Count = 3
    """Training stops after this many validations in a row without a lower nll."""


class Train(Section):
    epochs: Count = 3
    examples_per_step: Count = 16
    """Over all devices. How a step is cut into micro-batches is derived and does not change the gradient."""
    learning_rate: Positive = 2e-4
    warmup_fraction: Fraction = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_grad_norm: Positive = 1.0
    tokens_per_micro_batch: Count = 2048
    """Memory bound: distinct tokens in one forward pass. A single longer example still runs, alone."""
    checks_per_epoch: Count = 2
    """Validations an epoch; each may save new best weights."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    keep: Literal["best", "last"] = "best"
    """The weights that the run ends with: those of the lowest validation nll, or the last ones."""
    save_every_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """Seconds between checkpoints; 0 saves after every step."""
    max_minutes: Positive | None = None
    """Stop and finish the schedule within this time. Makes a run depend on the machine's speed."""


class SuiteUse(Section):
    """Questions besides the test set: `knowledge`, `{name: typos, limit: 20}`, or a file of a stated form."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    """The name of a suite that ships, or the one under which a file's metrics are reported: `NAME_accuracy`."""
    path: str | None = None
    """A JSONL file of questions, or the folder of a task's YAML; relative to the recipe."""
    task: str | None = None
    """A multiple-choice task of lm-evaluation-harness (`pip install 'luthier[harness]'`)."""
    form: str = ""
    """Of a file: multiple_choice, pairs, coreference, ambiguity, instructions or safety."""
    limit: Count | None = None
    """At most this many questions, drawn by seed."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or value.get("form") is not None:
            return value
        if value.get("task") is not None:
            return {**value, "form": "multiple_choice"}
        return {**value, "form": SHIPPED.get(str(value.get("name")), "")} if value.get("path") is None else value

    @model_validator(mode="after")
    def _has_its_form(self) -> SuiteUse:
        if self.task is not None:
            if self.form != "multiple_choice":
                raise ValueError("a task's form is multiple_choice")
            return self
        if self.path is None and self.form != SHIPPED.get(self.name):
            raise ValueError(
                f"no suite '{self.name}' ships{_or_rather(self.name, SHIPPED)}; a file needs path and form"
            )
        if self.path is not None and self.form not in get_args(Form):
            raise ValueError(f"a file's form is one of {', '.join(get_args(Form))}")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        return metrics_of(self.name, self.form)


def _or_rather(name: str, known: Iterable[str]) -> str:
    advice = did_you_mean(name, known)
    return f" ({advice})" if advice else ""


Urls = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]


def _check_urls(urls: Iterable[str], key_env: str | None) -> None:
    """Called for a section as a whole, because an error of a field shows what was found: maybe a secret."""
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("a url is http:// or https:// with a host, e.g. http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("a url holds no user, password or query; `key_env` names where the key is")
    if key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_env):
        raise ValueError("`key_env` is the name of an environment variable, not the key itself")


class Judge(Section):
    """A language model that grades answers, or says which of two is better; a metric under its name."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    """Of its metric. `pairwise` also gives NAME_length_controlled and, with people's votes, NAME_corrected."""
    form: Literal["rubric", "pairwise"]
    """`rubric` grades each answer by itself; `pairwise` asks which model's answer is better, in both orders."""
    rubric: str | None = None
    """What deserves which grade."""
    rubric_file: str | None = None
    """The rubric in a text file; relative to the recipe."""
    scale: Annotated[tuple[int, int], Field(strict=False)] = (1, 5)
    """The worst and the best grade of a rubric."""
    criteria: str = "Correct and complete in what was asked, clear, and without what was not asked."
    """What makes an answer the better one of two."""
    model: str
    """With `url`, the model's name there; else a base model as in `model.base`, run on this machine."""
    url: Urls = ()
    """Where an OpenAI-compatible server answers, up to and with `/v1`; several share the work."""
    key_env: str | None = None
    """The environment variable that holds the key of the url; the key itself belongs in no recipe."""
    pinned: str | None = None
    """With `url`, the exact version that every reply must come from; else how the SHA-256 of the weights begins."""
    by: Literal["reply", "likelihood"] | None = None
    """How the verdict is read. None: by url from the reply, on this machine from the likelihood of each verdict."""
    max_new_tokens: Count = 512
    """Of a written reply."""
    timeout_s: Positive = 60.0
    """How long one try may take until the reply is whole."""
    at_once: Count = 4
    """Requests in flight for each url."""

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Judge:
        _check_urls(self.url, self.key_env)
        return self

    @model_validator(mode="after")
    def _is_one_question(self) -> Judge:
        if self.form == "rubric" and (self.rubric is None) == (self.rubric_file is None):
            raise ValueError("a rubric judge needs `rubric` or `rubric_file`, one of them")
        if not 1 <= self.scale[1] - self.scale[0] <= 100:
            raise ValueError("a scale goes from the worst to a higher best grade, at most 100 above")
        if self.url and self.by == "likelihood":
            raise ValueError("the likelihood of verdicts is known on this machine only, not by url")
        return self

    @model_validator(mode="after")
    def _reads_all_that_is_set(self) -> Judge:
        unread = ["criteria"] if self.form == "rubric" else ["rubric", "rubric_file", "scale"]
        unread += [] if self.url else ["key_env", "timeout_s", "at_once"]
        if changed := [name for name in unread if getattr(self, name) != type(self).model_fields[name].default]:
            kind = f"a {self.form} judge {'by url' if self.url else 'on this machine'}"
            raise ValueError(f"{kind} does not read {', '.join(changed)}")
        return self

    def measures(self, voted: bool = True) -> tuple[str, ...]:
        """The metrics that it yields; `voted`: where people have judged some of the samples too."""
        if self.form == "rubric":
            return (self.name,)
        return (self.name, f"{self.name}_length_controlled", *([f"{self.name}_corrected"] if voted else []))


class Servers(Section):
    """OpenAI-compatible servers that write the answers of base and tuned model; likelihoods stay on this machine."""

    url: Annotated[Urls, Field(min_length=1)]
    """Where they answer, up to and with `/v1`; several share the work, and stand in for each other."""
    model: str
    """The base model's name there. The tuned one is loaded as an adapter beside it."""
    key_env: str | None = None
    """The environment variable that holds the key of the url; the key itself belongs in no recipe."""
    timeout_s: Positive = 60.0
    """How long one try may take until the answer is whole."""
    at_once: Count = 32
    """Requests in flight for each url: such servers are quick with many at a time."""

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Servers:
        _check_urls(self.url, self.key_env)
        return self


class Evaluate(Section):
    metrics: Annotated[tuple[Use, ...], Field(strict=False)] = ()
    """Empty: chosen from the task."""
    judges: Annotated[tuple[Judge, ...], Field(strict=False)] = ()
    """Language models that grade the answers or compare them; each gives a metric of its name."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    limit: Count | None = None
    """At most this many test conversations, drawn by seed; said in the report."""
    max_new_tokens: Count = 128
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Answers to the test set are drawn at it; 0: the likeliest token each time."""
    draws: Count = 1
    """Answers to each test prompt, at a temperature above 0; the intervals take them as one prompt's."""
    servers: Servers | None = None
    """None: the answers are written on this machine."""
    cluster_by: str | None = None
    """Tag whose values are the independent units of the intervals; None: the family."""
    probe_documents: Count | None = None
    """At most this many documents of the general probe; None: all."""
    suites: Annotated[tuple[SuiteUse, ...], Field(strict=False)] = tuple(
        SuiteUse(name=name, form=form) for name, form in SHIPPED.items()
    )
    """Retention, bias and robustness: put to base and tuned model alike, their metrics open to rules. [] for none."""
    requests: str | None = None
    """Real requests, to see what the test set lacks: a .txt file of one a line, or any data file. Relative to the
    recipe."""

    @model_validator(mode="after")
    def _draws_differ(self) -> Evaluate:
        if self.draws > 1 and not self.temperature:
            raise ValueError("several draws of the likeliest answer are one answer: set a temperature above 0")
        return self


class Rule(Section):
    metric: str
    must: Literal["beat_baseline", "not_regress"]
    by_points: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    by_relative: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    in_slices: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """The rule must hold in every value of these slices, each on its own."""
    where: dict[str, str] = {}
    """Only the samples whose tags have these values, e.g. {kind: unseen_fact}."""
    min_effect: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """beat_baseline: FAIL once the interval shows the gain to be below this, in points."""

    @model_validator(mode="after")
    def _one_margin(self) -> Rule:
        if self.by_points and self.by_relative:
            raise ValueError("give by_points or by_relative, not both")
        return self

    @model_validator(mode="after")
    def _votes_are_judged_as_a_whole(self) -> Rule:
        if self.metric == HUMAN_PREFERENCE and (self.by_relative or self.in_slices or self.where):
            raise ValueError(f"{HUMAN_PREFERENCE} is judged by_points, over all samples that people judged")
        return self


class Release(Section):
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, strict=False)]
    """A rule on `human_preference` is judged by the votes of `luthier review`, and open until there are some."""
    needs: Annotated[tuple[Literal["human_review"], ...], Field(strict=False)] = ()
    """`human_review`: never pass unreviewed. Without a rule on `human_preference` of its own, it is the rule
    {metric: human_preference, must: not_regress, by_points: 0.1}: shown to get more than 45 % of people's votes."""
    license: Annotated[str, Field(min_length=1)] = "unknown"
    """Under which the tuned model is released, as model hubs name it: apache-2.0, cc-by-4.0, other."""
    export: Annotated[tuple[Literal["merged"], ...], Field(strict=False)] = ()
    """The adapter is always exported; `merged` adds a model that plain transformers loads."""


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    """Letters, digits, dots, dashes and underscores: it names the run's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data
    model: Model = Model()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    release: Release

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
        return self

    @model_validator(mode="after")
    def _merges_what_can_be_merged(self) -> Recipe:
        adapt = self.model.adapt
        technique = adapt.type if isinstance(adapt, Peft) else LEARNED_PROMPTS.get(adapt.method)
        if "merged" in self.release.export and technique in UNMERGED:
            raise ValueError(f"release.export: {technique} cannot be merged; the adapter is exported in any case")
        return self


def metric_name(use: Use) -> str:
    """The name under which a metric is reported: its own, or the function's for `module:function`."""
    return use.use.rpartition(":")[2]


def fingerprint(value: BaseModel | Any) -> str:
    """SHA-256 of a settings tree's canonical JSON."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def source_path(source: Source, folder: Path) -> Path:
    """Where a source lies: relative paths count from the recipe's folder."""
    return Path(os.path.normpath(folder / Path(source.path).expanduser()))
