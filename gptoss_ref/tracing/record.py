"""Recording: run a forward pass, or a forward and a backward pass, and keep it as a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import gptoss_ref
from gptoss_ref.config import ModelConfig
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array, float_to_bfloat16
from gptoss_ref.tracing import gradients
from gptoss_ref.tracing.file import Slot, TraceWriter, check_suffix, create, file_dtype
from gptoss_ref.tracing.rounding import compact
from gptoss_ref.tracing.taps import axes, expected_shape, gradient_names, matching, names, select
from gptoss_ref.tracing.trace import Trace

CHUNK_VALUES = 1 << 27
"""Values of the largest tap computed at a time when a trace goes to a file: 512 MiB of float32."""


def trace(
    model: Model,
    tokens: Iterable[int] | Array,
    *,
    taps: str | Iterable[str] = "*",
    path: str | Path | None = None,
    targets: Iterable[int] | Array | None = None,
    router_aux_loss_coef: float = 0.0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Trace:
    """Run ``model`` on ``tokens`` (T,), from position 0, and keep the arrays of its tap points.

    With a path, each array is written as soon as it is computed, and a long prompt goes through the
    model in chunks, so the trace is never whole in memory. Chunks change the order of summation,
    and with it the rounding.

    Args:
        taps: shell patterns of the tap points to keep, one or several; see
            :func:`gptoss_ref.tracing.taps.select`.
        path: a file to write; the returned trace reads from it. An ``.npz`` is written at the end.
        targets: (T,), the id that each position should predict, −100 for positions without a loss.
            With targets the trace also holds gradients, named ``grad.…`` and ``grad.weights.…``;
            the patterns select them like tap points (see :mod:`gptoss_ref.tracing.gradients`).
        router_aux_loss_coef: see :func:`gptoss_ref.backward`.
        progress: called after each block of the forward pass with the blocks done, the blocks in
            all, and the name of the block's last tap point.

    Raises:
        TokenError: no tokens, an id out of range, or more than the context holds.
        TraceError: a pattern matches nothing, or the file cannot be written.
        GptOssError: :func:`gptoss_ref.backward` refuses the targets.
    """
    if targets is not None:
        wanted = np.asarray(targets if isinstance(targets, np.ndarray) else list(targets))
        return _with_gradients(model, tokens, taps, path, wanted, router_aux_loss_coef, progress)
    chosen = select(taps, model.config)
    ids = model.checked(tokens, 0)
    if path is not None:
        check_suffix(Path(path))
        if Path(path).suffix == ".npz":
            whole = trace(model, ids, taps=taps, progress=progress)
            whole.save(path)
            return whole
    about: dict[str, Any] = {
        "tokens": ids,
        "config": model.config,
        "producer": f"gptoss_ref {gptoss_ref.__version__} {model.backend.name}",
        "policy": model.policy.name,
    }
    if path is None:
        kept: dict[str, Array] = {}
        blocks = _Blocks(model.config.num_hidden_layers, progress)
        model(ids, tap=_Watched(_Keep(kept, chosen, model.policy.name), blocks))
        result = Trace(kept, **about)
        result.model = model
        return result
    slots = _slots(model, chosen, len(ids))
    with create(Path(path), slots, Trace({}, **about).metadata) as writer:
        rows = _rows_at_once(chosen, model.config, len(ids))
        cache = None if rows >= len(ids) else model.new_cache()
        starts = range(0, len(ids), rows)
        blocks = _Blocks(len(starts) * model.config.num_hidden_layers, progress)
        for start in starts:
            tap = _Watched(_Write(writer, set(chosen), start), blocks)
            model(ids[start : start + rows], cache, tap=tap)
    result = Trace.load(path)
    result.model = model
    return result


def _with_gradients(
    model: Model,
    tokens: Iterable[int] | Array,
    patterns: str | Iterable[str],
    path: str | Path | None,
    targets: Array,
    router_aux_loss_coef: float,
    progress: Callable[[int, int, str], None] | None,
) -> Trace:
    """A trace of the forward and the backward pass, made in memory."""
    from gptoss_ref.backpropagation import backward

    known = [*names(model.config), *gradients.names(model.config)]
    chosen = matching(patterns, known, "tap point or gradient")
    ids = model.checked(tokens, 0)
    kept: dict[str, Array] = {}
    keep = _Keep(kept, chosen, model.policy.name)
    model(ids, tap=_Watched(keep, _Blocks(model.config.num_hidden_layers, progress)))
    wanted = set(chosen)
    found = backward(
        model,
        ids,
        targets,
        wrt=[n for n in model.weights.named() if gradients.WEIGHTS + n in wanted],
        taps=[n for n in gradient_names(model.config) if gradients.PREFIX + n in wanted],
        router_aux_loss_coef=router_aux_loss_coef,
    )
    for prefix, arrays in ((gradients.PREFIX, found.taps), (gradients.WEIGHTS, found.weights)):
        for name, d in arrays.items():
            keep(prefix + name, d)
    result = Trace(
        kept,
        tokens=ids,
        config=model.config,
        producer=f"gptoss_ref {gptoss_ref.__version__} {model.backend.name}",
        policy=model.policy.name,
        targets=targets,
        router_aux_loss_coef=router_aux_loss_coef,
    )
    if path is not None:
        result.save(path)
        result = Trace.load(path)
    result.model = model
    return result


def file_size(model: Model, length: int, taps: str | Iterable[str] = "*") -> int:
    """Bytes that the arrays of a trace of ``length`` tokens will take.

    Raises:
        TraceError: a pattern matches nothing.
    """
    return sum(slot.nbytes for slot in _slots(model, select(taps, model.config), length).values())


def _slots(model: Model, chosen: Iterable[str], length: int) -> dict[str, Slot]:
    float_dtype = "BF16" if model.policy.name == "bfloat16" else file_dtype(model.policy.dtype)
    return {
        name: Slot(
            "I64" if name.endswith("expert_indices") else float_dtype,
            expected_shape(name, model.config, length),
        )
        for name in chosen
    }


class _Keep:
    """A tap that keeps copies of the chosen arrays, bfloat16 ones as bits."""

    def __init__(self, kept: dict[str, Array], chosen: Iterable[str], policy: str) -> None:
        self.kept, self.chosen, self.policy = kept, set(chosen), policy

    def wants(self, name: str) -> bool:
        return name in self.chosen

    def __call__(self, name: str, values: Array) -> None:
        if name in self.chosen:
            self.kept[name] = compact(np.array(values), self.policy)


class _Write:
    """A tap that writes the chosen arrays' rows from ``start`` on."""

    def __init__(self, writer: TraceWriter, chosen: set[str], start: int) -> None:
        self.writer, self.chosen, self.start = writer, chosen, start

    def wants(self, name: str) -> bool:
        return name in self.chosen

    def __call__(self, name: str, values: Array) -> None:
        if name in self.chosen:
            if self.writer.slots[name].dtype == "BF16":
                values = float_to_bfloat16(values)
            self.writer.write(name, values, self.start, axis=axes(name).index("T"))


class _Blocks:
    """Counts the blocks that a pass has computed."""

    def __init__(self, total: int, progress: Callable[[int, int, str], None] | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def ends(self, name: str) -> bool:
        """Whether progress is reported, and a block ends with this tap point."""
        return self.progress is not None and name.endswith("mlp.residual")

    def end(self, name: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, name)


class _Watched:
    """Another tap that is told the blocks as well."""

    def __init__(self, tap: _Keep | _Write, blocks: _Blocks) -> None:
        self.tap, self.blocks = tap, blocks

    def wants(self, name: str) -> bool:
        return self.blocks.ends(name) or self.tap.wants(name)

    def __call__(self, name: str, values: Array) -> None:
        self.tap(name, values)
        if self.blocks.ends(name):
            self.blocks.end(name)


def _rows_at_once(chosen: Iterable[str], config: ModelConfig, length: int) -> int:
    """Tokens to compute at a time so that the largest array stays below CHUNK_VALUES values."""
    widest = max(
        int(np.prod(expected_shape(name, config, length))) // length for name in (*chosen, "logits")
    )
    return max(1, CHUNK_VALUES // widest)
