"""Traces: what a model computed at every tap point, in memory or in a file.

    trace = gr.trace(model, tokens)
    trace["block.0.attn.q"]                      # (T, H, C)
    trace.save("run.trace"); Trace.load("run.trace")

The names and axes of the tap points are in :mod:`gptoss_ref.tracing.taps`. Both backends show all
of them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gptoss_ref
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import ConfigError, TraceError
from gptoss_ref.losses import IGNORED
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array, bfloat16_to_float, float_to_bfloat16
from gptoss_ref.tracing import gradients
from gptoss_ref.tracing.file import (
    FORMAT,
    Slot,
    TraceWriter,
    check_suffix,
    create,
    file_dtype,
    read,
    text_of,
)
from gptoss_ref.tracing.npz import save_npz
from gptoss_ref.tracing.taps import (
    AFTER,
    STAGES,
    TAPS,
    axes,
    check_name,
    check_shape,
    expected_shape,
    gradient_names,
    matching,
    names,
    nearest,
    select,
    split,
)

__all__ = [
    "ROUNDINGS",
    "TAPS",
    "Skipped",
    "Trace",
    "axes",
    "expected_shape",
    "file_size",
    "names",
    "rounding_of",
    "split",
    "trace",
]

ROUNDINGS = ("float64", "float32", "bfloat16", "float16")
"""The roundings that a producer's numbers may show, finest first."""

CHUNK_VALUES = 1 << 27
"""Values of the largest tap computed at a time when a trace goes to a file: 512 MiB of float32."""


class MissingTap(TraceError, KeyError):
    """A trace does not hold this tap point."""

    __str__ = ValueError.__str__


@dataclass(frozen=True)
class Skipped:
    """An array that has no place in a trace.

    Attributes:
        name: what its producer calls it.
        shape: of the array; empty if it is none.
        why: it was left out, in words.
    """

    name: str
    shape: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        return f"{self.name} {self.shape}: {self.why}"


