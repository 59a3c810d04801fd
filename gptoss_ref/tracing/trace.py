"""Traces: the arrays that a model computed at its tap points, in memory or in a file.

    trace = gr.trace(model, tokens)
    trace["block.0.attn.q"]                      # (T, H, C)
    trace.save("run.trace"); Trace.load("run.trace")

The names and axes of the tap points are in :mod:`gptoss_ref.tracing.taps`. Both backends compute
all of them.
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

from gptoss_ref._files import release
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
from gptoss_ref.tracing.file import FORMAT, Slot, check_suffix, create, file_dtype, read, text_of
from gptoss_ref.tracing.npz import save_npz
from gptoss_ref.tracing.rounding import ROUNDINGS, TELLING, compact, rounding_of
from gptoss_ref.tracing.taps import axes, names, split


class MissingTap(TraceError, KeyError):
    """The trace has no array for this tap point."""

    __str__ = ValueError.__str__


@dataclass(frozen=True)
class Skipped:
    """An array that was left out of a trace.

    Attributes:
        name: the producer's name for it.
        shape: of the array; empty if it is not an array.
        why: the reason, in words.
    """

    name: str
    shape: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        return f"{self.name} {self.shape}: {self.why}"


class Trace(Mapping[str, Array]):
    """A mapping from tap point to array, in order of computation, with the tokens and the config.

    The arrays of a trace file are read when they are used; bfloat16 is then widened to float32.

    Args:
        arrays: some or all of the tap points, in the shapes of
            :data:`gptoss_ref.tracing.taps.TAPS`; float16, float32 or float64, or uint16 for
            bfloat16 bits; expert indices are integers.
        tokens: (T,), the whole prompt, which starts at position 0.
        config: of the model.
        producer: the program that computed the arrays, in words.
        policy: the numeric policy, if this package computed them.
        dtype: the producer's rounding, one of ROUNDINGS; None infers it from the values.
        targets: (T,), for a trace with gradients (see :mod:`gptoss_ref.tracing.gradients`): the id
            that each position should predict, −100 for positions without a loss.
        router_aux_loss_coef: coefficient of the load-balancing loss in the gradients.
        observed: for tap points with missing rows, a mask (T,) of the rows that the producer gave;
            the other rows of the array are ignored.
        skipped: arrays of the producer that fit no tap point.

    Raises:
        TraceError: a name is unknown, a shape or dtype is wrong, or a token is out of range; the
            message says what was expected.
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
        self.model: Model | None = None  # the model that computed it, unless it is from a file
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
            raise MissingTap(f"this trace has no tap point {name!r}")
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
        """The stored dtype of one array: float64, float32, bfloat16, float16 or int64."""
        dtype = self._arrays[name].dtype
        return "bfloat16" if dtype == np.uint16 else dtype.name

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of one array, without reading it."""
        return self._arrays[name].shape

    def rows(self, name: str, rows: slice, axis: int = 0) -> Array:
        """The slice ``rows`` of one array along ``axis``; no more than that is read."""
        values = self._arrays[name][(slice(None),) * axis + (rows,)]
        return bfloat16_to_float(values) if values.dtype == np.uint16 else values

    def without(self, taps: Iterable[str]) -> Trace:
        """The same trace without some tap points; the arrays are shared."""
        left_out = frozenset(taps)
        return self._of({k: v for k, v in self._arrays.items() if k not in left_out})

    def replaced(self, tap: str, values: Array, *, grid: str | None = None) -> Trace:
        """The same trace with ``values`` as the array of ``tap``.

        Args:
            grid: the rounding of the values, if they no longer show it; see :meth:`grid`.
        """
        values = checked(tap, np.asarray(values), self.config, len(self.tokens))
        other = self._of({**self._arrays, tap: values})
        if grid is not None:
            other._grids = {**self._grids, tap: (values, grid)}
        return other

    def stored(self, name: str) -> Array:
        """One array as it is stored, bfloat16 as bits; an array of a file is not read yet."""
        return self._arrays[name]

    def release(self) -> None:
        """Let the system drop the pages of a trace file; arrays that are used are read again."""
        release(self._arrays.values())

    def showing(self, tap: str, rows: NDArray[np.bool_]) -> Trace:
        """The same trace, in which only the ``rows`` (T,) of ``tap`` count as observed."""
        other = self._of(self._arrays)
        other._observed = {**self._observed, tap: self.observed(tap) & rows}
        return other

    def _of(self, arrays: dict[str, Array]) -> Trace:
        """A copy with other arrays, without anything inferred from the old ones."""
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
        """Mask (T,) of the rows of one array that the producer gave.

        All rows, except those missing from the ``observed`` argument and rows that are NaN at every
        tap point of the trace.
        """
        return self._observed.get(name, self._never_nan)

    @cached_property
    def observed_in_part(self) -> frozenset[str]:
        """The tap points with rows that were not observed."""
        return frozenset(name for name in self if not self.observed(name).all())

    @cached_property
    def _never_nan(self) -> NDArray[np.bool_]:
        """Mask (T,) of the rows that are a number at some tap point; all, if no row is."""
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
        """The metadata of the trace file: producer, policy and dtype as text, the rest as JSON.

        The rest is: config, tokens, targets, observed rows (if not all), and skipped arrays.
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
        """The rounding of the producer, one of ROUNDINGS; None if it cannot be inferred.

        The stated one, else the coarsest one that a quarter of the computed taps show. Taps that
        alone are coarser were rounded when they were recorded.
        """
        if self._dtype is not None:
            return self._dtype
        forward = (name for name in self if not gradients.is_gradient(name))
        telling = [name for name in forward if split(name)[1] in TELLING] or self.gradients
        grids = [grid for name in telling if (grid := self.grid(name)) is not None]
        coarse = sorted(grids, key=ROUNDINGS.index, reverse=True)
        return coarse[(len(coarse) - 1) // 4] if coarse else None

    def grid(self, name: str) -> str | None:
        """The coarsest of ROUNDINGS that holds all values of one array exactly.

        None if the array has too few different values.
        """
        values = self._arrays[name]
        known = self._grids.get(name)
        if known is None or known[0] is not values:
            known = self._grids[name] = values, rounding_of(self, name)
        return known[1]

    def save(self, path: str | Path) -> None:
        """Write a trace file; an existing file is replaced when the new one is complete.

        Lossless; float32 arrays whose values are all bfloat16 are stored as bfloat16. A name that
        ends in ``.npz`` gives a file for ``numpy.load``, with float32 for bfloat16.

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
        """The trace in a file; its arrays are read when they are used.

        Raises:
            TraceError: the file is missing or damaged, is not a trace, or contradicts itself.
        """
        arrays, metadata = read(Path(path))
        missing = [key for key in ("producer", "config", "tokens") if key not in metadata]
        if missing:
            raise TraceError(f"{path}: the metadata lacks {', '.join(missing)}")
        try:
            arrays.pop("tokens", None)  # an .npz file has them as an array and in the metadata
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
            message = f"{path}: the metadata (config, tokens) is damaged: {error}"
            raise TraceError(message) from None
