"""`train`: prepared conversations and a base model in, trained weights and a TrainReport out."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.adapt import adapt, trainable
from luthier.decoder import Decoder
from luthier.documents import examples_of
from luthier.encode import Encoder
from luthier.encoded import read_side
from luthier.errors import DataError, RecipeError, RunError
from luthier.files import fresh_folder
from luthier.joined import adapter_in, add, join, read_adapter
from luthier.machine import keeping_freed_memory
from luthier.models import Base, held_in, load_model, load_tokenizer, max_tokens, multiplied_in, pick_device, pick_dtype
from luthier.progress import Quiet, Reporter
from luthier.quantized import in_few_bits, n_weights
from luthier.rates import suited_rate
from luthier.records import BadStep, Check, Given, TrainReport
from luthier.saved import is_adapter, save_adapted
from luthier.settings import AdaLora, GivenAdapter, Lora, Recipe, Train, left_out, located
from luthier.store import folder_hash
from luthier.train.checkpoint import KEEP_LAST, Checkpoints
from luthier.train.data import StepData
from luthier.train.loop import Plan, Progress, fit, from_json
from luthier.train.memory import Relief, recompute
from luthier.train.optim import MOMENT_BYTES, learning_rate, make_optimizer, update_in_backward
from luthier.train.ranks import Orthogonal, allocator
from luthier.train.shards import shard
from luthier.train.terms import CrossEntropy
from luthier.train.world import ALONE, World
from luthier.trunk import kept_trunk

CURVE_POINTS = 400


def train(
    recipe: Recipe,
    prepared: Path,
    base: Base,
    out: Path,
    report: Reporter | None = None,
    folder: Path = Path(),
    world: World = ALONE,
) -> TrainReport:
    """Train on `prepared`, going on from the newest checkpoint in `out` if there is one.

    Every process of the `world` calls it, with the same files; the first one writes and reports.

    Leaves `out/model` (an adapter, or a whole model), with the best weights by validation nll or the last ones, and
    `out/train.json`. Given adapters are looked for in `folder`. Raises Stopped when training diverges, every checkpoint
    is damaged or none can be written; RunError LU-U046 where the disk is too small for them; ModelError LU-M030 to
    LU-M032 for a given adapter that does not fit.
    """
    report = report if report and world.rank == 0 else Quiet()
    repeatable()
    tokenizer = load_tokenizer(base)
    given = [read_adapter(adapter_in(located(g.path, folder)), base, g.weight) for g in recipe.model.adapters]
    described = [_described(g, folder) for g in recipe.model.adapters]  # now: they may change while it trains
    device, products = pick_device(), multiplied_in(recipe.train.precision)

    def loaded(device: torch.device) -> nn.Module:
        dtype = held_in(recipe.train.precision)
        start = load_model(base, device, dtype, recipe.model.quantize)
        return adapt(add(start, given) if given else start, recipe.model.adapt, base, recipe.seed)

    model = loaded(torch.device("cpu") if world.sharded else device)
    recipe = _with_rate(recipe, model)
    settings = recipe.train
    if recipe.model.quantize:
        report.say(in_few_bits(model))
    decoder = Decoder(model, products)
    data = read_data(recipe, prepared, base, tokenizer, share=decoder.shares, world=world)
    refused = recompute(decoder, settings, data.most_tokens, device)  # before moments of a checkpoint take memory
    if world.sharded:
        _check_can_be_sharded(recipe)
        shard(decoder, device, (products or pick_dtype(device)) if device.type == "cuda" else None)
    parameters = trainable(model)
    how = recipe.model.adapt
    optimizer = make_optimizer(parameters, settings, how.lora_plus_ratio if isinstance(how, Lora) else 1.0)
    if isinstance(how, AdaLora):
        optimizer.register_step_post_hook(allocator(how, parameters, data.n_steps))
    _check_space(parameters, settings, out)
    relief = Relief(decoder, data, report.say)
    if settings.update_in_backward:
        _check_one_micro_batch(data, world)
        update_in_backward(optimizer, decoder.layers()[1].parameters())
    with (
        Checkpoints(out / "checkpoints", parameters, optimizer, report.say, world) as checkpoints,
        keeping_freed_memory(),
        nullcontext(decoder.path) if world.sharded else kept_trunk(decoder, data.homes(), out) as ways,
    ):
        saved = checkpoints.resume()
        progress = from_json(saved) if saved else Progress()
        if saved:
            report.say(f"going on from step {progress.step} of {data.n_steps}")
        together = f"; {world.size} processes, {settings.parallel}" if world.size > 1 else ""
        path = f"{ways}{refused}; in {decoder.precision}{together}"
        report.say(f"forward path: {path}")
        report.say(f"learning rate: {settings.rate:g}")
        plan = make_plan(recipe, data)
        progress = fit(decoder, optimizer, [CrossEntropy()], data, plan, progress, checkpoints, report, relief, world)
        kept = _kept_step(recipe, progress)
        if world.sharded and world.rank == 0:
            model = loaded(torch.device("cpu"))
            checkpoints.load_whole_weights(kept, trainable(model))
        elif not world.sharded:
            checkpoints.load_weights(kept)
    done = _report(recipe, model, data, progress, path + relief.said, described)
    if world.rank == 0:
        with fresh_folder(out / "model") as building:
            save_adapted(model, building, tokenizer)
            if given and is_adapter(building):
                join(building, given)
        done.write(out / "train.json")
    return done


def _with_rate(recipe: Recipe, model: nn.Module) -> Recipe:
    """With the learning rate that suits, where none is given."""
    if recipe.train.learning_rate is not None:
        return recipe
    config: Any = model.config
    config = config.get_text_config()
    rate = suited_rate(recipe.model.adapt, config.hidden_size, config.model_type)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": rate})})


def repeatable() -> None:
    """Let torch compute the same bits each time, where it has two ways."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's products need for it
    torch.use_deterministic_algorithms(True, warn_only=True)
    # By default that also fills every new tensor with NaN before it is written: a tenth of a step, and no bit of it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def read_data(
    recipe: Recipe, prepared: Path, base: Base, tokenizer: object, share: bool, world: World = ALONE
) -> StepData:
    """The training and validation sides, encoded. Raises DataError LU-D070 where one is empty."""
    encoder = Encoder(tokenizer, max_tokens(recipe, base), recipe.model.new_tokens)
    train = read_side(prepared, "train", encoder, left_out(recipe.data.augment))
    settings = recipe.train
    data = StepData(
        examples_of(train, joined=recipe.data.documents == "joined", seed=recipe.seed),
        examples_of(read_side(prepared, "validation", encoder)),
        settings.epochs,
        settings.examples_per_step,
        settings.tokens_per_micro_batch,
        recipe.seed,
        share,
        world.rank,
        world.size,
    )
    for side, n in (("train", data.n_steps), ("validation", len(data.validation))):
        if not n:
            advice = "give more data, or a larger fraction in data.split"
            raise DataError.of("LU-D070", str(prepared), f"the {side} side is empty", advice)
    return data


