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

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import ConfigError, TraceError
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array, bfloat16_to_float
from gptoss_ref.tracing import gradients
from gptoss_ref.tracing.checks import (
    check_array_name,
    checked,
    checked_rows,
    checked_targets,
    checked_tokens,
    masks,
)
from gptoss_ref.tracing.file import (
    FORMAT,
    Slot,
    check_suffix,
    create,
    file_dtype,
    read,
    text_of,
)
from gptoss_ref.tracing.npz import save_npz
from gptoss_ref.tracing.rounding import ROUNDINGS, TELLING, compact, rounding_of
from gptoss_ref.tracing.taps import (
    axes,
    names,
    split,
)


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
        self.tokens = checked_tokens(tokens, config)
        self.producer = producer
        self.policy = policy
        for known in (dtype, policy):
            if known is not None and known not in ROUNDINGS:
                expected = ", ".join(ROUNDINGS)
                raise TraceError(f"unknown rounding {known!r}: expected one of {expected}")
        self._dtype = dtype or policy
        self.model: Model | None = None  # that made it, if that was just now
        self.targets = None if targets is None else checked_targets(targets, self.tokens, config)
        self.router_aux_loss_coef = router_aux_loss_coef
        for name in arrays:
            check_array_name(name, config)
        self._arrays = {
            name: checked(name, np.asarray(arrays[name]), config, len(self.tokens))
            for name in (*names(config), *gradients.names(config))
            if name in arrays
        }
        self._grids: dict[str, tuple[Array, str | None]] = {}
        self.skipped = tuple(skipped)
        self._observed = {
            name: checked_rows(name, rows, len(self.tokens))
            for name, rows in (observed or {}).items()
            if name in self._arrays
        }

    def __getitem__(self, name: str) -> Array:
        if name not in self._arrays:
            check_array_name(name, self.config)
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

    def replaced(self, tap: str, values: Array, *, grid: str | None = None) -> Trace:
        """The same trace with another array at one of its tap points.

        Args:
            grid: the rounding of the values, where they do not show it any more; see :meth:`grid`.
        """
        values = checked(tap, np.asarray(values), self.config, len(self.tokens))
        other = self._of({**self._arrays, tap: values})
        if grid is not None:
            other._grids = {**self._grids, tap: (values, grid)}
        return other

    def stored(self, name: str) -> Array:
        """One array as the trace holds it, bfloat16 as bits; of a file, not yet read."""
        return self._arrays[name]

    def showing(self, tap: str, rows: NDArray[np.bool_]) -> Trace:
        """The same trace, of which some rows (T,) of one tap point only were observed."""
        other = self._of(self._arrays)
        other._observed = {**self._observed, tap: self.observed(tap) & rows}
        return other

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

        As stated, else the coarsest grid on which a quarter of the computed taps lie: what fewer
        show was rounded when it was recorded. None if there is nothing to tell it by.
        """
        if self._dtype is not None:
            return self._dtype
        forward = (name for name in self if not gradients.is_gradient(name))
        telling = [name for name in forward if split(name)[1] in TELLING] or self.gradients
        grids = [grid for name in telling if (grid := self.grid(name)) is not None]
        coarse = sorted(grids, key=ROUNDINGS.index, reverse=True)
        return coarse[(len(coarse) - 1) // 4] if coarse else None

    def grid(self, name: str) -> str | None:
        """The coarsest rounding, one of ROUNDINGS, that all values of one array show.

        None if there are too few of them to tell.
        """
        values = self._arrays[name]
        known = self._grids.get(name)
        if known is None or known[0] is not values:
            known = self._grids[name] = values, rounding_of(self, name)
        return known[1]

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
        stored = {name: compact(values, self._dtype) for name, values in self._arrays.items()}
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
                observed=masks(metadata.get("observed", "{}"), len(tokens)),
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
