"""Multinomial logistic regression, and what it says of rows that it has not learned from.

Knows nothing of rows: features in, probabilities out. The loss is convex, so that what is found depends on no draw.

Shapes: n rows, D features, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
ROUNDS = 100
ENOUGH = 1e-4
"""Relative change of the loss at which a fit ends."""
BLOCK_ROWS = 8192
"""Rows whose (rows, K) probabilities are in memory at once while the model learns."""


def out_of_fold(features: Floats, labels: Places, groups: Places, strength: float, n_folds: int, seed: int) -> Floats:
    """(n, K) probabilities of each row's classes by a model of the other folds; no group is in two folds.

    Args:
        labels: (n,) from 0 to K - 1.
        groups: (n,) numbers of groups from 0.
        strength: C, by which the likelihood outweighs half the squared length of the weights.
    """
    n_classes = int(labels.max()) + 1
    fold_of = folds(labels, groups, n_folds, seed)
    found = np.empty((len(labels), n_classes), dtype=np.float32)
    for fold in range(n_folds):
        held_out = fold_of == fold
        weights = fitted(features[~held_out], labels[~held_out], n_classes, strength)
        found[held_out] = probabilities(features[held_out], weights)
    return found


def folds(labels: Places, groups: Places, n_folds: int, seed: int) -> Places:
    """(n,) folds: the groups of each class (of their first row) are dealt out in a drawn order."""
    _, first = np.unique(groups, return_index=True)
    drawn = np.random.default_rng(seed).permutation(len(first))
    order = drawn[np.argsort(labels[first][drawn], kind="stable")]
    fold_of = np.empty(len(first), dtype=np.int64)
    fold_of[order] = np.arange(len(first)) % n_folds
    return fold_of[groups]


def fitted(features: Floats, labels: Places, n_classes: int, strength: float) -> Floats:
    """(D + 1, K) weights of least regularised loss by L-BFGS; the last row, the intercepts, is not regularised."""
    from scipy.optimize import minimize

    shape = (features.shape[1] + 1, n_classes)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(shape)
        total, gradient = 0.0, np.zeros(shape)
        single = weights.astype(np.float32)
        for start in range(0, len(labels), BLOCK_ROWS):
            block, right = features[start : start + BLOCK_ROWS], labels[start : start + BLOCK_ROWS]
            found = probabilities(block, single)
            at = np.arange(len(right)), right
            total -= float(np.log(np.maximum(found[at], 1e-30), dtype=np.float64).sum())
            found[at] -= 1
            gradient[:-1] += block.T @ found
            gradient[-1] += found.sum(axis=0)
        gradient[:-1] += weights[:-1] / strength
        return total + float((weights[:-1] ** 2).sum()) / (2 * strength), gradient.ravel()

    found = minimize(
        loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": ROUNDS, "ftol": ENOUGH}
    )
    weights: Floats = found.x.reshape(shape).astype(np.float32)
    return weights


def probabilities(features: Floats, weights: Floats) -> Floats:
    """(n, K)"""
    logits: Floats = features @ weights[:-1] + weights[-1]
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits
