"""The loop's invariants: the cut into micro-batches, packing, resuming and stopping do not change what is learned."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import dying, train_killed_once
from rows import NoKeeper, conversations, make_recipe, prepared
from torch import Tensor, nn

from luthier import interrupts
from luthier.adapt import adapt, trainable
from luthier.batch import make_batch
from luthier.decoder import Decoder
from luthier.encode import Encoded, Encoder
from luthier.errors import DataError, Stopped
from luthier.interrupts import Interrupted
from luthier.models import find_base, load_model, load_tokenizer
from luthier.progress import Quiet
from luthier.settings import Full, Lora
from luthier.train import CURVE_POINTS, _thinned, checkpoint, loop, train
from luthier.train.data import StepData
from luthier.train.loop import Plan, Progress, backward, fit
from luthier.train.optim import learning_rate, make_optimizer
from luthier.train.terms import CrossEntropy


def encoded(tiny: Path, n: int, seed: int = 0) -> list[Encoded]:
    encoder = Encoder(load_tokenizer(find_base(str(tiny))))
    return [encoder(c) for c in conversations(n, seed)]


def full_decoder(tiny: Path) -> Decoder:
    """The tiny model in float64, all of it trainable."""
    base = find_base(str(tiny))
    model = adapt(load_model(base, torch.device("cpu"), torch.float64), Full(method="full"), base, 0).double()
    return Decoder(model)


def gradients(decoder: Decoder, groups: list[list[Encoded]], share: bool = True) -> dict[str, Tensor]:
    decoder.model.zero_grad(set_to_none=True)
    batches = [make_batch(group, share=share) for group in groups]
    counts: dict[loop.Unit, int] = {
        "token": sum(b.n_targets for b in batches),
        "sequence": sum(len(b.names) for b in batches),
    }
    for batch in batches:
        backward(decoder, [CrossEntropy()], batch, counts)
    return {n: p.grad.clone() for n, p in decoder.model.named_parameters() if p.grad is not None}


def worst_gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest relative difference of norms over the tensors."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / b[n].norm()) for n in a)


def in_groups_of(size: int, examples: list[Encoded]) -> list[list[Encoded]]:
    return [examples[i : i + size] for i in range(0, len(examples), size)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [True, False])
def test_the_gradient_does_not_depend_on_the_cut_into_micro_batches(tiny: Path, size: int, share: bool) -> None:
    decoder, examples = full_decoder(tiny), encoded(tiny, 8)
    assert len({e.n_learned for e in examples}) > 3, "the masks must be ragged"
    one_by_one = gradients(decoder, in_groups_of(1, examples), share=False)
    # float64 throughout, but for the norms, which transformers computes in float32
    assert worst_gap(gradients(decoder, in_groups_of(size, examples), share), one_by_one) < 1e-6


def test_rows_give_the_gradient_of_the_tree(tiny: Path) -> None:
    decoder, examples = full_decoder(tiny), encoded(tiny, 8)
    tree = gradients(decoder, [examples])
    decoder._rows_only = "for the test"
    assert worst_gap(gradients(decoder, [examples]), tree) < 1e-6


def test_a_mean_per_micro_batch_would_be_something_else(tiny: Path) -> None:
    """The trap that the loop avoids is real on these rows: dividing each micro-batch by its own count."""
    decoder, examples = full_decoder(tiny), encoded(tiny, 8)
    right = gradients(decoder, in_groups_of(2, examples))
    decoder.model.zero_grad(set_to_none=True)
    for group in in_groups_of(2, examples):
        batch = make_batch(group)
        backward(decoder, [CrossEntropy()], batch, {"token": 4 * batch.n_targets, "sequence": 8})
    wrong = {n: p.grad.clone() for n, p in decoder.model.named_parameters() if p.grad is not None}
    assert worst_gap(wrong, right) > 1e-2


def test_logits_in_chunks_give_the_same_gradient(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, examples = full_decoder(tiny), encoded(tiny, 8)
    whole = gradients(decoder, [examples])
    monkeypatch.setattr("luthier.decoder.LOGITS_CHUNK", 3)
    assert worst_gap(gradients(decoder, [examples]), whole) < 1e-6


# -- order of the data ------------------------------------------------------------------------------------------------


def test_the_loss_and_its_gradient_are_those_of_cross_entropy() -> None:
    torch.manual_seed(0)
    targets, weights = torch.randint(50, (7,)), torch.tensor([1.0, 2, 1, 1, 3, 0, 1]).double()
    ours = torch.randn(7, 50, dtype=torch.float64).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss = CrossEntropy()(ours, targets, weights)
    expected = (nn.functional.cross_entropy(theirs, targets, reduction="none") * weights).sum()
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_every_epoch_sees_every_example_once_in_another_order(tiny: Path) -> None:
    examples = encoded(tiny, 20)
    data = StepData(examples, examples[:2], 3, 8, 4096, seed=5)
    seen = [e.source for step in range(data.n_steps) for e in data.examples(step)]
    epochs = [seen[i : i + 20] for i in (0, 20, 40)]
    assert data.n_steps == 8 and len(seen) == 60
    assert all(sorted(e) == sorted(x.source for x in examples) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_step_is_a_pure_function_of_seed_and_step(tiny: Path) -> None:
    examples = encoded(tiny, 20)
    first, second = (StepData(examples, examples[:2], 3, 8, 4096, seed=5) for _ in range(2))
    assert [e.source for e in first.examples(4)] == [e.source for e in second.examples(4)]
    other = StepData(examples, examples[:2], 3, 8, 4096, seed=6)
    assert [e.source for e in first.examples(4)] != [e.source for e in other.examples(4)]


# -- resuming ---------------------------------------------------------------------------------------------------------


def adapter_bytes(out: Path) -> bytes:
    return (out / "model" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_killed_run_goes_on_to_the_same_bits(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    recipe = make_recipe(adapt={"method": "lora", "rank": 4, "dropout": dropout})
    straight = train(recipe, data, base, tmp_path / "straight")
    for after in (0, 3, 7):
        with dying(after, monkeypatch):
            train(recipe, data, base, tmp_path / "killed")
    resumed = train(recipe, data, base, tmp_path / "killed")
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "straight")
    assert resumed.checks == straight.checks and resumed.curve == straight.curve


@pytest.fixture
def signals() -> Iterator[None]:
    """As a command handles them."""
    interrupts.install()
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_signal_saves_the_last_finished_step(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: None
) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    recipe = make_recipe(save_every_s=1000.0)
    train(recipe, data, base, tmp_path / "straight")
    real = loop.backward

    def interrupted_backward(*args: object) -> Tensor:
        if next(counter) == 4:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)  # type: ignore[arg-type]

    counter = iter(range(1000))
    monkeypatch.setattr(loop, "backward", interrupted_backward)
    with pytest.raises(Interrupted) as stop:
        train(recipe, data, base, tmp_path / "stopped")
    assert stop.value.exit_code == 143
    assert checkpoint.steps_in(tmp_path / "stopped" / "checkpoints")[-1] == 5, "the step in flight was finished"
    monkeypatch.setattr(loop, "backward", real)
    train(recipe, data, base, tmp_path / "stopped")
    assert adapter_bytes(tmp_path / "stopped") == adapter_bytes(tmp_path / "straight")


def test_a_signal_during_a_validation_ends_it_and_it_is_made_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: None
) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    recipe = make_recipe(save_every_s=1000.0)
    straight = train(recipe, data, base, tmp_path / "straight")
    real, scored = loop.score, iter(range(1000))

    def score(*args: Any) -> Tensor:
        if next(scored) == 2:  # in the second validation: each scores one batch here
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(loop, "score", score)
        patched.setattr(StepData, "valid", lambda self: [*real_valid(self)] * 2)
        train(recipe, data, base, tmp_path / "stopped")
    [*_, last] = checkpoint.steps_in(tmp_path / "stopped" / "checkpoints")
    assert last == straight.checks[1].step, "the step before it was saved"
    resumed = train(recipe, data, base, tmp_path / "stopped")
    assert resumed.checks == straight.checks
    assert adapter_bytes(tmp_path / "stopped") == adapter_bytes(tmp_path / "straight")


real_valid = StepData.valid


# -- what is kept, and when it stops ----------------------------------------------------------------------------------


def scripted_fit(nlls: list[float], patience: int | None, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Progress:
    """A run whose validations are `nlls`, one a step; the first is before training."""
    examples = encoded(tiny, 16)
    base = find_base(str(tiny))
    model = adapt(load_model(base, torch.device("cpu")), Lora(rank=2), base, 0)
    data = StepData(examples, examples[:2], len(nlls), 16, 4096, seed=0)
    plan = Plan(len(nlls) - 1, lambda _: 1e-3, 0, 1.0, 1, patience, 1e9)
    script = iter(nlls)
    monkeypatch.setattr(loop, "nll_sums", lambda *_: (next(script), 1))
    optimizer = make_optimizer(trainable(model), make_recipe().train)
    return fit(Decoder(model), optimizer, [CrossEntropy()], data, plan, Progress(), NoKeeper(), Quiet())


def test_early_stopping_keeps_the_best_and_says_why(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = scripted_fit([3.0, 2.0, 2.5, 2.4, 2.3, 1.0], 3, monkeypatch, tiny)
    assert (done.step, done.best_step, done.best_nll) == (4, 1, 2.0)
    assert done.stopped == "validation nll has not improved on 2.0000 for 3 checks"


def test_without_early_stopping_the_best_is_still_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = scripted_fit([3.0, 2.0, 2.5, 2.4, 2.3, 1.0], None, monkeypatch, tiny)
    assert (done.step, done.best_step, done.stopped) == (5, 5, "all planned steps are done")


def test_the_best_weights_are_restored(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation only gets worse: the best weights are those of step 0, where the adapter does nothing."""
    from safetensors.torch import load_file

    worse = iter(range(100))
    monkeypatch.setattr(loop, "nll_sums", lambda *_: (float(next(worse)), 1))
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    done = train(make_recipe(early_stopping=None), data, base, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model" / "adapter_model.safetensors")
    assert (done.best_step, done.kept_step, done.steps) == (0, 0, done.steps_planned)
    assert all(not w.any() for n, w in weights.items() if "lora_B" in n)
    last = train(make_recipe(early_stopping=None, keep="last"), data, base, tmp_path / "last")
    weights = load_file(tmp_path / "last" / "model" / "adapter_model.safetensors")
    assert (last.best_step, last.kept_step) == (0, last.steps_planned)
    assert all(w.any() for n, w in weights.items() if "lora_B" in n)


def test_a_time_limit_ends_the_schedule(tiny: Path, tmp_path: Path) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    done = train(make_recipe(epochs=500, max_minutes=0.03, early_stopping=None), data, base, tmp_path / "out")
    assert 0 < done.steps < done.steps_planned
    assert done.stopped == f"the time limit was reached after {done.steps} of {done.steps_planned} steps"


def test_validations_count_in_the_time_limit(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, validations = loop.nll_sums, []
    clock = loop.time.monotonic
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock() + 60 * len(validations))

    def slow(*args: Any) -> Any:
        validations.append(1)
        return real(*args)

    monkeypatch.setattr(loop, "nll_sums", slow)
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    done = train(make_recipe(epochs=50, max_minutes=3.5, early_stopping=None), data, base, tmp_path / "out")
    assert len(validations) == 4 and done.seconds >= 240 and done.checks[-1].step == done.steps < done.steps_planned


def test_every_update_learns_also_that_of_a_run_of_one_step(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, base = prepared(tmp_path / "data", 8), find_base(str(tiny))
    done = train(make_recipe(epochs=1, examples_per_step=16, keep="last"), data, base, tmp_path / "out")
    assert done.steps == 1 and done.checks[0].nll != done.checks[1].nll
    plan = Plan(4, lambda _: 0.0, 0, None, 1, None, 0.0)
    rates = [learning_rate(make_recipe().train, plan.fraction(Progress(step=i))) for i in range(1, 5)]
    assert min(rates) > 0.05 * max(rates)


def test_a_gradient_that_is_not_finite_changes_nothing_and_names_the_rows(tiny: Path) -> None:
    class Poison(nn.Module):
        name, weight, unit = "poison", 1.0, "token"

        def forward(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            return logits.sum() * math.nan

    examples = encoded(tiny, 8)
    base = find_base(str(tiny))
    model = adapt(load_model(base, torch.device("cpu")), Lora(rank=2), base, 0)
    parameters = trainable(model)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    data = StepData(examples, examples[:2], 1, 8, 4096, seed=0)
    plan = Plan(1, lambda _: 1e-3, 0, 1.0, 1, None, 1e9)
    with pytest.raises(Stopped, match=r"LU-S001 step 1: the gradient norm is nan.*step 0(?s:.*)rows\.jsonl:1"):
        fit(
            Decoder(model), make_optimizer(parameters, make_recipe().train), [CrossEntropy(), Poison()], data,  # type: ignore[list-item]
            plan, Progress(), NoKeeper(), Quiet(),
        )  # fmt: skip
    assert all(torch.equal(before[n], p) for n, p in parameters.items())


def test_a_hook_may_add_to_the_gradient(tiny: Path) -> None:
    class Zero:
        def before_update(self, model: nn.Module, progress: Progress) -> None:
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.zero_()

    examples = encoded(tiny, 8)
    base = find_base(str(tiny))
    model = adapt(load_model(base, torch.device("cpu")), Lora(rank=2), base, 0)
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    data = StepData(examples, examples[:2], 1, 8, 4096, seed=0)
    plan = replace(Plan(1, lambda _: 1e-3, 0, 1.0, 1, None, 1e9), hooks=(Zero(),))
    optimizer = make_optimizer(trainable(model), make_recipe().train)
    fit(Decoder(model), optimizer, [CrossEntropy()], data, plan, Progress(), NoKeeper(), Quiet())
    assert all(torch.equal(before[n], p) for n, p in trainable(model).items())


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (1.0, 0.0)])
def test_warm_up_and_cosine(fraction: float, expected: float) -> None:
    settings = make_recipe(warmup_fraction=0.1, learning_rate=1.0).train
    assert learning_rate(settings, fraction) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [0, 1, 400, 401, 799, 800, 1201])
