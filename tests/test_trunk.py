"""With frozen layers run once per example, losses and gradients are those of all layers in every step."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import ARCHITECTURES, FUSED, TREE, random_examples
from torch import Tensor, nn

from luthier import trunk
from luthier.batch import Batch, make_batch
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.models import quiet_transformers
from luthier.train.loop import backward
from luthier.train.terms import CrossEntropy
from luthier.trunk import kept_trunk


def built(architecture: str, learning_from: int) -> nn.Module:
    """A random model of four layers in float32, of which those from `learning_from` on learn."""
    import transformers

    config, settings, _ = ARCHITECTURES[architecture]
    depth = {"gpt2": "n_layer", "bloom": "n_layer"}.get(architecture, "num_hidden_layers")
    kinds = {"layer_types": settings["layer_types"] * 2} if "layer_types" in settings else {}
    torch.manual_seed(0)
    with quiet_transformers():
        made = getattr(transformers, config)(**settings | {depth: 4} | kinds)
        model: Any = transformers.AutoModelForCausalLM.from_config(made)
    model.requires_grad_(False)
    [layers] = [m for m in model.get_decoder().children() if isinstance(m, nn.ModuleList)]
    layers[learning_from:].requires_grad_(True)
    return model.eval()  # type: ignore[no-any-return]


def steps(examples: list[Encoded], n: int, seed: int = 0) -> list[list[Encoded]]:
    """Groups of an example or more, each example in several."""
    rng = random.Random(seed)
    return [rng.sample(examples, rng.randint(1, len(examples))) for _ in range(n)]


def loss_and_gradient(decoder: Decoder, group: list[Encoded]) -> tuple[float, dict[str, Tensor]]:
    decoder.model.zero_grad(set_to_none=True)
    batch = make_batch(group)
    nats = backward(decoder, [CrossEntropy()], batch, {"token": batch.n_targets, "sequence": len(group)})
    return float(nats), {n: p.grad.clone() for n, p in decoder.model.named_parameters() if p.grad is not None}


def check_equal(
    found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]], gradient: float = 1e-6
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys() != set()
    total = torch.stack([g.norm() for g in expected[1].values()]).norm()
    gaps = [(found[1][name] - g).norm() for name, g in expected[1].items()]
    assert float(torch.stack(gaps).norm() / total) < gradient


@pytest.mark.parametrize("learning_from", [1, 2, 3])
@pytest.mark.parametrize("architecture", [name for name, (*_, path) in ARCHITECTURES.items() if path.startswith(TREE)])
def test_losses_and_gradients_are_those_of_all_layers(architecture: str, learning_from: int, tmp_path: Path) -> None:
    decoder, examples = Decoder(built(architecture, learning_from)), random_examples(1)
    groups = steps(examples, 6)
    expected = [loss_and_gradient(decoder, group) for group in groups]
    with kept_trunk(decoder, [*steps(examples, 2, seed=1), examples], tmp_path) as path:
        which = "layer 0" if learning_from == 1 else f"layers 0 to {learning_from - 1}"
        assert path == f"{decoder.path}; {which} once per example"
        assert decoder.shortcut is not None
        for group, wanted in zip(groups, expected, strict=True):
            check_equal(loss_and_gradient(decoder, group), wanted)
    assert decoder.shortcut is None
    check_equal(loss_and_gradient(decoder, groups[0]), expected[0])


@pytest.mark.parametrize("architecture", [name for name, (*_, path) in ARCHITECTURES.items() if TREE not in path])
def test_what_runs_row_by_row_runs_as_before(architecture: str, tmp_path: Path) -> None:
    decoder = Decoder(built(architecture, 2))
    with kept_trunk(decoder, [random_examples(1)], tmp_path) as path:
        assert path == decoder.path and path.startswith("row by row") and decoder.shortcut is None


def test_nothing_is_kept_where_the_lowest_layer_or_what_is_below_learns(tmp_path: Path) -> None:
    whole, embedding = built("llama", 0), built("llama", 2)
    embedding.get_input_embeddings().requires_grad_(True)  # type: ignore[operator]
    for model in (whole, embedding):
        decoder = Decoder(model)
        with kept_trunk(decoder, [random_examples(1)], tmp_path) as path:
            assert path == decoder.path


def test_positions_that_learn_are_below_too(tmp_path: Path) -> None:
    model: Any = built("gpt2", 2)
    model.transformer.wpe.requires_grad_(True)
    decoder = Decoder(model)
    with kept_trunk(decoder, [random_examples(1)], tmp_path) as path:
        assert path == decoder.path


def test_the_last_layer_runs_even_if_only_the_norm_learns(tmp_path: Path) -> None:
    model: Any = built("llama", 4)
    model.model.norm.requires_grad_(True)
    decoder, examples = Decoder(model), random_examples(1)
    expected = loss_and_gradient(decoder, examples)
    with kept_trunk(decoder, [examples], tmp_path) as path:
        assert path.endswith("; layers 0 to 2 once per example")
        check_equal(loss_and_gradient(decoder, examples), expected)


def test_a_full_disk_is_said_and_all_layers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "DISK_SHARE", 1e-12)
    decoder, examples = Decoder(built("llama", 2)), random_examples(1)
    with kept_trunk(decoder, [examples], tmp_path) as path:
        assert re.search("; all layers in every step: .* GB of states are more than 0% of the free disk", path)
        assert decoder.shortcut is None


@contextmanager
def of_class(model: Any, odd: type) -> Iterator[None]:
    own = type(model)
    model.__class__ = odd
    try:
        yield
    finally:
        model.__class__ = own


def test_a_body_that_cannot_be_entered_runs_all_layers_and_says_why(tmp_path: Path) -> None:
    model: Any = built("llama", 2)

    class CountsItsLayers(type(model.model)):  # type: ignore[misc]
        def forward(self, *args: Any, **settings: Any) -> Any:
            out = super().forward(*args, **settings)
            out.last_hidden_state = out.last_hidden_state * len(self.layers)
            return out

    with of_class(model.model, CountsItsLayers):
        decoder = Decoder(model)
        with kept_trunk(decoder, [random_examples(1)], tmp_path) as path:
            assert re.fullmatch(f"{FUSED}; all layers in every step: entered at layer 2, the states differ by .*", path)
    model.model.others = nn.ModuleList(nn.Identity() for _ in range(4))
    decoder = Decoder(model)
    with kept_trunk(decoder, [random_examples(1)], tmp_path) as path:
        assert path == f"{decoder.path}; all layers in every step: its layers are not one list"


# -- the same bits, whoever asks first --------------------------------------------------------------------------------


def test_states_do_not_depend_on_the_order_in_which_examples_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not those of examples that two groups hold, were rounding in groups ever so different."""
    decoder, examples = Decoder(built("llama", 2)), random_examples(2)
    losses = []
    for order in (examples, examples[::-1]):
        with kept_trunk(decoder, [examples[:5], examples[2:]], tmp_path), monkeypatch.context() as patch:
            real = trunk._Cut.below
            patch.setattr(trunk._Cut, "below", lambda cut, batch, real=real: real(cut, batch) + 0.1 * len(batch.names))
            found = {e.id: loss_and_gradient(decoder, [e]) for e in order}
        losses.append([found[e.id] for e in examples])
    for (a, first), (b, second) in zip(*losses, strict=True):
        assert a == b and all(torch.equal(first[n], second[n]) for n in first)


