"""Memory: what is planned, what gives way when it runs out, and gradients that never exist whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import train_killed_once
from rows import make_recipe, prepared
from safetensors.torch import load_file
from test_frozen import adapted, encoded

from luthier.adapt import trainable
from luthier.conversation import Message, make_conversation, write_conversations
from luthier.errors import LuthierError, RecipeError, Stopped
from luthier.models import find_base
from luthier.progress import Quiet
from luthier.settings import Full, Lora, Train
from luthier.train import loop, memory, train
from luthier.train.data import StepData
from luthier.train.memory import Relief, recompute
from luthier.train.terms import CrossEntropy

CPU = torch.device("cpu")
FULL = {"method": "full"}


def weights(out: Path) -> dict[str, torch.Tensor]:
    [file] = (out / "model").glob("*.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- layers that are computed again ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [FULL, {"method": "lora", "rank": 4}, {"method": "lora", "rank": 4, "last_layers": 1}])
def test_a_run_that_computes_layers_again_ends_in_the_same_bits(
    tiny: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    for n in (0, 2):
        done = train(make_recipe(adapt=how, recompute_layers=n), data, base, tmp_path / str(n))
        assert ("layers computed again" in done.path) == bool(n)
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


@pytest.mark.parametrize("how", [Full(method="full"), Lora(rank=4), Lora(rank=4, last_layers=1)])
def test_as_many_layers_as_the_free_memory_asks_for(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, how: Full | Lora
) -> None:
    decoder, auto = adapted(tiny, how), Train()
    n_layers = len(decoder.layers()[1])
    kept = [memory._kept_a_token(decoder, n) for n in range(n_layers + 1)]
    assert kept == sorted(kept, reverse=True), "what is computed again keeps no more"
    enough = 10 * memory._beside(decoder, auto, 2000) + int(10 * 2000 * kept[0])
    chosen = []
    for free in (enough, enough // 10, enough // 20, 0):
        monkeypatch.setattr(memory, "available_bytes", lambda device, free=free: free)
        recompute(decoder, auto, 2000, CPU)
        chosen.append(decoder.recompute)
    assert chosen[0] == 0 and chosen[-1] == n_layers and chosen == sorted(chosen)
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)  # a device that does not tell
    recompute(decoder, auto, 2000, CPU)
    assert decoder.recompute == 0
    assert recompute(decoder, Train(recompute_layers=99), 2000, CPU) == "" and decoder.recompute == n_layers


def test_the_plan_counts_what_settings_save(tiny: Path) -> None:
    decoder = adapted(tiny, Full(method="full"))
    n = sum(p.numel() for p in decoder.model.parameters())
    during = Train(update_in_backward=True, max_grad_norm=None)
    whole, eight, none = (memory._beside(decoder, s, 9) for s in (Train(), Train(optimizer="adamw_8bit"), during))
    assert (whole - eight, whole - none) == (6 * n, 4 * n)


def test_layers_that_cannot_be_computed_again_are_said(tiny: Path) -> None:
    decoder = adapted(tiny, Lora(rank=2))
    decoder._layers_name = None  # as of a body whose layers are not one list
    assert recompute(decoder, Train(recompute_layers=2), 100, CPU) == "; 2 layers cannot be computed again"
    assert recompute(decoder, Train(), 100, CPU) == recompute(decoder, Train(recompute_layers=0), 100, CPU) == ""


# -- when it runs out --------------------------------------------------------------------------------------------


def out_of_memory(*args: Any) -> Any:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 1 bytes")


def test_what_gives_way_and_when_nothing_is_left(tiny: Path) -> None:
    decoder, examples, said = adapted(tiny, Lora(rank=2)), encoded(tiny, 12), list[str]()
    data = StepData(examples, examples[:2], 1, 8, 64, seed=0)
    relief = Relief(decoder, data, said.append)
    with pytest.raises(Stopped, match="LU-S003 memory: ran out with a single example in a micro-batch: .enforce"):
        relief(out_of_memory)
    assert said[0] == "memory ran out: all 2 layers are computed again in the backward pass from now on"
    assert said[1:3] == [f"memory ran out: micro-batches of {n} tokens from now on" for n in (32, 16)]
    assert all(len(group) == 1 for group in data.groups(0)) and f"ran out {len(said) + 1} times" in relief.said
    with pytest.raises(RuntimeError, match="something else"):
        relief(lambda: (_ for _ in ()).throw(RuntimeError("something else")))


def test_frozen_layers_that_are_kept_give_way_too(tiny: Path) -> None:
    """They are computed for as many examples at once as were asked for at load, whatever a micro-batch holds."""
    decoder, examples, said = adapted(tiny, Lora(rank=2)), encoded(tiny, 12), list[str]()
    data = StepData(examples, examples[:2], 1, 8, 64, seed=0)
    decoder.shortcut, relief = (lambda batch: out_of_memory()), Relief(decoder, data, said.append)
    assert relief(lambda: decoder.hidden(data.step(0)[0])) is not None
    assert decoder.shortcut is None and data.tokens_per_micro_batch == 64
    assert said[-1] == "memory ran out: all layers run in every step, 64 tokens at once, from now on"


DURING = {"adapt": FULL, "max_grad_norm": None, "update_in_backward": True}


@pytest.mark.parametrize(
    ("where", "settings"), [("luthier.train.loop.backward", DURING), ("torch.optim.AdamW.step", {"adapt": FULL})]
)
def test_nothing_is_tried_again_while_weights_change(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, settings: dict[str, Any]
) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    monkeypatch.setattr(where, out_of_memory)
    with pytest.raises(Stopped, match="LU-S003 memory: ran out while weights change"):
        train(make_recipe(**settings), data, base, tmp_path / "out")


def test_a_validation_is_tried_again_in_any_case(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    real, calls = loop.nll_sums, iter(range(1000))
    monkeypatch.setattr(loop, "nll_sums", lambda *args: real(*args) if next(calls) else out_of_memory())
    assert "memory ran out 1 times" in train(make_recipe(**DURING), data, base, tmp_path / "out").path


def test_a_step_that_ran_out_is_taken_again_and_learns_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs out in the midst of a step's gradient, twice; what was added by then must not count."""
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    recipe = make_recipe(adapt=FULL, tokens_per_micro_batch=128, max_grad_norm=1.0)
    straight = train(recipe, data, base, tmp_path / "straight")
    real, calls = loop.backward, iter(range(1000))

    def backward(*args: Any) -> Any:
        return out_of_memory() if next(calls) in (4, 9) else real(*args)

    monkeypatch.setattr(loop, "backward", backward)
    relieved = train(recipe, data, base, tmp_path / "relieved")
    assert "memory ran out 2 times" in relieved.path and "memory" not in straight.path
    for (_, a), (_, b) in zip(straight.curve, relieved.curve, strict=True):
        assert a == pytest.approx(b, rel=1e-5)  # float32, and other micro-batches


