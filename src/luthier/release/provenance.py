"""Where a model comes from and what it cost: licences of the data, arithmetic, energy, and where the card says what.

Nothing here is measured by a meter: arithmetic follows from a formula, energy is a range under an assumption, and both
say so. Whether a law applies to a model is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from luthier.records import TrainReport
from luthier.settings import Recipe, source_path

WATTS_PER_THREAD = (3.0, 15.0)
WATTS_PER_GPU = (75.0, 1000.0)

NOT_STATED = "not stated here: for whoever releases the model to add"
ANNEX_XI = (
    ("Section 1, point 1(a): tasks, and the systems it can go into", "Intended use; Out-of-scope use"),
    ("Section 1, point 1(b): acceptable use policies", NOT_STATED),
    ("Section 1, point 1(c): date of release and distribution", NOT_STATED),
    ("Section 1, point 1(d): architecture and number of parameters", "Architecture"),
    ("Section 1, point 1(e): modality and format of inputs and outputs", "Architecture"),
    ("Section 1, point 1(f): licence", "license, in the front matter"),
    ("Section 1, point 2(a): technical means for integration", "How to load"),
    ("Section 1, point 2(b): design of the training, what is optimised", "Training procedure"),
    ("Section 1, point 2(c): data: type, provenance, curation, number, biases", "Training data; Limits, as measured"),
    ("Section 1, point 2(d): computational resources, training time", "Compute and energy"),
    ("Section 1, point 2(e): known or estimated energy consumption", "Compute and energy"),
    ("Section 2: models with systemic risk", "not covered"),
)
"""Section and point of Annex XI of Regulation (EU) 2024/1689 -> the part of the card that speaks of it."""


def stated_licences(recipe: Recipe, origin: Path) -> dict[str, str]:
    """Data source, as in the recipe -> its licence in the words of the README.md beside it: `License: ...`.

    Sources whose README names none are left out. `origin` is the folder from which the recipe's paths count.
    """
    found = {}
    for source in recipe.data.sources:
        path = source_path(source, origin)
        readme = (path if path.is_dir() else path.parent) / "README.md"
        text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        if stated := re.search(r"(?:^|[\s*.])licen[cs]e\**:\**[ \t]*(\S.*)", text, re.IGNORECASE):
            found[source.path] = stated[1].strip()
    return found


def training_flops(training: TrainReport) -> float:
    """Floating-point operations of training: (4 N + 2 T) x tokens, of N weights of which T are trained.

    Two for each weight and token in the forward pass, two for the gradients of the activations, two for those of the
    trained weights (Kaplan et al. 2020, section 2.1): 6 N where all are trained. Attention over the context is left
    out, and validation too. Too much where adapters sit on the upper layers alone, as the backward pass ends at the
    lowest of them and what is below runs once per example.
    """
    return (4.0 * training.n_parameters + 2.0 * training.n_trainable) * training.n_computed_tokens


def training_kwh(training: TrainReport, environment: Mapping[str, str]) -> tuple[float, float, str] | None:
    """(least, most, assumption) of the energy of training; None where the device is not known."""
    device, threads = environment.get("device"), environment.get("threads")
    if device is None or threads is None:
        return None
    if device.lower() == "cpu":
        low, high = (watts * int(threads) for watts in WATTS_PER_THREAD)
        who = f"{WATTS_PER_THREAD[0]:g} to {WATTS_PER_THREAD[1]:g} W for each of {threads} threads"
    else:
        low, high = WATTS_PER_GPU
        who = f"{low:g} to {high:g} W for one {device} with its share of the machine"
    hours = training.seconds / 3600
    return low * hours / 1000, high * hours / 1000, who
