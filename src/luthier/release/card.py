"""The model card: MODEL_CARD.md in Hugging Face's form, its limits written from what was measured.

Nothing is promised that no number shows; what is not known says so. Text from data is escaped for Markdown,
examples stand in code blocks; `Markdown` marks what is Markdown already.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from luthier.page import words
from luthier.records import AuditReport, Augmentation, Comparison, Judged, Step, Task
from luthier.release import wording
from luthier.release.evidence import (
    TITLES,
    Evidence,
    against_elsewhere,
    main_metric,
    main_metrics,
    method,
    not_measured,
    of_kind,
    suites,
    worst_regressions,
)
from luthier.release.failures import Kind, kinds_of_failure
from luthier.release.learning import in_words, learning
from luthier.release.provenance import ANNEX_XI, training_flops, training_kwh
from luthier.settings import WHOLE, Bottleneck

LONGEST_EXAMPLE = 600
INTENDED: dict[Task, str] = {
    "classification": "Giving one of a fixed list of labels to a text.",
    "answer": "Answering single prompts like those it was trained on.",
    "dialogue": "Answering in dialogues like those it was trained on.",
    "text": "Continuing text like the text it was trained on.",
}
LOAD = {
    "transformers": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")
""",
    "peft": """\
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "model")
tokenizer = AutoTokenizer.from_pretrained({base!r})
""",
    "peft, new tokens": """\
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel

base = AutoModelForCausalLM.from_pretrained({base!r})
tokenizer = AutoTokenizer.from_pretrained("model")
if len(tokenizer) > base.get_input_embeddings().num_embeddings:
    base.resize_token_embeddings(len(tokenizer))
model = PeftModel.from_pretrained(base, "model")
""",
    "luthier": """\
from pathlib import Path

from luthier.saved import load_adapted
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base!r})
model = load_adapted(base, Path("model"))
tokenizer = AutoTokenizer.from_pretrained({base!r})
""",
}
"""By the library that loads the model."""
ASK_TEXT = """
inputs = tokenizer("...", return_tensors="pt")
"""
ASK_CHAT = """
messages = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
"""
ANSWER = """\
output = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def model_card(evidence: Evidence) -> str:
    """MODEL_CARD.md: front matter, use, data and procedure, cost, results with intervals, measured limits."""
    evaluation = evidence.evaluation
    metric = main_metric(evidence)
    card = _templates().get_template("card.md")
    return card.render(
        front=Markdown(_yaml(front_matter(evidence))),
        e=evidence,
        method=method(evidence.recipe),
        intended=INTENDED[evidence.audit.task],
        how_to_load=fence(_loading(evidence), "python"),
        sources=[_source_cells(source.path, evidence) for source in evidence.recipe.data.sources],
        steps=[_step_cells(step) for step in evidence.audit.steps],
        made=[_made_cells(made) for made in evidence.audit.augmentation],
        findings=_finding_cells(evidence.audit),
        learned=in_words(learning(evidence.training)),
        machine=[(k, v) for k, v in evidence.environment.items() if k in ("device", "threads", "processor", "memory")],
        flops=Markdown(wording.power_of_ten(training_flops(evidence.training))),
        energy=training_kwh(evidence.training, evidence.environment),
        results=[_result_cells(c) for c in evaluation.metrics.values()],
        main_metrics=main_metrics(evaluation),
        suites=suites(evaluation),
        kinds={title: of_kind(evaluation, kind) for kind, title in TITLES.items()},
        chance=_chance,
        against_elsewhere=against_elsewhere,
        undecided=[r for r in evidence.verdict.rules if r.outcome == "UNDERPOWERED"],
        failed=[r for r in evidence.verdict.rules if r.outcome == "FAIL" and r.place],
        worst_slices=worst_slices(evidence),
        main=metric and evaluation.metrics[metric],
        failures=[_failure_cells(kind) for kind in kinds_of_failure(evaluation)],
        examples=[_example(s) for s in worst_regressions(evaluation, metric, k=2)],
        not_measured=not_measured(evidence),
        annex=ANNEX_XI,
        w=wording,
        words=words,
    )


def front_matter(evidence: Evidence) -> dict[str, Any]:
    """What model hubs read."""
    library = _library(evidence)
    base = evidence.environment["base_model"]
    front: dict[str, Any] = {}
    if "/" in base or base == evidence.recipe.model.base:  # a folder or file of this machine names nothing to others
        front = {"base_model": base, "base_model_relation": "finetune" if library == "transformers" else "adapter"}
    return front | {
        "library_name": library,
        "license": evidence.recipe.release.license,
        "pipeline_tag": "text-generation",
        "tags": ["luthier", evidence.recipe.model.adapt.method, evidence.audit.task],
        "metrics": [c.metric for c in main_metrics(evidence.evaluation)],
        "datasets": [PurePath(s.path).stem for s in evidence.recipe.data.sources],
        "model-index": [{"name": evidence.recipe.name, "results": [_result(evidence)]}],
    }


def _library(evidence: Evidence) -> str:
    """What loads the trained model."""
    adapt = evidence.recipe.model.adapt
    if isinstance(adapt, Bottleneck):
        return "luthier"
    return "transformers" if isinstance(adapt, WHOLE) else "peft"


def _result(evidence: Evidence) -> dict[str, Any]:
    measured = evidence.evaluation.metrics.values()
    kind = "text-classification" if evidence.audit.task == "classification" else "text-generation"
    return {
        "task": {"type": kind},
        "dataset": {"name": f"held-out part of {evidence.recipe.name}", "type": "private", "split": "test"},
        "metrics": [{"type": c.metric, "name": c.metric, "value": float(f"{c.value:.6g}")} for c in measured],
    }


def _source_cells(path: str, evidence: Evidence) -> tuple[str, str]:
    """The name alone: where it lies on the machine of the training is nobody else's concern."""
    return PurePath(path).name, evidence.licences.get(path, "not stated")


