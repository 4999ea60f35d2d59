"""The model card: MODEL_CARD.md in Hugging Face's form, its limits written from what was measured.

Nothing is promised that no number shows. Text from data is escaped for Markdown, examples stand in code
blocks; `Markdown` marks what is Markdown already.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from luthier.records import Comparison, Judged, Task
from luthier.release import wording
from luthier.release.evidence import Evidence, main_metric, method, not_measured, worst_regressions

LONGEST_EXAMPLE = 600
INTENDED: dict[Task, str] = {
    "classification": "Giving one of a fixed list of labels to a text.",
    "answer": "Answering single prompts like those it was trained on.",
    "dialogue": "Answering in dialogues like those it was trained on.",
    "text": "Continuing text like the text it was trained on.",
}


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def model_card(evidence: Evidence, license: str = "unknown") -> str:
    """MODEL_CARD.md: front matter, use, data and procedure, results with intervals, measured limits."""
    evaluation = evidence.evaluation
    metric = main_metric(evidence)
    return (
        _templates()
        .get_template("card.md")
        .render(
            front=Markdown(_yaml(front_matter(evidence, license))),
            e=evidence,
            audit=evidence.audit,
            training=evidence.training,
            settings=evidence.recipe.train,
            evaluation=evaluation,
            verdict=evidence.verdict,
            told=wording.told,
            method=method(evidence.recipe),
            base=base_model(evidence),
            intended=INTENDED[evidence.audit.task],
            how_to_load=Markdown(_loading(evidence)),
            regressed=[c for c in evaluation.metrics.values() if c.delta < 0],
            forgetting=evaluation.metrics.get("general_perplexity"),
            undecided=[r for r in evidence.verdict.rules if r.outcome == "UNDERPOWERED"],
            worst_slices=worst_slices(evidence),
            main=evaluation.metrics.get(metric) if metric else None,
            examples=[_example(s) for s in worst_regressions(evaluation, metric, k=2)],
            not_measured=not_measured(evidence),
            w=wording,
        )
    )


def front_matter(evidence: Evidence, license: str) -> dict[str, Any]:
    """What model hubs read. Numbers that are not finite are left out."""
    peft = evidence.recipe.model.adapt.method != "full"
    front: dict[str, Any] = {}
    if re.fullmatch(
        r"[\w.-]+(/[\w.-]+)?", base_model(evidence)
    ):  # a folder or file of this machine names nothing to others
        front = {"base_model": base_model(evidence), "base_model_relation": "adapter" if peft else "finetune"}
    return front | {
        "library_name": "peft" if peft else "transformers",
        "license": license,
        "pipeline_tag": "text-generation",
        "tags": ["luthier", evidence.recipe.model.adapt.method, evidence.audit.task],
        "datasets": [PurePath(s.path).stem for s in evidence.recipe.data.sources],
        "model-index": [{"name": evidence.recipe.name, "results": [_result(evidence)]}],
    }


def _result(evidence: Evidence) -> dict[str, Any]:
    measured = [c for c in evidence.evaluation.metrics.values() if math.isfinite(c.value)]
    kind = "text-classification" if evidence.audit.task == "classification" else "text-generation"
    return {
        "task": {"type": kind},
        "dataset": {"name": f"held-out part of {evidence.recipe.name}", "type": "private", "split": "test"},
        "metrics": [{"type": c.metric, "name": c.metric, "value": float(f"{c.value:.6g}")} for c in measured],
    }


def base_model(evidence: Evidence) -> str:
    """The base model's hub name where the environment knows it, else as the recipe calls it."""
    return evidence.environment.get("base_model", evidence.recipe.model.base)


def worst_slices(evidence: Evidence, k: int = 5) -> list[tuple[str, str, Comparison]]:
    """The `k` values of slices that changed worst on a rule's metric: (slice, value, comparison)."""
    ruled = {rule.metric for rule in evidence.verdict.rules}
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
    """Python that loads the model and asks it once."""
    full = evidence.recipe.model.adapt.method == "full"
    folder = "model"  # beside this card
    base = base_model(evidence)
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if full:
        lines += [
            "",
            f"model = AutoModelForCausalLM.from_pretrained({folder!r})",
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
        ]
    else:
        lines += [
            "from peft import PeftModel",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({base!r})",
            f"model = PeftModel.from_pretrained(base, {folder!r})",
            f"tokenizer = AutoTokenizer.from_pretrained({base!r})",
        ]
    if evidence.audit.task == "text":
        lines += ["", 'inputs = tokenizer("...", return_tensors="pt")']
    else:
        lines += [
            "",
            'messages = [{"role": "user", "content": "..."}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    lines += [
        f"output = model.generate(**inputs, max_new_tokens={evidence.recipe.evaluate.max_new_tokens}, do_sample=False)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]
    return fence("\n".join(lines), "python")


def _example(sample: Judged) -> Markdown:
    parts = [
        ("Prompt", sample.prompt),
        ("Reference", sample.reference),
        ("Base", sample.baseline),
        ("Tuned", sample.tuned),
    ]
    return Markdown("\n\n".join(f"{name}:\n\n{fence(_cut(text))}" for name, text in parts))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_EXAMPLE else text[:LONGEST_EXAMPLE] + f" ... ({len(text):,} characters)"


def fence(text: str, language: str = "text") -> str:
    """A code block that its content cannot close."""
    shown = wording.visible(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{shown}\n{ticks}"


def inline(value: Any) -> str:
    """Text inside a line or a table cell, with nothing left that Markdown or HTML would read."""
    if isinstance(value, Markdown) or not isinstance(value, str):
        return str(value)
    shown = " ".join(wording.visible(value).split())
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
    return wording.visible(value) if isinstance(value, str) else value


def _table(rows: Iterable[Iterable[str]], head: Iterable[str]) -> Markdown:
    """A Markdown table of escaped cells."""
    head = list(head)
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
