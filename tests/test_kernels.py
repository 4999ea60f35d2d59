"""Compiled kernels give what their torch forms give, and gradients are autograd's of the plain formula.

Those in Triton run by its interpreter here: their sums are tested, not what a GPU makes of them (`tests/gpu`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from threads import same_bits_by_one_and_two_threads
from torch import Tensor

from luthier import kernels

needs_library = pytest.mark.skipif(kernels.library() is None, reason="no compiler")
needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or "TRITON_INTERPRET" not in os.environ, reason="no Triton, or a GPU"
)
WIDE = [
    *(pytest.param("compiled", dtype, marks=needs_library) for dtype in (torch.float32, torch.float64)),
    *(("torch", dtype) for dtype in (torch.float32, torch.float64)),
    pytest.param("triton", torch.float32, marks=needs_interpreter),
]
ROUNDED = [("torch", torch.bfloat16), pytest.param("triton", torch.bfloat16, marks=needs_interpreter)]
by_form = pytest.mark.parametrize(("form", "dtype"), [*WIDE, *ROUNDED])
by_wide_form = pytest.mark.parametrize(("form", "dtype"), WIDE)
TOLERANCE = {torch.bfloat16: 2.0**-7, torch.float32: 3e-6, torch.float64: 1e-13}
"""Of the largest number of a result. Triton's interpreter cuts digits off where a GPU rounds."""
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of the interpreter
Answer = Tensor | tuple[Tensor, ...]