class Trace(Mapping[str, Array]):
    """Arrays by tap point, in order of computation, with the tokens and the model they belong to.

    Reading an array of a trace that came from a file reads it from the file; bfloat16 is widened to
    float32 then.

    Args:
        arrays: some or all of the tap points, in the shapes of
            :data:`gptoss_ref.tracing.taps.TAPS`; float16, float32 or float64, or uint16 for
            bfloat16 bits; expert indices are integers.
        tokens: (T,), the whole prompt, which starts at position 0.
        config: of the model.
        producer: who computed this, in words.
        policy: this package's numeric policy, if it was one.
        dtype: the rounding of the producer, one of ROUNDINGS; None infers it from the numbers.
        targets: (T,) of a trace with gradients (see :mod:`gptoss_ref.tracing.gradients`): the id
            that each position should predict, −100 where it does not count.
        router_aux_loss_coef: of the load-balancing loss that the gradients include.
        observed: by tap point, a mask (T,) of the rows that the producer showed, for tap points of
            which it showed some only; the other rows of the array are ignored.
        skipped: what else the producer showed, which has no place here.

    Raises:
        TraceError: unknown names, shapes or dtypes that do not fit, tokens out of range; each with
            what would have fitted.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        *,
        tokens: Iterable[int] | Array,
        config: ModelConfig,
        producer: str = "unknown",
        policy: str | None = None,
        dtype: str | None = None,
        targets: Iterable[int] | Array | None = None,
        router_aux_loss_coef: float = 0.0,
        observed: Mapping[str, Array] | None = None,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.config = config
        self.tokens = _checked_tokens(tokens, config)
        self.producer = producer
        self.policy = policy
        for known in (dtype, policy):
            if known is not None and known not in ROUNDINGS:
                expected = ", ".join(ROUNDINGS)
                raise TraceError(f"unknown rounding {known!r}: expected one of {expected}")
        self._dtype = dtype or policy
        self.model: Model | None = None  # that made it, if that was just now
        self.targets = None if targets is None else _checked_targets(targets, self)
        self.router_aux_loss_coef = router_aux_loss_coef
        for name in arrays:
            _check_name(name, config)
        self._arrays = {
            name: _checked(name, np.asarray(arrays[name]), config, len(self.tokens))
            for name in (*names(config), *gradients.names(config))
            if name in arrays
        }
        self.skipped = tuple(skipped)
        self._observed = {
            name: _checked_rows(name, rows, len(self.tokens))
            for name, rows in (observed or {}).items()
            if name in self._arrays
        }

    def __getitem__(self, name: str) -> Array:
        if name not in self._arrays:
            _check_name(name, self.config)
            raise MissingTap(f"this trace does not hold {name!r}")
        values = self._arrays[name]
        return bfloat16_to_float(values) if values.dtype == np.uint16 else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __repr__(self) -> str:
        return f"Trace({len(self)} taps, {len(self.tokens)} tokens, {self.producer})"

    def dtype_of(self, name: str) -> str:
        """What one array is stored as: float64, float32, bfloat16, float16 or int64."""
        dtype = self._arrays[name].dtype
        return "bfloat16" if dtype == np.uint16 else dtype.name

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of one array, without reading it."""
        return self._arrays[name].shape

    def rows(self, name: str, rows: slice, axis: int = 0) -> Array:
        """Entries ``rows`` of one array along ``axis``, other axes whole; the rest stays unread."""
        values = self._arrays[name][(slice(None),) * axis + (rows,)]
        return bfloat16_to_float(values) if values.dtype == np.uint16 else values

    def without(self, taps: Iterable[str]) -> Trace:
        """The same trace, but for some tap points; arrays are shared."""
        left_out = frozenset(taps)
        return self._of({k: v for k, v in self._arrays.items() if k not in left_out})

    def replaced(self, tap: str, values: Array) -> Trace:
        """The same trace with another array at one of its tap points."""
        values = _checked(tap, np.asarray(values), self.config, len(self.tokens))
        return self._of({**self._arrays, tap: values})

    def _of(self, arrays: dict[str, Array]) -> Trace:
        """A copy with other arrays; nothing that was inferred from the old ones is kept."""
        other = copy.copy(self)
        other._arrays = arrays
        for name, kind in vars(Trace).items():
            if isinstance(kind, cached_property):
                other.__dict__.pop(name, None)
        return other

    @property
    def gradients(self) -> tuple[str, ...]:
        """The names of the gradients that the trace holds."""
        return tuple(name for name in self if gradients.is_gradient(name))

    def forward(self) -> Trace:
        """The same trace without its gradients."""
        fewer = self.without(self.gradients)
        fewer.targets = None
        return fewer

    def observed(self, name: str) -> NDArray[np.bool_]:
        """(T,) the rows of one array that its producer showed.

        All, unless it was said otherwise, or a row is NaN at every tap point of the trace.
        """
        return self._observed.get(name, self._never_nan)

    @cached_property
    def observed_in_part(self) -> frozenset[str]:
        """The tap points of which some rows were not observed."""
        return frozenset(name for name in self if not self.observed(name).all())

    @cached_property
    def _never_nan(self) -> NDArray[np.bool_]:
        """(T,) rows that hold a number at some tap point; all, if there is no such row."""
        empty = np.ones(len(self.tokens), bool)
        for name, values in self._arrays.items():
            if gradients.is_gradient(name) or (
                values.dtype.kind in "iu" and values.dtype != np.uint16
            ):
                continue
            axis = axes(name).index("T")
            for row in np.flatnonzero(empty):
                rows = self.rows(name, slice(int(row), int(row) + 1), axis)
                empty[row] = np.isnan(rows).all()
            if not empty.any():
                break
        return np.ones_like(empty) if empty.all() else ~empty

    @property
    def metadata(self) -> dict[str, str]:
        """What a file says of the trace: producer, policy, dtype; as JSON config, tokens, ...

        ... rows observed by tap point if not all were, and what was skipped, if anything.
        """
        known = {"producer": self.producer, "policy": self.policy, "dtype": self._dtype}
        if self.targets is not None:
            known["targets"] = text_of(self.targets)
        if self.router_aux_loss_coef:
            known["router_aux_loss_coef"] = repr(self.router_aux_loss_coef)
        if self._observed:
            rows = {n: np.flatnonzero(seen).tolist() for n, seen in self._observed.items()}
            known["observed"] = json.dumps(rows, separators=(",", ":"))
        if self.skipped:
            known["skipped"] = json.dumps([asdict(skipped) for skipped in self.skipped])
        return {
            **{key: value for key, value in known.items() if value is not None},
            "config": json.dumps(self.config.to_json(), separators=(",", ":")),
            "tokens": text_of(self.tokens),
        }

    @cached_property
    def dtype_name(self) -> str | None:
        """The rounding that the producer's numbers show, one of ROUNDINGS.

        As stated, else the coarsest grid on which all values of some computed tap lie. None if
        there is nothing to tell it by.
        """
        if self._dtype is not None:
            return self._dtype
        forward = (name for name in self if not gradients.is_gradient(name))
        telling = [name for name in forward if split(name)[1] in _TELLING] or self.gradients
        found = [rounding_of(self, name) for name in telling]
        return max((grid for grid in found if grid), key=ROUNDINGS.index, default=None)

    def save(self, path: str | Path) -> None:
        """Write a trace file; one that is already there is replaced once this one is whole.

        Lossless; float32 arrays of a bfloat16 producer are stored in half the space if they can be.
        A name that ends in ``.npz`` makes it a file for ``numpy.load``, with float32 for
        bfloat16.

        Raises:
            TraceError: the file cannot be written.
        """
        check_suffix(Path(path))
        if Path(path).suffix == ".npz":
            metadata = {"format": FORMAT, **self.metadata}
            save_npz(Path(path), {"tokens": self.tokens, **self}, metadata)
            return
        stored = {name: _compact(values, self._dtype) for name, values in self._arrays.items()}
        slots = {
            name: Slot(file_dtype(values.dtype), values.shape) for name, values in stored.items()
        }
        with create(Path(path), slots, self.metadata) as writer:
            for name, values in stored.items():
                writer.write(name, values)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """A trace of a file, whose arrays are read when used.

        Raises:
            TraceError: the file is absent, damaged, no trace, or contradicts itself.
        """
        arrays, metadata = read(Path(path))
        missing = [key for key in ("producer", "config", "tokens") if key not in metadata]
        if missing:
            raise TraceError(f"{path}: the metadata lacks {', '.join(missing)}")
        try:
            arrays.pop("tokens", None)  # of an .npz; the metadata has them too
            config = ModelConfig.from_json(json.loads(metadata["config"]))
            tokens = json.loads(metadata["tokens"])
            return cls(
                arrays,
                tokens=tokens,
                config=config,
                producer=metadata["producer"],
                policy=metadata.get("policy"),
                dtype=metadata.get("dtype"),
                targets=json.loads(metadata.get("targets", "null")),
                router_aux_loss_coef=float(metadata.get("router_aux_loss_coef", 0)),
                observed=_masks(metadata.get("observed", "{}"), len(tokens)),
                skipped=[
                    Skipped(entry["name"], tuple(entry["shape"]), entry["why"])
                    for entry in json.loads(metadata.get("skipped", "[]"))
                ],
            )
        except (TraceError, ConfigError) as error:
            raise TraceError(f"{path}: {error}") from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            message = f"{path}: its metadata (config, tokens) is not JSON as expected: {error}"
            raise TraceError(message) from None


