"""What must not depend on how many threads compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def same_bits_by_one_and_two_threads(results: Callable[[], Sequence[Tensor]]) -> bool:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results()
        torch.set_num_threads(2)
        return all(map(torch.equal, one, results()))
    finally:
        torch.set_num_threads(before)
