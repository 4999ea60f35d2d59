"""`evaluate`: what is asked of the base and the tuned model, who answers and who judges."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from luthier.errors import did_you_mean
from luthier.settings.section import Count, Positive, Section, Use
from luthier.suites import SHIPPED, Form, metrics_of


class SuiteUse(Section):
    """Questions besides the test set: `knowledge`, `{name: typos, limit: 20}`, or a file of a stated form."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    """The name of a suite that ships, or the one under which a file's metrics are reported: `NAME_accuracy`."""
    path: str | None = None
    """A JSONL file of questions, or the folder of a task's YAML; relative to the recipe."""
    task: str | None = None
    """A multiple-choice task of lm-evaluation-harness (`pip install -c constraints.txt '.[harness]'`)."""
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
        if self.path is None and self.name in SHIPPED and self.form != SHIPPED[self.name]:
            raise ValueError(f"the suite '{self.name}' is of the form {SHIPPED[self.name]}; a file needs a path")
        if self.path is None and self.name not in SHIPPED:
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


def check_urls(urls: Iterable[str], key_env: str | None) -> None:
    """Raises ValueError. Called for a section as a whole: an error of a field shows what was found, maybe a secret."""
    for url in urls:
        try:
            parts = urlsplit(url)
            leads = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # brackets that do not close, a port that is no number
            leads = False
        if not leads:
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
    """Where an OpenAI-compatible server answers, up to and with `/v1`; one, or several that share the work."""
    key_env: str | None = None
    """The environment variable that holds the key of the url; the key itself belongs in no recipe."""
    pinned: str | None = None
    """With `url`, the exact version that every reply must come from; else how the fingerprint of
    the model's files begins, as the report's notes name it behind an @."""
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
        check_urls(self.url, self.key_env)
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
    """Where they answer, up to and with `/v1`; one, or several that share the work and stand in for each other."""
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
        check_urls(self.url, self.key_env)
        return self


class Evaluate(Section):
    metrics: Annotated[tuple[Use, ...], Field(strict=False)] = ()
    """Empty: chosen from the task."""
    judges: Annotated[tuple[Judge, ...], Field(strict=False)] = ()
    """Language models that grade the answers or compare them; each gives a metric of its name."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the intervals by which the rules judge: 0.95 is 95 %."""
    limit: Count | None = None
    """At most this many test conversations, drawn by seed; said in the report."""
    max_new_tokens: Count = 128
    """Of an answer; longer ones are cut off, counted and marked."""
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


def metric_name(use: Use) -> str:
    """The name under which a metric is reported: its own, or the function's for `module:function`."""
    return use.use.rpartition(":")[2]