def _finding_cells(audit: AuditReport) -> list[tuple[str, ...]]:
    first = {f.code: f.found for f in reversed(audit.findings)}
    return [(code, f"{n:,}", first.get(code, "")) for code, n in audit.counts.items()]


def _failure_cells(kind: Kind) -> tuple[str, ...]:
    before = "" if kind.baseline is None else f"{kind.baseline:,} of {kind.n:,}"
    return kind.name, kind.rule, before, f"{kind.tuned:,} of {kind.n:,}"


def _step_cells(step: Step) -> tuple[str, ...]:
    return step.name, f"{step.n_in:,}", f"{step.n_out:,}", "; ".join(step.changes) or "nothing"


def _made_cells(made: Augmentation) -> tuple[str, ...]:
    dropped = "; ".join(f"{n:,} {reason}" for reason, n in made.dropped.items())
    return made.method, f"{made.asked:,}", f"{made.made:,}", dropped or "nothing"


def _result_cells(c: Comparison) -> tuple[str, ...]:
    t = wording.told(c)
    return f"{c.metric} ({wording.direction(c)})", t.baseline, t.tuned, t.change, t.interval, t.p, t.n


def _chance(c: Comparison) -> str:
    if c.trouble:
        return f"do not rely on this interval: {c.trouble}"
    return "may be chance" if c.low <= 0 <= c.high else "beyond chance"


def worst_slices(evidence: Evidence, k: int = 5) -> list[tuple[str, str, Comparison]]:
    """The `k` values of slices that changed worst on a rule's metric: (slice, value, comparison)."""
    ruled = {rule.comparison.metric for rule in evidence.verdict.rules}
    found = [
        (name, value, c)
        for name, values in evidence.evaluation.slices.items()
        for value, of_value in values.items()
        for metric, c in of_value.items()
        if metric in ruled and c.delta < 0
    ]
    # By the interval's better end first: a small loss that is sure comes before a large one that may be noise.
    return sorted(found, key=lambda item: (item[2].high, item[2].delta))[:k]


def _loading(evidence: Evidence) -> str:
    """Python that loads the model, which lies beside the card, and asks it once."""
    base = evidence.environment["base_model"]
    library = _library(evidence)
    grown = library == "peft" and evidence.recipe.model.new_tokens
    load = LOAD["peft, new tokens" if grown else library].format(base=base)
    ask = ASK_TEXT if evidence.audit.task == "text" else ASK_CHAT
    return load + ask + ANSWER.format(max_new_tokens=evidence.recipe.evaluate.max_new_tokens)


def _example(sample: Judged) -> Markdown:
    parts = {"Prompt": sample.prompt, "Reference": sample.reference, "Base": sample.baseline, "Tuned": sample.tuned}
    return Markdown("\n\n".join(f"{name}:\n\n{fence(_cut(text))}" for name, text in parts.items()))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_EXAMPLE else text[:LONGEST_EXAMPLE] + f" ... ({len(text):,} characters)"


def fence(text: str, language: str = "text") -> Markdown:
    """A code block that its content cannot close."""
    shown = words.visible(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Markdown(f"{ticks}{language}\n{shown}\n{ticks}")


def inline(value: Any) -> str:
    """Text inside a line or a table cell, with nothing left that Markdown or HTML would read."""
    if isinstance(value, Markdown) or not isinstance(value, str):
        return str(value)
    shown = " ".join(words.visible(value).split())
    shown = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", shown)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _yaml(tree: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    writer = YAML()
    writer.default_flow_style = False
    out = io.StringIO()
    writer.dump(_shown(tree), out)
    return out.getvalue().rstrip("\n")


def _shown(value: Any) -> Any:
    """Plain data with every text made visible."""
    if isinstance(value, Mapping):
        return {k: _shown(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_shown(v) for v in value]
    return words.visible(value) if isinstance(value, str) else value


def _table(rows: Iterable[Iterable[str]], head: list[str]) -> Markdown:
    """A Markdown table of escaped cells."""
    lines = [head, ["---"] * len(head), *([inline(cell) for cell in row] for row in rows)]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        finalize=inline,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["table"] = _table
    return environment
