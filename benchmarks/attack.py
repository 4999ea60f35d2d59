"""Hostile inputs: thousands of generated and damaged data files, prepared, and every outcome judged.

    LUTHIER_DATA=/path/to/data python benchmarks/attack.py [--n 20000] [--seed 0] [--keep folder]

Half of the cases are rows of one format, good and hostile ones, in one or two files of any kind, under a recipe drawn
at random or derived; the good rows are known. The others are whole files, of the public sets (where there are any) or
of such rows, that were damaged. `prepare` must end, either with an error that can be shown or with every row
accounted for (tests/prepare/attack/judge.py says how that is seen), and give the same bytes in two processes of unlike
hash seeds. A finding is kept as a folder of the data and its recipe, and the exit code is then 1.

The same code judges a few hundred cases in the test suite.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from prepare.attack.judge import Outcome
from prepare.attack.rounds import attack

from luthier.tiny import write_tiny_model

PART = 1000
"""Cases of one seed: drawn, and judged before those of the next are."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("attack-findings"))
    asked = parser.parse_args()
    outcomes: list[Outcome] = []
    n_found, seed, began = 0, asked.seed, time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny_model(Path(scratch) / "tiny")
        while len(outcomes) < asked.n:
            part = Path(scratch) / f"seed-{seed}"
            for path, one in attack(seed, PART, model, part):
                outcomes.append(one)
                if one.finding:
                    n_found += 1
                    keep(path, one, asked.keep / f"{part.name}-{path.stem}")
            shutil.rmtree(part)
            seed += 1
            print(f"{len(outcomes)} cases, {n_found} findings, {time.perf_counter() - began:.0f} s", flush=True)
    table(outcomes)
    print(f"seeds {asked.seed} to {seed - 1}: {len(outcomes)} cases, {n_found} findings")
    return 1 if n_found else 0


def keep(path: Path, one: Outcome, folder: Path) -> None:
    """The case as files that `luthier check` takes, and what was found."""
    pickle.loads(path.read_bytes()).write(folder)
    (folder / "finding.txt").write_text(f"{one.kind}: {one.finding}\n", encoding="utf-8", errors="backslashreplace")
    print(f"FINDING {folder}: {one.kind}: {one.finding[:300]!r}", flush=True)


def table(outcomes: list[Outcome]) -> None:
    by_kind = defaultdict(list)
    for one in outcomes:
        by_kind[one.kind.partition(" by " if one.kind.startswith("damaged") else " .")[0]].append(one)
    print("| kind | cases | accepted | refused by code | rows in quarantine | seconds | slowest |\n" + "|---" * 7 + "|")
    for kind, some in [*sorted(by_kind.items()), ("all", outcomes)]:
        codes = Counter(one.refused for one in some if one.refused).most_common()
        refused = ", ".join(f"{code} {n}" for code, n in codes[:5])
        refused += f", {sum(n for _, n in codes[5:])} of {len(codes) - 5} other codes" if codes[5:] else ""
        accepted, rejected = sum(not one.refused for one in some), sum(one.n_rejected for one in some)
        seconds, slowest = sum(one.seconds for one in some), max(one.seconds for one in some)
        print(f"| {kind} | {len(some)} | {accepted} | {refused} | {rejected} | {seconds:.1f} | {slowest:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