def _check_space(parameters: dict[str, nn.Parameter], settings: Train, out: Path) -> None:
    """Raises RunError LU-U046 where checkpoints and the model that is made would not fit on the disk."""
    weights = sum(p.nbytes for p in parameters.values())
    moments = MOMENT_BYTES[settings.optimizer] * sum(p.numel() for p in parameters.values())
    n_checkpoints = KEEP_LAST + 2  # the best one, and one that is being written
    needed = n_checkpoints * (weights + moments) + weights
    out.mkdir(parents=True, exist_ok=True)
    there = sum(f.stat().st_size for f in (out / "checkpoints").glob("step-*/*"))
    free = shutil.disk_usage(out).free
    if needed > free + there:
        found = f"checkpoints and model need up to {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free"
        advice = "free space, give another --workspace, or train fewer weights (model.adapt)"
        raise RunError.of("LU-U046", str(out), found, advice)


def _check_can_be_sharded(recipe: Recipe) -> None:
    """Raises RecipeError LU-R018 for what holds or looks at whole matrices."""
    if recipe.model.quantize:
        found = "every process would hold the whole of a quantised base"
        raise RecipeError.of("LU-R018", "train.parallel: fsdp", found, "parallel: ddp, or leave out model.quantize")
    if isinstance(recipe.model.adapt, AdaLora):
        found = "method: adalora weighs the whole of every matrix, and each process holds a part"
        raise RecipeError.of("LU-R018", "train.parallel: fsdp", found, "parallel: ddp, or method: lora")


