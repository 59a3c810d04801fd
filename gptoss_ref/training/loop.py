"""The training loop, whose runs can be saved and resumed.

    for each step:  batch → loss and gradients → clip → AdamW at the schedule's rate

The forward and the backward pass run on the backend of the model, kernels or NumPy.
The loss of a step is the mean over all targets of its batch, for any number of parts: the mean of
each part is weighted by its share of the targets. (The plain average of the parts' means gives
targets in short examples more weight, a known bug of gradient accumulation: transformers#34191.)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_ref.backpropagation import backward
from gptoss_ref.checkpoint.adapter import Adapter
from gptoss_ref.checkpoint.locate import TINY, locate
from gptoss_ref.checkpoint.peft import CONFIG, TENSORS, write_adapter
from gptoss_ref.errors import GptOssError
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array
from gptoss_ref.training.adamw import Moments
from gptoss_ref.training.checks import check_examples
from gptoss_ref.training.clipping import clip
from gptoss_ref.training.data import Example
from gptoss_ref.training.evaluation import evaluate
from gptoss_ref.training.parameters import Parameters
from gptoss_ref.training.recipe import Recipe
from gptoss_ref.training.state import STATE, State, identity, read_state, write_state
from gptoss_ref.weights import MXFP4

Report = Callable[[dict[str, Any], int], None]
"""Called with each record of the history and the total number of steps."""


@dataclass(frozen=True)
class Run:
    """The result of a training run.

    Attributes:
        model: the trained model.
        adapter: the trained change, to save or to apply to another copy of the model.
        history: ``{"step", "loss", "rate", "norm", "targets"}`` for each step: its loss before the
            update, its learning rate, the norm of the gradients before clipping, and its number of
            targets; ``{"step", "held_out_loss", "held_out_right", "held_out_targets"}`` for each
            evaluation, where ``step`` is the number of steps done.
        parameters: number of trained values.
        seconds: duration of this call.
    """

    model: Model
    adapter: Adapter
    history: list[dict[str, Any]]
    parameters: int
    seconds: float


def train(
    model: Model,
    data: Sequence[Example],
    recipe: Recipe | None = None,
    *,
    held_out: Sequence[Example] = (),
    out: str | Path | None = None,
    resume: bool = False,
    base: str = "",
    report: Report | None = None,
) -> Run:
    """Train low-rank factors or whole weights of ``model`` on ``data``; ``model`` is not changed.

    An interrupted and resumed run gives the same result, bit for bit, on the same machine with the
    same number of threads.

    Args:
        model: with the policy float32 or float64. Under bfloat16 the forward pass, the gradients
            and the moments are rounded. Load it with ``backend="numba"`` to train with the kernels:
            "auto" may choose NumPy for a small model, and a resumed run needs the same backend.
        data: examples; :func:`gptoss_ref.training.read_jsonl` reads them from a file.
        recipe: the settings; None: the defaults.
        held_out: examples to evaluate on, before, during and after the run.
        out: a folder for the adapter, in PEFT's files, and for the state of the run; it is created
            if necessary. None: nothing is written.
        resume: continue the run in ``out``.
        base: the model's name in the adapter's file: ``"tiny"``, a folder or a Hub id; empty: the
            folder that the model was loaded from.
        report: called after each step and each evaluation.

    Raises:
        GptOssError: there is no data; the recipe is invalid; the loss or a gradient is not finite
            (the message names the first such tap point); ``out`` cannot be written, has too little
            room, already holds a run, an adapter or a checkpoint, or, to resume, holds no run or
            another one; ``out`` is given without ``base`` for a model whose weights are not those
            of its checkpoint.
        DataError: an example does not fit the model, or nothing of it is learnt.
        KeyboardInterrupt: raised again after the last complete step has been saved.
    """
    began = time.perf_counter()
    recipe = recipe or Recipe()
    data, held_out = list(data), list(held_out)
    if not data:
        raise GptOssError("no data to train on: expected at least one example")
    check_examples([*data, *held_out], model)
    steps = recipe.length(len(data))
    start = Parameters.start(model, recipe.lora, recipe.whole, recipe.seed)
    about = identity(model, data, recipe.to_json())
    base = base or _base(model, saved=out is not None)
    again = resume or recipe.save_every > 0  # a state is written beside a former one
    folder = None if out is None else _folder(Path(out), resume, _room(start, again, resume))
    if resume:
        if folder is None:
            raise GptOssError("nothing to resume: expected out, the folder of the run")
        state = read_state(folder, start.arrays, about)
    else:
        state = State(start.arrays, Moments.zeros(start.arrays), 0, ())

    def save() -> None:
        if folder is not None:
            write_state(folder, state, about)
            adapter = start.with_arrays(state.arrays).adapter(base)
            write_adapter(folder, adapter, model.config)

    def reported(entry: dict[str, Any]) -> None:
        if report is not None:
            report(entry, steps)

    def evaluate_now(held: Model) -> None:
        nonlocal state
        entry = _evaluated(held, state, held_out)
        state = replace(state, history=(*state.history, entry))
        reported(entry)

    begun = state.step
    try:
        while state.step < steps:
            if held_out and _due(state, recipe.evaluate_every):
                evaluate_now(start.with_arrays(state.arrays).applied(model))
            batch = [data[i] for i in recipe.batch(state.step, len(data))]
            arrays, moments, entry = _step(model, start, state, batch, recipe, steps)
            # before it is reported: an interruption must not lose a step that the user has seen
            state = State(arrays, moments, state.step + 1, (*state.history, entry))
            reported(entry)
            if recipe.save_every and state.step % recipe.save_every == 0 and state.step < steps:
                save()
        trained = start.with_arrays(state.arrays)
        final = trained.applied(model)
        if held_out and not _evaluated_at(state, steps):
            evaluate_now(final)
        save()
    except KeyboardInterrupt:
        save()
        raise
    except GptOssError as error:  # the steps before it are not lost
        if folder is None or state.step == begun:
            raise
        save()
        raise type(error)(f"{error}; step {state.step} is saved in {folder}") from None
    seconds = time.perf_counter() - began
    return Run(final, trained.adapter(base), list(state.history), trained.count, seconds)


def _step(
    model: Model,
    start: Parameters,
    state: State,
    batch: Sequence[Example],
    recipe: Recipe,
    steps: int,
) -> tuple[dict[str, Array], Moments, dict[str, Any]]:
    """The arrays and moments after one step, and the step's record."""
    parameters = start.with_arrays(state.arrays)
    now = parameters.applied(model)
    targets = sum(example.count for example in batch)
    loss, sums = 0.0, dict[str, Array]()
    parts = np.array_split(np.arange(len(batch)), min(recipe.accumulation, len(batch)))
    for rows in parts:
        part = [batch[i] for i in rows]
        share = sum(example.count for example in part) / targets
        found = _gradients(now, part, parameters, share, recipe.router_aux_loss_coef, sums, state)
        loss += share * found
    sums = {name: sums[name] for name in parameters.arrays}  # the order of the optimiser's sums
    limit = np.inf if recipe.clip is None else recipe.clip
    clipped, length = clip(sums, limit)
    if not np.isfinite(length):
        raise GptOssError(f"step {state.step + 1}: {_first_gradient(now, batch)}")
    rate = recipe.rate(state.step, steps)
    arrays, moments = recipe.optimizer.step(parameters.arrays, clipped, state.moments, rate)
    entry = {"step": state.step + 1, "loss": loss, "rate": rate, "norm": length, "targets": targets}
    return arrays, moments, entry


