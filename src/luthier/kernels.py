"""The parts of a decoder layer that are no matrix products: in C++, on a GPU in Triton, and wherever else in torch.

    n rows (tokens), D hidden size, I inner size of the MLP, V vocabulary
    K key/value heads with G query heads each, C size of a head

The library is built on first use, in a second or two, and kept in the user's cache under the hash of its source, the
compiler and the processor. It runs on the OpenMP threads that torch has, and takes dense float32 and float64 tensors of
the CPU. Dense tensors of a GPU go to `kernels_cuda.py`, float64 apart, and anything else through torch. What is stored
in bfloat16 is computed in float32. Gradients are plain functions: `fused.py` and `attention.py` make them autograd's.
LUTHIER_KERNELS=torch leaves the library and Triton out.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.errors import first_line
from luthier.files import cache_folder

_SOURCE = Path(__file__).with_suffix(".cpp")
# What lets loops be vectorised, short of assuming that there are no infinities and NaNs: a gradient that diverges must
# be seen. OpenMP is compiled in but not linked: its symbols are found in the runtime that torch has loaded.
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
_TYPES = {torch.float32: "float", torch.float64: "double"}


def compiled(*tensors: Tensor) -> bool:
    """Whether the library takes these tensors."""
    first = tensors[0]
    fits = all(t.device.type == "cpu" and t.dtype is first.dtype and t.is_contiguous() for t in tensors)
    return fits and first.dtype in _TYPES and library() is not None


def on_gpu(*tensors: Tensor) -> Any:
    """`kernels_cuda.py`, if it takes these tensors; else None."""
    digits = {torch.bfloat16, torch.float16, torch.float32}
    return _triton() if all(t.is_cuda and t.dtype in digits and t.is_contiguous() for t in tensors) else None


@cache
def _triton() -> Any:
    """None where Triton is not installed (with torch for CUDA it is), or not wanted."""
    if importlib.util.find_spec("triton") is None or os.environ.get("LUTHIER_KERNELS") == "torch":
        return None
    return importlib.import_module("luthier.kernels_cuda")


def describe() -> dict[str, str]:
    """For `luthier doctor`."""
    return {
        "kernels": "compiled" if library() else f"torch: {_found()[1]}",
        **({"kernels on the GPU": "Triton" if _triton() else "torch"} if torch.cuda.is_available() else {}),
    }


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had."""
    return _found()[0]


def missing(device: torch.device) -> str:
    """Why a device goes without the kernels that it could have, in words; empty where nothing is missing."""
    if device.type == "cuda":
        return "" if _triton() else "Triton is not installed, or not wanted"
    return _found()[1] if device.type == "cpu" else ""


@cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    if os.environ.get("LUTHIER_KERNELS") == "torch":
        return None, "LUTHIER_KERNELS asks for it"
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None, "no C++ compiler was found"
    try:
        for runtime in (Path(torch.__file__).parent / "lib").glob("lib*omp*.so*"):
            ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(_built(compiler))), ""
    except subprocess.SubprocessError:
        return None, f"{compiler} cannot build them"
    except OSError as error:
        return None, f"they cannot be built or loaded: {first_line(error)}"


def _built(compiler: str) -> Path:
    """The library's file, compiled if it is not in the cache. Raises OSError or SubprocessError."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    what = hashlib.sha256(_SOURCE.read_bytes() + version + " ".join(_FLAGS).encode() + _processor().encode())
    path = cache_folder() / "kernels" / f"{what.hexdigest()[:16]}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            compiled_to, linked = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
            for command in ((*_FLAGS, "-c", _SOURCE, "-o", compiled_to), ("-shared", compiled_to, "-o", linked)):
                subprocess.run([compiler, *map(str, command)], capture_output=True, check=True, timeout=300)
            linked.replace(path)
    return path


def _processor() -> str:
    """What instructions there are: a cache may be shared by machines."""
    try:
        flags = {
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
        }
    except OSError:
        flags = set()
    return " ".join([platform.machine(), platform.processor(), *sorted(flags)])


def call(name: str, like: Tensor, *arguments: Tensor | int | float) -> None:
    """Run a kernel of the library, in the type of `like`: tensors by their data, numbers as they are."""
    function: Any = getattr(library(), f"{name}_{_TYPES[like.dtype]}")
    function(*map(_argument, arguments))


def _argument(value: Tensor | int | float) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_double(value)


# -- root mean square norm -------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight: (n, D) -> (n, D). Zhang & Sennrich 2019."""
    if gpu := on_gpu(x, weight):
        return gpu.rms_norm(x, weight, eps)  # type: ignore[no-any-return]
    if not compiled(x, weight):
        wide = _wide(x)
        return (wide * _inverse_rms(wide, eps) * weight).to(x.dtype)
    out = torch.empty_like(x)
    call("rms_norm", x, x, weight, out, *x.shape, eps)
    return out


