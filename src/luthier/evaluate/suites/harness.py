"""Tasks of lm-evaluation-harness as suites: its questions, contexts and right answers, our scoring and statistics.

The task's own code makes the requests, few-shot examples included; base and tuned model are then put the same ones,
shared contexts computed once. `NAME_accuracy` is the harness's acc, `NAME_accuracy_norm` its acc_norm. Tasks that are
not the choice of one right answer among several are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.conversation import Message, make_conversation
from luthier.errors import DataError, extra, first_line
from luthier.evaluate.suites.suite import Item, Suite, Text, form_metrics
from luthier.settings import SuiteUse, located


def from_task(use: SuiteUse, folder: Path, seed: int) -> Suite:
    """The suite of the task `use.task`, looked for in the folder `use.path` first; it counts from `folder`.

    Raises DataError LU-D073 (the harness is not installed), LU-D074 (no such task, its data cannot be had, or it is not
    a choice of one answer).
    """
    where = f"evaluate.suites: {use.name}"
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise DataError.of("LU-D073", where, "lm-evaluation-harness is not installed", extra("harness")) from None
    try:
        manager = TaskManager(include_path=str(located(use.path, folder)) if use.path else None)
        task: Any = manager.load(use.task)["tasks"][use.task]
        task.set_fewshot_seed(seed)
        task.build_all_requests(limit=use.limit)
    except Exception as error:  # the task is the user's, and its data may have to be fetched
        advice = "give the name of a task, and as `path` the folder in which its YAML lies if it is your own"
        raise DataError.of("LU-D074", where, f"task '{use.task}' cannot be had: {first_line(error)}", advice) from error
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input or task.multiple_target:
        found = f"task '{use.task}' is no choice of one right answer among several"
        raise DataError.of("LU-D074", where, found, "only such tasks can be put to both models here")
    items = _items(task, str(use.task))
    return Suite(use.name, items, form_metrics(use.name, use.form), form=use.form)


def _items(task: Any, name: str) -> list[Item]:
    requests: dict[int, list[Any]] = {}
    for request in task.instances:
        requests.setdefault(request.doc_id, []).append(request)
    items = []
    for number, asked in requests.items():
        choices = task.doc_to_choice(asked[0].doc)
        right = task.doc_to_target(asked[0].doc)
        reference = choices[right] if isinstance(right, int) and 0 <= right < len(choices) else right
        if reference not in choices:
            found = f"the right answer {right!r} is none of its {len(choices)} choices"
            raise DataError.of("LU-D074", f"task '{name}', row {number}", found, "ask a split that has its answers")
        turns = [Message(role="user", content=asked[0].args[0]), Message(role="assistant", content=reference)]
        texts = {choice: Text(*request.args[:2]) for choice, request in zip(choices, asked, strict=False)}
        items.append(Item(make_conversation(turns, f"{name}:{number}"), texts))
    return items