def test_states_lie_where_they_should_though_memory_ran_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, examples = Decoder(built("llama", 2)), random_examples(2)
    expected = [loss_and_gradient(decoder, [e]) for e in examples]
    real = Batch.places
    for fails_at in range(3):  # of the places in a group of two, and of those in the batch
        calls = iter(range(1000))

        def places(batch: Batch, i: int, calls: Any = calls, at: int = fails_at) -> Tensor:
            if next(calls) == at:
                raise MemoryError
            return real(batch, i)

        with kept_trunk(decoder, [examples[:2], examples[2:]], tmp_path), monkeypatch.context() as patch:
            patch.setattr(Batch, "places", places)
            for _ in range(2):
                with suppress(MemoryError):
                    loss_and_gradient(decoder, examples[:1])
            for e, one in zip(examples, expected, strict=True):
                check_equal(loss_and_gradient(decoder, [e]), one, 1e-5)


def test_each_group_runs_once_and_what_has_no_home_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, examples = Decoder(built("llama", 2)), random_examples(2)
    ran: list[int] = []
    real = trunk._Cut.below

    def counted(cut: Any, batch: Any) -> Tensor:
        ran.append(len(batch.names))
        return real(cut, batch)

    with kept_trunk(decoder, [examples[:4], examples[4:6]], tmp_path):
        monkeypatch.setattr(trunk._Cut, "below", counted)
        for group in [*steps(examples[:6], 5), examples[:6]]:
            loss_and_gradient(decoder, group)
        assert sorted(ran) == [2, 4]
        found = [loss_and_gradient(decoder, examples[5:]) for _ in range(2)]
        assert ran[2:] == [3, 3]
    check_equal(found[1], loss_and_gradient(decoder, examples[5:]))