def rms_norm_grad(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient of `x`, (n, D)."""
    if gpu := on_gpu(dy, x, weight):
        return gpu.rms_norm_grad(dy, x, weight, eps)  # type: ignore[no-any-return]
    if not compiled(dy, x, weight):
        wide, towards = _wide(x), _wide(dy) * weight
        scale = _inverse_rms(wide, eps)
        return (scale * towards - wide * scale**3 * (towards * wide).mean(-1, keepdim=True)).to(x.dtype)
    out = torch.empty_like(x)
    call("rms_norm_grad", x, dy, x, weight, out, *x.shape, eps)
    return out


def rms_norm_weight_grad(dy: Tensor, x: Tensor, eps: float) -> Tensor:
    """The gradient of the weight, (D,), in float32 at least."""
    if gpu := on_gpu(dy, x):
        return gpu.rms_norm_weight_grad(dy, x, eps)  # type: ignore[no-any-return]
    wide = _wide(x)
    return (dy * wide * _inverse_rms(wide, eps)).sum(0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


# -- gated linear unit -----------------------------------------------------------------------------------


def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: (n, 2I) -> (n, I). Shazeer 2020."""
    if gpu := on_gpu(gate_up):
        return gpu.gate(gate_up)  # type: ignore[no-any-return]
    if not compiled(gate_up):
        gates, ups = _wide(gate_up).chunk(2, -1)
        return (F.silu(gates) * ups).to(gate_up.dtype)
    out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    call("gate", gate_up, gate_up, out, *out.shape)
    return out


def gate_grad(dy: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """`gate` once more, (n, I), and the gradient of its argument, (n, 2I)."""
    if gpu := on_gpu(dy, gate_up):
        return gpu.gate_grad(dy, gate_up)  # type: ignore[no-any-return]
    if not compiled(dy, gate_up):
        gates, ups = _wide(gate_up).chunk(2, -1)
        sigmoid = torch.sigmoid(gates)
        silu = gates * sigmoid
        grad = torch.cat([dy * ups * (sigmoid + silu * (1 - sigmoid)), dy * silu], -1)
        return (silu * ups).to(dy.dtype), grad.to(dy.dtype)
    out, grad = torch.empty_like(dy), torch.empty_like(gate_up)
    call("gate_grad", gate_up, dy, gate_up, out, grad, *dy.shape)
    return out, grad


# -- rotary position embeddings --------------------------------------------------------------------------


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of all heads, (n, (KG + 2K) C), by (n, C) -> (K, n, G, C), (K, n, C), (K, n, C). Su et al. 2021."""
    n, size = cos.shape
    groups = qkv.shape[1] // (size * kv_heads) - 2
    if gpu := on_gpu(qkv, cos, sin):
        return gpu.rotate(qkv, cos, sin, kv_heads)  # type: ignore[no-any-return]
    if not compiled(qkv, cos, sin):
        heads = qkv.unflatten(1, (-1, size)).transpose(0, 1)  # (KG + 2K, n, C)
        q, k, v = heads.split((kv_heads * groups, kv_heads, kv_heads))
        q, k = ((_wide(x) * cos + _half_turned(_wide(x)) * sin).to(x.dtype) for x in (q, k))
        return q.unflatten(0, (kv_heads, groups)).transpose(1, 2).contiguous(), k.contiguous(), v.contiguous()
    q, k, v = (qkv.new_empty(kv_heads, n, *shape) for shape in ((groups, size), (size,), (size,)))
    call("rotate", qkv, qkv, cos, sin, q, k, v, n, kv_heads, groups, size)
    return q, k, v


def rotate_grad(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of `rotate`'s rows, (n, (KG + 2K) C)."""
    kv_heads, n, groups, size = dq.shape
    if gpu := on_gpu(dq, dk, dv, cos, sin):
        return gpu.rotate_grad(dq, dk, dv, cos, sin)  # type: ignore[no-any-return]
    if not compiled(dq, dk, dv, cos, sin):
        heads = _wide(torch.cat([dq.transpose(1, 2).flatten(0, 1), dk]))
        turned = heads * cos - _half_turned(heads * sin)
        return torch.cat([turned.to(dv.dtype), dv]).transpose(0, 1).flatten(1)
    out = dq.new_empty(n, (groups + 2) * kv_heads * size)
    call("rotate_grad", dq, dq, dk, dv, cos, sin, out, n, kv_heads, groups, size)
    return out


def _half_turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


# -- likelihoods -----------------------------------------------------------------------------------------


def nll(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[target] of logits (n, V) and targets (n,): (n,), and the rows' logsumexp (n,)."""
    if gpu := on_gpu(logits):
        return gpu.nll(logits, targets)  # type: ignore[no-any-return]
    if not compiled(logits) or not _in_vocabulary(targets, logits.shape[1]):
        log_p, lse = logits.log_softmax(-1), logits.logsumexp(-1)
        return -log_p.gather(1, targets[:, None])[:, 0], lse
    lse, out = (logits.new_empty(len(logits)) for _ in range(2))
    call("nll", logits, logits, targets, lse, out, *logits.shape)
    return out, lse


def _in_vocabulary(targets: Tensor, n: int) -> bool:
    """Whether a kernel may look them up; torch says what is wrong with others."""
    return targets.dtype is torch.int64 and targets.is_contiguous() and bool(((targets >= 0) & (targets < n)).all())


def nll_grad(logits: Tensor, lse: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The gradient (n, V) of the sum of weights (n,) times lse (n,) - the targets' logits."""
    if gpu := on_gpu(logits, lse, weights):
        return gpu.nll_grad(logits, lse, targets, weights)  # type: ignore[no-any-return]
    if not compiled(logits, lse, weights):
        grad = (logits - lse[:, None]).exp_().mul_(weights[:, None])
        return grad.scatter_add_(1, targets[:, None], -weights[:, None])
    out = torch.empty_like(logits)
    call("nll_grad", logits, logits, lse, targets, weights, out, *logits.shape)
    return out