def _gradients(
    model: Model,
    part: Sequence[Example],
    parameters: Parameters,
    share: float,
    router_aux_loss_coef: float,
    sums: dict[str, Array],
    state: State,
) -> float:
    """The loss of a part of a batch; adds ``share`` of its gradients to ``sums``."""
    try:
        found = backward(
            model,
            [example.tokens for example in part],
            [example.targets for example in part],
            [example.mask for example in part],
            wrt=parameters.weights,
            router_aux_loss_coef=router_aux_loss_coef,
            on_weight=lambda name, d: parameters.add_gradient(name, d, share, sums),
        )
    except GptOssError as error:
        sources = dict.fromkeys(example.source for example in part)
        where = next(iter(sources)) if len(sources) == 1 else f"a batch of {len(part)} examples"
        raise type(error)(f"step {state.step + 1}, {where}: {error}") from None
    return found.loss


def _first_gradient(model: Model, batch: Sequence[Example]) -> str:
    """The first gradient in the backward pass that is not finite, in words."""
    seen: list[str] = []

    def look(name: str, d: Array) -> None:
        if not seen and not np.isfinite(d).all():
            seen.append(name)

    for example in batch:
        where = (model, example.tokens, example.targets, example.mask)
        with np.errstate(all="ignore"):
            backward(*where, taps="*", on_tap=look, on_weight=look)
        if seen:
            return f"{example.source}: the first gradient that is not finite is grad.{seen[0]}"
    return "the gradients are not finite, although those of each single example are"