def _check_one_micro_batch(data: StepData, world: World) -> None:
    """Raises RecipeError LU-R017 where a step has several: their gradients must be summed before they are used."""
    if world.size > 1:
        found = f"each of the {world.size} processes has a part of a gradient, which must be summed before it is used"
        raise RecipeError.of("LU-R017", "train.update_in_backward", found, "one process, or leave it out")
    n, step = data.most_groups()
    if n > 1:
        raise RecipeError.of(
            "LU-R017",
            "train.update_in_backward",
            f"step {step + 1} has {n} micro-batches, whose gradients would have to be kept and summed",
            "fewer train.examples_per_step, or more train.tokens_per_micro_batch with train.recompute_layers",
        )


def make_plan(recipe: Recipe, data: StepData) -> Plan:
    settings = recipe.train
    how = recipe.model.adapt
    return Plan(
        n_steps=data.n_steps,
        learning_rate=lambda fraction: learning_rate(settings, fraction),
        seed=recipe.seed,
        max_grad_norm=settings.max_grad_norm,
        validate_every=max(data.steps_per_epoch // settings.checks_per_epoch, 1),
        patience=settings.early_stopping.patience_checks if settings.early_stopping else None,
        save_every_s=settings.save_every_s,
        max_s=settings.max_minutes * 60 if settings.max_minutes else None,
        in_backward=settings.update_in_backward,
        on_bad_step=settings.on_bad_step,
        spike=settings.spike,
        hooks=(Orthogonal(how.orthogonality),) if isinstance(how, AdaLora) else (),
    )


def _kept_step(recipe: Recipe, progress: Progress) -> int:
    return progress.best_step if recipe.train.keep == "best" else progress.step


def _described(given: GivenAdapter, folder: Path) -> Given:
    return Given(path=given.path, weight=given.weight, sha256=folder_hash(adapter_in(located(given.path, folder))))


def _thinned(curve: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """CURVE_POINTS of it at most, the last among them."""
    every = math.ceil(len(curve) / CURVE_POINTS) or 1
    return tuple(curve[::-1][::every][::-1])


def _report(
    recipe: Recipe, model: nn.Module, data: StepData, progress: Progress, path: str, given: Sequence[Given]
) -> TrainReport:
    train_nll = dict(progress.curve)
    return TrainReport(
        method=recipe.model.adapt.method,
        learning_rate=recipe.train.rate,
        adapters=tuple(given),
        n_trainable=sum(p.numel() for p in trainable(model).values()),
        n_parameters=n_weights(model),
        steps_planned=data.n_steps,
        steps=progress.step,
        stopped=progress.stopped or "",
        best_step=progress.best_step,
        kept_step=_kept_step(recipe, progress),
        n_tokens=progress.n_tokens,
        n_input_tokens=progress.n_input_tokens,
        n_computed_tokens=progress.n_computed_tokens,
        seconds=progress.seconds,
        path=path,
        checks=tuple(
            Check(step=s, nll=nll, train_nll=train_nll.get(s), best=s == progress.best_step)
            for s, nll in progress.checks
        ),
        curve=_thinned(progress.curve),
        bad_steps=tuple(BadStep(step=step, why=why) for step, why in progress.bad),
    )
