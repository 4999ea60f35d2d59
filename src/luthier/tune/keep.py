"""Whether augmentation helps: trials without the rows in question, with those of each method, and with all of them.

The trials are those of `trials.py`: trained on a nested part of the training rows, of which the new rows are made anew,
chosen on one held-out part, and the winner judged with new seeds on another. A method is kept if it is in the winner
and the winner's interval, on those rows, lies above none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from luthier.errors import DataError
from luthier.progress import Reporter
from luthier.records import Comparison, KeptAugmentation, TrialsReport
from luthier.settings import Recipe, names_of
from luthier.tune.trials import trials
from luthier.tune.variants import augmented_by

SEEDS = 3
TOO_FEW_ROWS = ("LU-D106", "LU-D130")
ALL = "all of them"


def keep(recipe: Recipe, run: Path, workspace: Path, report: Reporter) -> KeptAugmentation:
    """The decision for a recipe whose data are prepared in the folder `run`.

    Where there are too few rows to try, nothing is kept. Raises as `trials` does.
    """
    uses = recipe.data.augment
    asked = {n: u for n, u in zip(names_of(uses), uses, strict=True) if u.keep == "if_it_helps"}
    always = [u for u in uses if u.keep == "always"]
    mixes = {name: (name,) for name in asked} | ({ALL: tuple(asked)} if len(asked) > 1 else {})
    report.say(f"augment: does it help? Trials without, and with {', '.join(mixes)}")
    adapt = recipe.model.adapt.model_dump(mode="json", exclude_defaults=True) | {"method": recipe.model.adapt.method}
    rate = recipe.train.learning_rate
    try:
        found, path = trials(
            run,
            {mix: (augmented_by([*always, *(asked[name] for name in names)]),) for mix, names in mixes.items()},
            seeds=SEEDS,
            overrides=(
                augmented_by(always),
                f"model.adapt={json.dumps(adapt)}",
                f"train.learning_rate={'null' if rate is None else rate}",
            ),
            workspace=workspace,
            report=report,
        )
    except DataError as error:
        if error.problems[0].code not in TOO_FEW_ROWS:
            raise
        why = f"nothing is kept, because nothing could be tried: {error.problems[0].found}"
        return KeptAugmentation(kept=(), left_out=tuple(asked), why=(why,), trials="")
    kept = mixes[found.winner] if found.report_word == "better" else ()
    return KeptAugmentation(
        kept=kept,
        left_out=tuple(name for name in asked if name not in kept),
        why=tuple(_why(found, kept)),
        trials=os.path.relpath(path, workspace),
    )


def _why(found: TrialsReport, kept: Sequence[str]) -> list[str]:
    """What each mix brought on the rows to choose by, then what the winner brought on those to report by."""
    told = [f"{v.name}: {found.metric} {_better_by(v.comparison)}" for v in found.variants if v.comparison]
    if found.report:
        told.append(f"{found.winner} again, on rows that chose nothing: {_better_by(found.report)}")
    told.append(f"kept: {', '.join(kept)}" if kept else "nothing is kept: no interval lies above none")
    return [*told, *found.notes]


def _better_by(c: Comparison) -> str:
    return f"better by {c.delta:+.3g} ({c.low:+.3g} to {c.high:+.3g})"