def trace(
    model: Model,
    tokens: Iterable[int] | Array,
    *,
    taps: str | Iterable[str] = "*",
    path: str | Path | None = None,
    targets: Iterable[int] | Array | None = None,
    router_aux_loss_coef: float = 0.0,
) -> Trace:
    """Run ``model`` on ``tokens`` (T,), from position 0, and keep what the tap points see.

    With a path, each array goes to the file as soon as it is there, and a prompt too long to be
    computed at once goes through the model in chunks: the trace is never whole in memory. Chunks
    round like any other order of summation.

    Args:
        taps: shell patterns of the tap points to keep, one or several; see
            :func:`gptoss_ref.tracing.taps.select`.
        path: a file to write; the result then reads from it. An ``.npz`` is written at the end.
        targets: (T,), the id that each position should predict, −100 where it does not count: then
            the trace also holds gradients, under ``grad.`` and ``grad.weights.`` names that the
            patterns choose like tap points; see :mod:`gptoss_ref.tracing.gradients`.
        router_aux_loss_coef: see :func:`gptoss_ref.backward`.

    Raises:
        TokenError: no tokens, an id out of range, or more than the context holds.
        TraceError: a pattern matches nothing, or the file cannot be written.
        GptOssError: what :func:`gptoss_ref.backward` raises for such targets.
    """
    if targets is not None:
        wanted = np.asarray(targets if isinstance(targets, np.ndarray) else list(targets))
        return _with_gradients(model, tokens, taps, path, wanted, router_aux_loss_coef)
    chosen = select(taps, model.config)
    ids = model.checked(tokens, 0)
    if path is not None:
        check_suffix(Path(path))
        if Path(path).suffix == ".npz":
            whole = trace(model, ids, taps=taps)
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
        model(ids, tap=_Keep(kept, chosen, model.policy.name))
        result = Trace(kept, **about)
        result.model = model
        return result
    slots = _slots(model, chosen, len(ids))
    with create(Path(path), slots, Trace({}, **about).metadata) as writer:
        rows = _rows_at_once(chosen, model.config, len(ids))
        cache = None if rows >= len(ids) else model.new_cache()
        for start in range(0, len(ids), rows):
            model(ids[start : start + rows], cache, tap=_Write(writer, set(chosen), start))
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
) -> Trace:
    """A trace of the forward and the backward pass, made in memory."""
    from gptoss_ref.backpropagation import backward

    known = [*names(model.config), *gradients.names(model.config)]
    chosen = matching(patterns, known, "tap point or gradient")
    ids = model.checked(tokens, 0)
    kept: dict[str, Array] = {}
    keep = _Keep(kept, chosen, model.policy.name)
    model(ids, tap=keep)
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
    """Bytes of the arrays of a trace of ``length`` tokens, before it is made.

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
            self.kept[name] = _compact(np.array(values), self.policy)


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


def _rows_at_once(chosen: Iterable[str], config: ModelConfig, length: int) -> int:
    """Tokens to compute at a time so that the largest array stays below CHUNK_VALUES values."""
    widest = max(
        int(np.prod(expected_shape(name, config, length))) // length for name in (*chosen, "logits")
    )
    return max(1, CHUNK_VALUES // widest)


def _compact(values: Array, rounding: str | None) -> Array:
    """float32 values of a bfloat16 producer as bits, if that loses nothing; others as they are."""
    if rounding != "bfloat16" or values.dtype != np.float32:
        return values
    bits = float_to_bfloat16(values)
    # compared as bits: a zero's sign counts, and a NaN equals itself
    same = np.array_equal(bits.astype(np.uint32) << 16, values.view(np.uint32))
    return bits if same else values


_TELLING = {*STAGES, *AFTER} - {"mlp.expert_indices", "mlp.expert_weights", "attn.weights"}
"""Stages whose numbers show a rounding: an embedding lies on its weights' own grid."""