LIMIT = 85 * 2**20
"""Bytes: twice what the smallest micro-batches need, and less than half of what the first one asks for."""
LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)  # another thread's stack is memory, too
sys.path[:0] = json.loads(sys.argv[2])
from rows import make_recipe
from luthier.models import find_base
from luthier.progress import Quiet
from luthier.train import train
import luthier.train as room

class Say(Quiet):
    def say(self, text): print(text, flush=True)

work = Path(sys.argv[1])
fit = room.fit
def limited(*args):  # so much beside what is there when the first step begins
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[3]), resource.RLIM_INFINITY))
    return fit(*args)
room.fit = limited
recipe = make_recipe(adapt={"method": "full"}, tokens_per_micro_batch=2**20, examples_per_step=32, recompute_layers=0,
                     epochs=1, max_grad_norm=1.0)
done = train(recipe, work / "data", find_base(sys.argv[4]), work / "out", Say())
print(json.dumps([done.path, done.steps]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")
def test_a_process_that_may_not_grow_finishes_in_smaller_micro_batches(tiny: Path, tmp_path: Path) -> None:
    """The operating system itself refuses memory here."""
    (tmp_path / "data").mkdir()
    for side, n in (("train", 64), ("validation", 2)):
        rows = [
            [Message(role="user", content=f"{side} {i}"), Message(role="assistant", content=f"{i} kettles " * 120)]
            for i in range(n)
        ]
        write_conversations(tmp_path / "data" / f"{side}.jsonl", [make_conversation(row, "rows:1") for row in rows])
    paths = [str(Path(__file__).parent), *sys.path]
    given = [sys.executable, "-c", LIMITED, str(tmp_path), json.dumps(paths), str(LIMIT), str(tiny)]
    done = subprocess.run(
        given, capture_output=True, text=True, timeout=300, env=os.environ | {"MALLOC_ARENA_MAX": "1"}
    )
    assert done.returncode == 0, done.stderr
    path, steps = json.loads(done.stdout.splitlines()[-1])
    assert steps == 2 and "memory ran out" in path


# -- updates in the backward pass --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [FULL, {"method": "lora", "rank": 4}, {"method": "partial", "last_layers": 1}])
def test_updates_in_the_backward_pass_are_those_after_it(tiny: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    """To the bit: each layer's gradient is whole when it is used."""
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    for during in (True, False):
        recipe = make_recipe(adapt=how, max_grad_norm=None, update_in_backward=during, weight_decay=0.1)
        train(recipe, data, base, tmp_path / str(during))
    assert same(weights(tmp_path / "True"), weights(tmp_path / "False"))


def test_no_gradient_of_a_layer_is_left_when_the_backward_pass_ends(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    real, left = loop._Steps._gradient, list[set[str]]()

    def gradient(steps: Any, *args: Any) -> Any:
        found = real(steps, *args)
        left.append({name for name, p in steps.decoder.model.named_parameters() if p.grad is not None})
        return found

    monkeypatch.setattr(loop._Steps, "_gradient", gradient)
    train(make_recipe(adapt=FULL, max_grad_norm=None, update_in_backward=True), data, base, tmp_path / "out")
    assert left and all(names == {"model.embed_tokens.weight", "model.norm.weight"} for names in left)


def test_a_killed_run_with_updates_in_the_backward_pass_goes_on_to_the_same_bits(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    recipe = make_recipe(adapt=FULL, max_grad_norm=None, update_in_backward=True)
    train(recipe, data, base, tmp_path / "straight")
    train_killed_once(recipe, data, base, tmp_path / "killed", monkeypatch)
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "killed"))


def test_a_gradient_that_is_not_finite_is_said(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    real = CrossEntropy.__call__
    monkeypatch.setattr(CrossEntropy, "__call__", lambda self, *args: real(self, *args) * float("inf"))
    with pytest.raises(Stopped, match=r"LU-S001 step 1: the gradient norm is .*some layers may be updated already"):
        train(make_recipe(adapt=FULL, max_grad_norm=None, update_in_backward=True), data, base, tmp_path / "out")


def test_layers_that_were_updated_by_a_bad_step_are_rolled_back(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Infinity comes up in the backward pass of the first layer, when the last one has been updated."""
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    recipe = make_recipe(adapt=FULL, max_grad_norm=None, update_in_backward=True, on_bad_step="roll_back", keep="last")
    real, restored = loop._Steps._gradient, list[bool]()

    def gradient(steps: Any, step: int, *args: Any) -> Any:
        if step == 5:
            weight = next(iter(steps.decoder.layers()[1].parameters()))
            weight.register_hook(lambda grad: grad * float("inf") if len(restored) == 0 else grad)
        return real(steps, step, *args)

    def bad(steps: Any, progress: Any, why: str) -> Any:
        after = real_bad(steps, progress, why)
        before = load_file(tmp_path / "out" / "checkpoints" / f"step-{progress.best_step:08d}" / "weights.safetensors")
        restored.append(all(torch.equal(before[n], p) for n, p in trainable(steps.decoder.model).items()))
        return after

    real_bad = loop._Steps._bad
    monkeypatch.setattr(loop._Steps, "_gradient", gradient)
    monkeypatch.setattr(loop._Steps, "_bad", bad)
    done = train(recipe, data, base, tmp_path / "out")
    assert [b.step for b in done.bad_steps] == [6] and restored == [True] and done.steps == done.steps_planned


def test_steps_of_several_micro_batches_are_refused(tiny: Path, tmp_path: Path) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    recipe = make_recipe(adapt=FULL, max_grad_norm=None, update_in_backward=True, tokens_per_micro_batch=64)
    with pytest.raises(RecipeError, match=r"LU-R017 train.update_in_backward: step \d+ has \d+ micro-batches"):
        train(recipe, data, base, tmp_path / "out", Quiet())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_grad_norm": 1.0}, "needs max_grad_norm: null"),
        ({"max_grad_norm": None, "spike": 9.0}, "needs max_grad_norm: null and spike: null"),
        ({"max_grad_norm": None, "on_bad_step": "skip"}, "cannot skip a step that has begun"),
        ({"max_grad_norm": None, "adapt": {"method": "adalora"}}, "AdaLoRA needs the gradients of all layers"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LuthierError, match=said):
        make_recipe(update_in_backward=True, **settings)