@contextmanager
def run_as(form: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if form == "torch":
            patch.setattr(kernels, "compiled", lambda *tensors: False)
        if form == "triton":
            interpreted = importlib.import_module("luthier.kernels_cuda")
            patch.setattr(kernels, "on_gpu", lambda x, *more: None if x.dtype is torch.float64 else interpreted)
        yield


def close(found: Answer, expected: Answer, dtype: torch.dtype, least: float = 0.0) -> None:
    """Against the largest number of `expected`, or `least`."""
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for a, b in pairs:
        assert a.dtype is dtype and a.shape == b.shape and a.is_contiguous()
        assert float((a.double() - b).abs().max()) <= TOLERANCE[dtype] * max(float(b.abs().max()), least)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(f: Callable[..., Answer], at: tuple[Tensor, ...], towards: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Autograd's, of the outputs times `towards`."""
    leaves = [x.detach().clone().requires_grad_() for x in at]
    out = f(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    loss = torch.stack([(o * t).sum() for o, t in zip(outs, towards, strict=True)]).sum()
    return torch.autograd.grad(loss, leaves)


# -- each kernel --------------------------------------------------------------------------------------------


def plain_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@by_form
@pytest.mark.parametrize(("n", "size"), [(1, 7), (5, 16), (33, 80), (3, 577), (150, 6)])
def test_norm(form: str, dtype: torch.dtype, n: int, size: int) -> None:
    x, weight, dy = (t.to(dtype).double() for t in (drawn(n, size), drawn(size, seed=1), drawn(n, size, seed=2)))
    dx, dw = gradients(plain_norm, (x, weight), (dy,))
    with run_as(form):
        close(kernels.rms_norm(x.to(dtype), weight.to(dtype), 1e-5), plain_norm(x, weight), dtype)
        close(kernels.rms_norm_grad(dy.to(dtype), x.to(dtype), weight.to(dtype), 1e-5), dx, dtype)
        close(kernels.rms_norm_weight_grad(dy.to(dtype), x.to(dtype), 1e-5).to(dtype), dw, dtype)


def plain_gate(gate_up: Tensor) -> Tensor:
    gates, ups = gate_up.chunk(2, -1)
    return F.silu(gates) * ups


@by_form
@pytest.mark.parametrize(("n", "size"), [(1, 1), (1, 7), (5, 16), (33, 83), (2, 1100)])
def test_gate(form: str, dtype: torch.dtype, n: int, size: int) -> None:
    gate_up, dy = (t.to(dtype).double() for t in (3 * drawn(n, 2 * size), drawn(n, size, seed=2)))
    expected, [grad] = plain_gate(gate_up), gradients(plain_gate, (gate_up,), (dy,))
    with run_as(form):
        close(kernels.gate(gate_up.to(dtype)), expected, dtype)
        close(kernels.gate_grad(dy.to(dtype), gate_up.to(dtype)), (expected, grad), dtype)


@by_wide_form
def test_a_gate_that_is_shut_or_wide_open(form: str, dtype: torch.dtype) -> None:
    at = [80, 88.3, 88.5, 89, 100, 200, 1e4]
    gates = torch.tensor([[*at, *(-x for x in at), 0.0, 3e38]], dtype=dtype)
    gate_up, dy = torch.cat([gates, torch.ones_like(gates)], 1), torch.ones_like(gates)
    expected, [grad] = plain_gate(gate_up.double()), gradients(plain_gate, (gate_up.double(),), (dy,))
    with run_as(form):
        assert torch.allclose(kernels.gate(gate_up).double(), expected, rtol=1e-6, atol=1e-30)
        again, found = kernels.gate_grad(dy, gate_up)
        assert torch.allclose(again.double(), expected, rtol=1e-6, atol=1e-30)
        assert torch.allclose(found.double(), grad, rtol=1e-6, atol=1e-30)
        spoilt = torch.cat([gates.new_tensor([[torch.inf, -torch.inf, torch.nan]]), gates.new_ones(1, 3)], 1)
        assert not kernels.gate(spoilt).isfinite().any()


def plain_rotation(qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Number by number: c of the first half of a head turns with c of the second."""
    n, size = cos.shape
    groups, half = qkv.shape[1] // size // kv_heads - 2, size // 2
    heads = qkv.view(n, -1, size)
    a, b = heads[..., :half], heads[..., half:]
    co, si = cos[:, None], sin[:, None]
    turned = torch.cat([a * co[..., :half] - b * si[..., :half], b * co[..., half:] + a * si[..., half:]], -1)
    q = torch.stack([turned[:, h * groups : (h + 1) * groups] for h in range(kv_heads)])
    k = torch.stack([turned[:, kv_heads * groups + h] for h in range(kv_heads)])
    return q, k, torch.stack([heads[:, kv_heads * (groups + 1) + h] for h in range(kv_heads)])


@by_form
@pytest.mark.parametrize(("n", "kv_heads", "groups", "size"), [(1, 1, 1, 2), (5, 3, 2, 2), (7, 2, 3, 80), (3, 1, 7, 6)])
def test_rotation(form: str, dtype: torch.dtype, n: int, kv_heads: int, groups: int, size: int) -> None:
    qkv, cos, sin = drawn(n, kv_heads * (groups + 2) * size), drawn(n, size, seed=1), drawn(n, size, seed=2)
    towards = drawn(kv_heads, n, groups, size, seed=3), *(drawn(kv_heads, n, size, seed=s) for s in (4, 5))
    qkv, cos, sin, *towards = (t.to(dtype).double() for t in (qkv, cos, sin, *towards))  # type: ignore[assignment]
    expected = plain_rotation(qkv, cos, sin, kv_heads)
    [grad] = gradients(lambda x: plain_rotation(x, cos, sin, kv_heads), (qkv,), tuple(towards))
    with run_as(form):
        close(kernels.rotate(qkv.to(dtype), cos.to(dtype), sin.to(dtype), kv_heads), expected, dtype)
        d = (*(t.to(dtype) for t in towards), cos.to(dtype), sin.to(dtype))
        close(kernels.rotate_grad(*d), grad, dtype)


def plain_nll(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


@by_wide_form
@pytest.mark.parametrize("scale", [1.0, 80.0, 1e4])
@pytest.mark.parametrize(("n", "size"), [(1, 1), (1, 7), (5, 16), (3, 4097), (2, 49_157)])
def test_likelihoods(form: str, dtype: torch.dtype, scale: float, n: int, size: int) -> None:
    logits = (drawn(n, size).clamp(-1, 1) * scale).to(dtype).double()
    targets = torch.arange(n) * 5 % size
    weights = drawn(n, seed=3).to(dtype).double()
    [grad] = gradients(lambda x: plain_nll(x, targets), (logits,), (weights,))
    with run_as(form):
        nats, lse = kernels.nll(logits.to(dtype), targets)
        close((nats, lse), (plain_nll(logits, targets), logits.logsumexp(-1)), dtype, least=1.0)
        found = kernels.nll_grad(logits.to(dtype), lse, targets, weights.to(dtype))
    # a logsumexp near 1e4 is only known to its last digit, which is a relative error of every probability
    slack = 2 * torch.finfo(dtype).eps * scale
    assert float((found.double() - grad).abs().max()) <= (TOLERANCE[dtype] + slack) * float(weights.abs().max())


@by_wide_form
@pytest.mark.parametrize("spoilt", [torch.inf, torch.nan])
@pytest.mark.parametrize("at", [0, 3, 4099])
def test_logits_that_diverge_are_seen(form: str, dtype: torch.dtype, spoilt: float, at: int) -> None:
    logits = drawn(2, 5000).to(dtype)
    logits[0, at] = spoilt
    targets, weights = torch.tensor([3, 3]), torch.ones(2, dtype=dtype)
    with run_as(form):
        nats, lse = kernels.nll(logits, targets)
        grad = kernels.nll_grad(logits, lse, targets, weights)
    assert not nats[0].isfinite() and not lse[0].isfinite() and not grad[0].isfinite().all()
    assert nats[1].isfinite() and grad[1].isfinite().all()


@needs_library
def test_exponentials_are_within_two_ulp() -> None:
    """By way of a gradient: with weight 1 and a logsumexp of 0 it is exp(logit), but for the target's."""
    x = torch.linspace(-87, 88, 1_000_003)
    targets, one = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    found = kernels.nll_grad(x[None], torch.zeros(1), targets, one)[0, 1:]
    exact = x[1:].double().exp()
    ulp = torch.nextafter(exact.float(), torch.tensor(torch.inf)).double() - exact.float().double()
    assert float(((found.double() - exact).abs() / ulp).max()) <= 2
    below = kernels.nll_grad(torch.tensor([[0.0, -87.5, -1e4, -torch.inf]]), torch.zeros(1), targets, one)[0, 1:]
    assert (below < 2e-38).all() and (below >= 0).all()


@needs_library
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    def results() -> list[Tensor]:
        made: list[Tensor] = []
        for dtype in (torch.float32, torch.float64):
            x, weight, wide = drawn(65, 83).to(dtype), drawn(83, seed=1).to(dtype), drawn(65, 166, seed=2).to(dtype)
            cos, sin = drawn(65, 6, seed=3).to(dtype), drawn(65, 6, seed=4).to(dtype)
            q, k, v = kernels.rotate(drawn(65, 60, seed=5).to(dtype), cos, sin, 2)
            nats, lse = kernels.nll(wide, torch.arange(65))
            made += [kernels.rms_norm(x, weight, 1e-5), kernels.rms_norm_grad(x, x.flip(0), weight, 1e-5)]
            made += [kernels.gate(wide), *kernels.gate_grad(x, wide), q, k, v, nats, lse]
            made += [kernels.rotate_grad(q, k, v, cos, sin), kernels.nll_grad(wide, lse, torch.arange(65), lse)]
        return made

    assert same_bits_by_one_and_two_threads(results)


# -- where the library comes from -----------------------------------------------------------------------------

SAYS = """
import torch
from luthier import kernels
x = torch.ones(2, 3)
print(kernels.library() is not None, kernels.rms_norm(x, x[0], 0.0).tolist() == x.tolist(), kernels.missing(x.device))
"""


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    env = os.environ | {"LUTHIER_CACHE": str(cache)} | environment
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", SAYS], env=env, text=True, **streams)


def compilers(folder: Path, script: str) -> str:
    """A folder for PATH that holds these compilers, and nothing else that a build needs."""
    folder.mkdir()
    for name in ("c++", "g++", "clang++"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_without_a_library_torch_computes_and_the_reason_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    only_a_name = '[ "$1" = --version ] && echo compiler 1.0 && exit 0; echo error >&2; exit 1'
    running = {
        "not wanted": start(tmp_path / "a", LUTHIER_KERNELS="torch"),
        "no compiler": start(tmp_path / "b", PATH=str(tmp_path / "empty")),
        "broken": start(tmp_path / "c", PATH=compilers(tmp_path / "1", "echo no >&2; exit 1")),
        "cannot compile": start(tmp_path / "d", PATH=compilers(tmp_path / "2", only_a_name)),
        "no cache": start(tmp_path / "file" / "below"),
    }
    reasons = {
        "not wanted": "LUTHIER_KERNELS asks for it",
        "no compiler": "no C++ compiler was found",
        "broken": "cannot build them",
        "cannot compile": "cannot build them",
        "no cache": "they cannot be built or loaded",
    }
    for name, process in running.items():
        out, said = process.communicate(timeout=300)
        assert (name, process.returncode, said) == (name, 0, "")
        assert out.startswith("False True ") and reasons[name] in out
    assert not [*tmp_path.glob("*/kernels/*")]


@needs_library
def test_two_processes_that_build_at_once_both_get_it(tmp_path: Path) -> None:
    for process in [start(tmp_path) for _ in range(2)]:
        out, said = process.communicate(timeout=300)
        assert (process.returncode, out, said) == (0, "True True \n", "")
    [built] = (tmp_path / "kernels").iterdir()
    assert built.suffix == ".so"
    before = built.stat().st_mtime_ns
    assert start(tmp_path).communicate(timeout=300)[0] == "True True \n" and built.stat().st_mtime_ns == before