def test_a_curve_keeps_so_many_points_and_its_end(n: int) -> None:
    curve = [(step, 1.0) for step in range(n)]
    kept = _thinned(curve)
    assert len(kept) <= CURVE_POINTS and kept[-1:] == tuple(curve[-1:]) and (n > CURVE_POINTS or len(kept) == n)


def test_an_empty_side_is_said(tiny: Path, tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    (data / "validation.jsonl").write_text("")
    with pytest.raises(DataError, match="LU-D070"):
        train(make_recipe(), data, find_base(str(tiny)), tmp_path / "out")


def test_full_fine_tuning_learns_and_is_loaded_again(tiny: Path, tmp_path: Path) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    done = train(make_recipe(adapt={"method": "full"}, learning_rate=3e-3), data, base, tmp_path / "out")
    assert done.checks[-1].nll < done.checks[0].nll - 0.5
    assert load_model(find_base(str(tmp_path / "out" / "model"))) is not None


# -- steps that would do harm -----------------------------------------------------------------------------------------


class Say(Quiet):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def poisoned(steps: Mapping[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of these steps, counted from 1, are multiplied."""
    real = loop._Steps._gradient

    def gradient(running: Any, step: int, *args: Any) -> Any:
        found = real(running, step, *args)
        for p in running.decoder.model.parameters():
            if p.grad is not None:
                p.grad *= steps.get(step + 1, 1.0)
        return found

    monkeypatch.setattr(loop._Steps, "_gradient", gradient)


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e4])
@pytest.mark.parametrize("how", ["skip", "roll_back"])
def test_a_bad_step_is_skipped_or_rolled_back_the_same_way_each_time(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, factor: float
) -> None:
    data, base = prepared(tmp_path / "data", 160), find_base(str(tiny))
    recipe = make_recipe(on_bad_step=how, spike=100.0, early_stopping=None, epochs=2, keep="last")
    poisoned({23: factor}, monkeypatch)
    before = {}
    real = loop._Steps._bad

    def bad(steps: Any, progress: Progress, why: str) -> Progress:
        parameters = trainable(steps.decoder.model)
        before["weights"] = {n: p.detach().clone() for n, p in parameters.items()}
        after = real(steps, progress, why)
        before["same"] = all(torch.equal(before["weights"][n], p) for n, p in parameters.items())
        before["best"] = progress.best_step
        return after

    monkeypatch.setattr(loop._Steps, "_bad", bad)
    report = Say()
    done = train(recipe, data, base, tmp_path / "out", report)
    assert [b.step for b in done.bad_steps] == [23] and 23 not in dict(done.curve)
    assert before["same"] == (how == "skip") and 0 < before["best"] < 22
    [said] = [text for text in report.said if "step 23" in text]
    assert "rows.jsonl:" in said
    assert ("nothing is learned" if how == "skip" else f"weights of step {before['best']}") in said
    train_killed_once(recipe, data, base, tmp_path / "killed", monkeypatch, after=24)
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "out")


def test_a_spike_is_a_step_like_others_where_none_is_asked_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, base = prepared(tmp_path / "data", 160), find_base(str(tiny))
    poisoned({23: 1e4}, monkeypatch)
    assert not train(make_recipe(on_bad_step="skip"), data, base, tmp_path / "out").bad_steps


def test_three_bad_steps_in_a_row_stop_the_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, base = prepared(tmp_path / "data"), find_base(str(tiny))
    poisoned(dict.fromkeys((2, 4, 5, 6), math.nan), monkeypatch)
    with pytest.raises(Stopped, match="LU-S001 step 6: the gradient norm is nan.*so were the 2 before it"):
        train(make_recipe(on_bad_step="skip"), data, base, tmp_path / "out")
