"""What only a GPU computes: FlexAttention and Triton's kernels as they are compiled there, and training through both.

Skipped without a GPU, also where everything is required. Run these in a process of their own: see `benchmarks/gpu.sh`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attention import CLUSTERS, DEEP, EXACT, TOKEN, WIDE, dense, drawn, plan_of, with_gradients
from test_models import FUSED, random_examples
from torch import Tensor, nn

from luthier import flex, kernels
from luthier.attention import TreePlan
from luthier.batch import Batch, make_batch
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.models import quiet_transformers
from luthier.settings import Train
from luthier.train.checkpoint import Checkpoints
from luthier.train.loop import backward
from luthier.train.optim import make_optimizer
from luthier.train.terms import CrossEntropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])

CHATS = plan_of([700, *([90, 40, 200] * 5)], [-1, *(p for i in range(1, 16, 3) for p in (0, i, i))])
PLANS = {"wide": WIDE, "deep": DEEP, "clusters": CLUSTERS, "exact": EXACT, "token": TOKEN, "chats": CHATS}


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


# -- attention ----------------------------------------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize(("groups", "size"), [(1, 64), (4, 64), (4, 128), (3, 80)])
@pytest.mark.parametrize("name", PLANS)
def test_flex_is_as_close_to_a_dense_mask_as_torchs_own_attention(
    name: str, groups: int, size: int, dtype: torch.dtype
) -> None:
    plan = TreePlan(PLANS[name].segments, PLANS[name].ancestors, torch.device("cuda"))
    given = [x.cuda() for x in drawn(plan, 2, groups, size, dtype)]
    assert flex.takes(given[0])
    exact = with_gradients(
        lambda q, k, v, s: dense(PLANS[name], q.cpu(), k.cpu(), v.cpu(), s).cuda(), [x.double() for x in given], 0.2
    )
    found, theirs = (with_gradients(attend, given, 0.2) for attend in (plan.attend, plan._by_segments))
    for a, b, c in zip(found, theirs, exact, strict=True):
        assert a.shape == c.shape and a.dtype is dtype and a.isfinite().all()
        if float(c.norm()):  # the scores of one token have no gradient
            assert relative(a, c) <= 2 * relative(b, c) + 8 * torch.finfo(torch.float32).eps


def test_trees_of_one_length_share_a_compilation() -> None:
    from torch._dynamo.utils import counters

    def run(lengths: list[int], parents: list[int]) -> int:
        plan = plan_of(lengths, parents)
        plan = TreePlan(plan.segments, plan.ancestors, torch.device("cuda"))
        with_gradients(plan.attend, [x.cuda() for x in drawn(plan, 2, 2, 64, torch.bfloat16)], 0.1)
        return int(counters["stats"]["unique_graphs"])

    first = run([300, 250, 240], [-1, 0, 0])
    assert run([100, 250, 340, 100], [-1, 0, 0, 2]) == first
    assert run([100, 250, 740], [-1, 0, 0]) > first


# -- kernels ------------------------------------------------------------------------------------------------


def on_torch(call: Callable[[], Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "on_gpu", lambda *tensors: None)
        return call()


def both(call: Callable[..., Any], *given: Any) -> list[tuple[Tensor, Tensor]]:
    """What Triton gives, and what torch gives in float64 of the same numbers."""
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given]
    found, exact = call(*given), on_torch(lambda: call(*wide))
    return list(zip(found, exact, strict=True)) if isinstance(found, tuple) else [(found, exact)]


@by_dtype
@pytest.mark.parametrize(("n", "size"), [(1, 64), (333, 576), (1000, 2048), (77, 4096), (33, 14336)])
def test_kernels_give_what_torch_gives(n: int, size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    x, dy, weight, gate_up = some(n, size), some(n, size), some(size), some(n, 2 * size)
    qkv, cos, sin, kv_heads = some(n, 12 * 64), some(n, 64), some(n, 64), 2
    assert kernels.on_gpu(x) is not None
    pairs = [
        *both(kernels.rms_norm, x, weight, 1e-5),
        *both(kernels.rms_norm_grad, dy, x, weight, 1e-5),
        *both(kernels.rms_norm_weight_grad, dy, x, 1e-5),
        *both(kernels.gate, gate_up),
        *both(kernels.gate_grad, dy, gate_up),
        *both(kernels.rotate, qkv, cos, sin, kv_heads),
        *both(kernels.rotate_grad, some(2, n, 4, 64), some(2, n, 64), some(2, n, 64), cos, sin),
    ]
    if dtype is torch.float32:
        targets, weights = torch.arange(n, device="cuda") % size, some(n).abs()
        pairs += both(kernels.nll, x, targets)
        pairs += both(kernels.nll_grad, x, x.logsumexp(-1), targets, weights)
    for found, exact in pairs:
        assert found.shape == exact.shape and relative(found, exact) < (4e-3 if dtype is torch.bfloat16 else 3e-6)


def test_more_numbers_than_32_bits_count() -> None:
    logits = torch.randn(1, 131_072, device="cuda").repeat(2**14 + 3, 1)  # 8.6 GB
    targets = torch.arange(len(logits), device="cuda")
    nats, lse = kernels.nll(logits, targets)
    expected = logits[:1].double().logsumexp(-1)
    assert torch.allclose(lse.double(), expected.expand_as(lse))
    assert torch.allclose(nats.double(), expected - logits[0].index_select(0, targets).double(), atol=1e-4)


# -- training -----------------------------------------------------------------------------------------------


def llama(dtype: torch.dtype, *, lora: bool) -> Any:
    """A random model whose heads have 64 numbers, as FlexAttention wants at least 16."""
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with quiet_transformers():
        model: Any = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.data = 0.1 * torch.randn(p.shape)
    return model.cuda().eval()


def chats() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1000, (n,), generator=generator).tolist() for n in (200, 90, 40, 7, 150)]
    rows = [rows[0] + row for row in rows]
    return [Encoded(row, [i > 150 for i in range(len(row))], str(k), "") for k, row in enumerate(rows)]


def gradients(decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
    decoder.model.zero_grad()
    with decoder.entered():
        nats = backward(decoder, [CrossEntropy()], batch.to(decoder.device), {"token": batch.n_targets})
    found = {name: p.grad.clone() for name, p in decoder.model.named_parameters() if p.grad is not None}
    return {"nats": nats, **found}


@pytest.mark.parametrize("way", ["lora", "full", "float32 weights"])
def test_a_step_is_as_close_to_float64_as_the_models_own_layers(way: str) -> None:
    model = llama(torch.float32 if way == "float32 weights" else torch.bfloat16, lora=way == "lora")
    batch, alone = make_batch(chats()), make_batch(chats(), share=False)
    exact = gradients(Decoder(copy.deepcopy(model).double()), alone)
    decoder = Decoder(model)
    assert decoder.path == FUSED and decoder.fused is not None and decoder.fused.dtype is torch.bfloat16
    found = gradients(decoder, batch)
    own = Decoder(model.bfloat16())
    own.fused = None
    theirs = gradients(own, batch)
    assert found.keys() == exact.keys() and len(found) > 10
    gaps = [sum(relative(x[name], exact[name]) for name in exact) / len(exact) for x in (found, theirs)]
    assert gaps[0] <= 1.2 * gaps[1] < 0.2, gaps


def test_an_optimizer_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """Fused AdamW wants its number of steps on the device too."""
    ends = []
    for name, stops in (("straight", [2]), ("resumed", [1, 2])):
        done = 0
        for stop in stops:
            weight = nn.Parameter(torch.ones(64, 64, device="cuda"))
            optimizer = make_optimizer({"w": weight}, Train())
            with Checkpoints(tmp_path / name, {"w": weight}, optimizer, print) as checkpoints:
                checkpoints.resume()
                for _ in range(done, stop):
                    weight.grad = torch.full_like(weight, 0.5)
                    optimizer.step()
                checkpoints.save(stop, {"best_step": stop}, stop)
            done = stop
        ends.append(weight.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("lora", [False, True])
def test_a_step_gives_the_same_bits_again(lora: bool) -> None:
    decoder, batch = Decoder(llama(torch.bfloat16, lora=lora)), make_batch(chats())
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = gradients(decoder, batch), gradients(decoder, batch)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_many_small_trees_pass() -> None:
    decoder = Decoder(llama(torch.bfloat16, lora=True))
    for seed in range(4):
        assert all(g.isfinite().all() for g in gradients(decoder, make_batch(random_examples(seed))).values())