def rounding_of(source: Trace, name: str) -> str | None:
    """The coarsest of ROUNDINGS on which all values of one array lie; None if too few tell."""
    stored = source.dtype_of(name)
    if stored == "bfloat16":
        return stored
    values = source.rows(name, slice(0, 64)).ravel()
    values = values[np.isfinite(values) & (values != 0)]
    if len(np.unique(values[:4096])) < 16:
        return stored if stored == "float16" else None
    if values.dtype == np.float64 and not np.array_equal(values.astype(np.float32), values):
        return "float64"
    single = values.astype(np.float32)
    if not (single.view(np.uint32) & 0xFFFF).any():
        return "bfloat16"
    with np.errstate(over="ignore"):
        half = single.astype(np.float16)
    return "float16" if np.array_equal(half, single) else "float32"


def _checked_tokens(tokens: Iterable[int] | Array, config: ModelConfig) -> NDArray[np.int64]:
    ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise TraceError(
            f"tokens have shape {ids.shape} and dtype {ids.dtype}: expected one row of integers"
        )
    wrong = ids[(ids < 0) | (ids >= config.vocab_size)]
    if wrong.size:
        raise TraceError(f"token {wrong[0]} is out of range: expected 0 to {config.vocab_size - 1}")
    return ids.astype(np.int64)


