"""Judges cases in a process of its own; a second one, of another hash seed, judges the same cases again.

    PYTHONHASHSEED=1 PYTHONPATH=tests python -m prepare.attack MODEL FOLDER [--draw SEED N]

Each case is kept in FOLDER before it is judged, so that one that ends the process is known; without `--draw` those are
judged that lie there and have no outcome yet. MODEL is the tiny model.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import pickle
import random
from dataclasses import asdict
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from .case import Case
from .judge import LIMIT_SECONDS, encoder_of, judge
from .rounds import cases_in, outcomes_of
from .strategies import generated, mutated


def drawn(from_seed: int, n: int) -> list[Case]:
    """`n` cases, half of them damaged."""
    rng = random.Random(from_seed)
    whole = [_one(rng.randrange(1 << 32)) for _ in range(n // 2)]
    return [*whole, *(mutated(rng, whole) for _ in range(n - n // 2))]


def _one(from_seed: int) -> Case:
    """The second case that hypothesis draws: its first is the simplest, most later ones are made of earlier ones."""
    found: list[Case] = []

    @seed(from_seed)
    @settings(
        max_examples=2,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=generated())
    def draw(case: Case) -> None:
        found.append(case)

    draw()
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draw", nargs=2, type=int, metavar=("SEED", "N"))
    asked = parser.parse_args()
    if asked.draw:
        for n, case in enumerate(drawn(*asked.draw)):
            (asked.folder / f"{n:05}.pickle").write_bytes(pickle.dumps(case))
    encoder = encoder_of(asked.model)
    with outcomes_of(asked.folder, os.environ["PYTHONHASHSEED"]).open("a+", encoding="utf-8") as out:
        out.seek(0)
        n_judged = len(out.readlines())
        for path in cases_in(asked.folder)[n_judged:]:
            faulthandler.dump_traceback_later(20 * LIMIT_SECONDS, exit=True)  # what waits, or is no Python
            outcome = judge(pickle.loads(path.read_bytes()), asked.folder / "case", encoder)
            out.write(json.dumps(asdict(outcome)) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
