"""Near-duplicate search: Luthier's exact join against MinHash LSH (rensa, datasketch).

    LUTHIER_DATA=/path/to/data python benchmarks/dedupe.py [--rows 4000] [--similarity 0.8]

Truth is every pair of prompts whose Jaccard similarity of word shingles is at least the threshold, found by
brute force. Each method returns its pairs; those of MinHash are given as they come and verified by exact
Jaccard (then their precision is 1). Every clock runs from the texts to the pairs, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

from luthier.similar import SimilarTexts, shingles

Pairs = set[tuple[int, int]]
SETS = {"banking77/train.jsonl": "text", "sms_spam/train.jsonl": "text", "mts_dialog/*.jsonl": "dialogue"}
N_PERMUTATIONS = 128


def texts_of(folder: Path, name: str, column: str, n: int) -> list[str]:
    """Distinct texts of a real set: exact copies are no work for these methods."""
    found: dict[str, None] = {}
    for path in sorted(folder.glob(name)):
        for line in path.read_text(encoding="utf-8").splitlines():
            found.setdefault(json.loads(line)[column])
    return list(found)[:n]


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def brute_force(sets: list[set[str]], similarity: float) -> Pairs:
    return {
        (i, j)
        for (i, a), (j, b) in combinations(enumerate(sets), 2)
        if min(len(a), len(b)) >= similarity * max(len(a), len(b)) and jaccard(a, b) >= similarity
    }


def ours(texts: list[str], similarity: float) -> Pairs:
    index = SimilarTexts(similarity, texts)
    pairs: Pairs = set()
    for i in range(len(texts)):
        pairs.update((j, i) for j in index.matches(i))
        index.add(i)
    return pairs


def rensa(texts: list[str], similarity: float) -> Pairs:
    from rensa import RMinHash, RMinHashLSH

    # 32 bands of 4 rows: the curve's bend lies at (1/32)^(1/4) = 0.42, well below the thresholds asked for.
    index = RMinHashLSH(threshold=similarity, num_perm=N_PERMUTATIONS, num_bands=32)
    pairs: Pairs = set()
    for i, one in enumerate(map(shingles, texts)):
        sketch = RMinHash(num_perm=N_PERMUTATIONS, seed=0)
        sketch.update(one)
        pairs.update((j, i) for j in index.query(sketch))
        index.insert(i, sketch)
    return pairs


def datasketch(texts: list[str], similarity: float) -> Pairs:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=similarity, num_perm=N_PERMUTATIONS)
    pairs: Pairs = set()
    for i, one in enumerate(map(shingles, texts)):
        sketch = MinHash(num_perm=N_PERMUTATIONS, seed=0)
        sketch.update_batch([s.encode() for s in one])
        pairs.update((j, i) for j in index.query(sketch))
        index.insert(i, sketch)
    return pairs


def verified(method: Callable[..., Pairs]) -> Callable[..., Pairs]:
    def run(texts: list[str], similarity: float) -> Pairs:
        pairs = method(texts, similarity)
        return {(i, j) for i, j in pairs if jaccard(set(shingles(texts[i])), set(shingles(texts[j]))) >= similarity}

    return run


METHODS: dict[str, Callable[..., Pairs]] = {
    "luthier, exact": ours,
    "rensa": rensa,
    "rensa, verified": verified(rensa),
    "datasketch": datasketch,
    "datasketch, verified": verified(datasketch),
}


def measure(folder: Path, n: int, similarity: float) -> Iterator[str]:
    """The lines of the table."""
    yield f"| set | rows | pairs >= {similarity} | method | seconds | precision | recall |"
    yield "|---|---|---|---|---|---|---|"
    for name, column in SETS.items():
        texts = texts_of(folder, name, column, n)
        truth = brute_force([set(shingles(text)) for text in texts], similarity)
        for label, method in METHODS.items():
            start = time.perf_counter()
            found = method(texts, similarity)
            seconds = time.perf_counter() - start
            right = len(found & truth)
            precision = f"{right / len(found):.3f}" if found else "-"
            recall = f"{right / len(truth):.3f}" if truth else "-"
            yield f"| {name} | {len(texts)} | {len(truth)} | {label} | {seconds:.2f} | {precision} | {recall} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--similarity", type=float, default=0.8)
    arguments = parser.parse_args()
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LUTHIER_DATA", default))
    for line in measure(folder, arguments.rows, arguments.similarity):
        print(line, flush=True)


if __name__ == "__main__":
    main()