def _checked_targets(targets: Iterable[int] | Array, trace: Trace) -> NDArray[np.int64]:
    ids = np.asarray(targets if isinstance(targets, np.ndarray) else list(targets))
    if ids.shape != trace.tokens.shape or ids.dtype.kind not in "iu":
        raise TraceError(
            f"targets have shape {ids.shape} and dtype {ids.dtype}: expected integers of shape "
            f"{trace.tokens.shape}, one for each token"
        )
    size = trace.config.vocab_size
    wrong = ids[(ids != IGNORED) & ((ids < 0) | (ids >= size))]
    if wrong.size:
        raise TraceError(
            f"target {wrong[0]} is out of range: expected 0 to {size - 1}, or {IGNORED}"
        )
    return ids.astype(np.int64)


def _check_name(name: str, config: ModelConfig) -> None:
    """Raises TraceError unless a trace of this model may hold an array of that name."""
    if gradients.is_gradient(name):
        if name not in (known := gradients.names(config)):
            raise TraceError(f"unknown gradient {name!r}{nearest(name, known)}")
    else:
        check_name(name, config)


def _masks(text: str, length: int) -> dict[str, NDArray[np.bool_]]:
    """Masks (T,) out of JSON lists of rows by tap point; ValueError, TypeError or IndexError."""
    masks = {}
    for name, rows in json.loads(text).items():
        masks[name] = np.zeros(length, bool)
        masks[name][np.asarray(rows, np.int64)] = True
    return masks


def _checked_rows(name: str, rows: Array, length: int) -> NDArray[np.bool_]:
    """The mask (T,) of a tap point's observed rows, or a TraceError."""
    mask = np.asarray(rows)
    if mask.shape != (length,) or mask.dtype != np.bool_ or not mask.any():
        raise TraceError(
            f"the rows observed of {name} are {mask.dtype} {mask.shape}: expected a mask "
            f"({length},) with at least one of them"
        )
    return mask


def _checked(name: str, values: Array, config: ModelConfig, length: int) -> Array:
    """One array as a trace keeps it, or a TraceError."""
    if not gradients.is_gradient(name):
        check_shape(name, values.shape, config, length)
    elif values.shape != (expected := gradients.expected_shape(name, config, length)):
        letters = ", ".join(gradients.axes(name))
        raise TraceError(f"{name} has shape {values.shape}: expected ({letters}) = {expected}")
    if name.endswith("expert_indices"):
        if values.dtype.kind not in "iu":
            raise TraceError(f"{name} has dtype {values.dtype}: expected integers")
        wrong = values[(values < 0) | (values >= config.num_experts)]
        if wrong.size:
            raise TraceError(
                f"{name} names expert {wrong[0]}: expected 0 to {config.num_experts - 1}"
            )
        return values.astype(np.int64, copy=False)
    if values.dtype.name == "bfloat16":  # of ml_dtypes
        return values.view(np.uint16)
    if values.dtype != np.uint16 and values.dtype.name not in ("float16", "float32", "float64"):
        raise TraceError(
            f"{name} has dtype {values.dtype}: expected float16, float32, float64, "
            "or uint16 for bfloat16 bits"
        )
    return values