def _due(state: State, every: int) -> bool:
    """Whether to evaluate before this step: before the first one, and every ``every`` steps."""
    asked = state.step == 0 or (every > 0 and state.step % every == 0)
    return asked and not _evaluated_at(state, state.step)


def _evaluated_at(state: State, step: int) -> bool:
    return any("held_out_loss" in e and e["step"] == step for e in state.history)


def _evaluated(model: Model, state: State, held_out: Sequence[Example]) -> dict[str, Any]:
    found = evaluate(model, held_out)
    values = {f"held_out_{name}": value for name, value in found._asdict().items()}
    return {"step": state.step, **values}


def _base(model: Model, saved: bool) -> str:
    """The path or name of the model that the adapter belongs to; it must have one to be saved."""
    if model.checkpoint is None:
        return ""
    stored = model.checkpoint.weights.named()
    for name, now in model.weights.named().items():
        same = now.blocks if isinstance(now, MXFP4) else now
        was = stored[name]
        if same is not (was.blocks if isinstance(was, MXFP4) else was):
            if not saved:
                return ""
            raise GptOssError(
                f"{name} of the model differs from its checkpoint, to which the adapter would be "
                "added: write a checkpoint first (gptoss-ref convert merges an adapter), or give "
                "base"
            )
    if model.checkpoint.path == locate(TINY)[0]:
        return TINY
    return str(model.checkpoint.root.resolve())


def _room(start: Parameters, again: bool, resume: bool) -> int:
    """Bytes that the files of a run need, of which ``resume`` has those of a former save."""
    state = 3 * sum(array.nbytes for array in start.arrays.values())  # with both moments
    files = state + 4 * start.count  # the adapter is float32
    return (state if again else 0) + (0 if resume else files)


def _folder(out: Path, resume: bool, needed: int) -> Path:
    """The folder of a run, created if necessary, with room for ``needed`` bytes.

    Raises:
        GptOssError: it holds something else, cannot be written, or has no room.
    """
    if resume and not (out / STATE).is_file():
        return out  # reading the state says so
    if not resume:
        held = {
            STATE: "a run",
            CONFIG: "an adapter",
            TENSORS: "an adapter",
            "config.json": "a model",
        }
        for name, what in held.items():
            if (out / name).exists():
                how = "resume it, or " if name == STATE else ""
                raise GptOssError(f"{out}: already holds {what}: {how}choose another folder")
    try:
        disk = shutil.disk_usage(next(p for p in (out, *out.parents) if p.exists()))
        if disk.total and disk.free < needed:
            raise GptOssError(f"{out}: the run needs {needed} bytes, the disk has {disk.free} free")
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(".*.partial") if resume else ():  # from a run killed during a save
            left.unlink(missing_ok=True)
        probe = out / f".{STATE}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise GptOssError(f"{out}: cannot be written: {error.strerror}") from None
    return out
