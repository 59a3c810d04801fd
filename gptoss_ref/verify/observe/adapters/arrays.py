"""Make a Trace from a dictionary of arrays under any names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array, bfloat16_to_float
from gptoss_ref.tracing import taps
from gptoss_ref.tracing.gradients import PREFIX
from gptoss_ref.tracing.trace import Skipped, Trace
from gptoss_ref.verify.observe.adapters.gradients import of_both_passes
from gptoss_ref.verify.observe.adapters.layouts import axis_sizes, check_form, fits, to_tap
from gptoss_ref.verify.observe.adapters.names import Meaning, bare, lookup, meanings
from gptoss_ref.verify.observe.adapters.partial_rows import positions_of, spread, the_same
from gptoss_ref.verify.observe.adapters.suggest import unknown_name
from gptoss_ref.verify.observe.adapters.tensors import as_array

Names = Mapping[str, str | tuple[str, str]]
"""Foreign name -> tap point, or (tap point, layout); see names.py and layouts.py."""

_WORDS = ("qkv", "gate", "up", "dense")


def from_arrays(
    mapping: Mapping[str, Any],
    tokens: Iterable[int] | Array,
    config: ModelConfig,
    *,
    names: Names | None = None,
    producer: str = "arrays",
    dtype: str | None = None,
    targets: Iterable[int] | Array | None = None,
    router_aux_loss_coef: float = 0.0,
    unknown: str = "raise",
    positions: Iterable[int] | None = None,
) -> Trace:
    """A Trace from arrays under any names.

    A row that is NaN at every tap point counts as not observed, and so do the rows that are not in
    ``positions``. Logits of shape (V,) or (1, V) are those of the last position.

    Args:
        mapping: arrays by name: tap points, or their names in other implementations. Nested
            dictionaries, such as flax' captured intermediates, make dotted names. A list of
            arrays under ``hidden_states``, ``attentions`` or ``router_logits`` is split by layer;
            the step logits of ``generate``, a list of (1, V), are the rows ``positions``.
        tokens: (T,) or (1, T) integers, the whole prompt and the tokens generated after it.
        config: of the model.
        names: the meaning of further names, and their axes, such as
            ``{"my_q": ("block.0.attn.q", "H T C")}``.
        producer: the program that computed them, in words.
        dtype: the rounding of the producer; None infers it from the values.
        targets: (T,), for gradients. Their names are ``grad.`` and any of these names, or
            ``grad.weights.`` and the name of a weight. See :class:`gptoss_ref.Trace`.
        router_aux_loss_coef: see :class:`gptoss_ref.Trace`.
        unknown: ``"raise"`` refuses arrays that fit no tap point; ``"skip"`` lists them in
            ``trace.skipped``.
        positions: (P,) the positions of arrays with P rows instead of T.

    Raises:
        TraceError: tokens are not a row of integers, or positions are outside the prompt. Unless
            they are skipped: an unknown name (with a suggestion), a shape that does not fit (with
            an order of axes that does), one half of a gate and up pair, or two different arrays for
            one tap point.
    """
    ids = prompt_ids(tokens)
    if unknown not in ("raise", "skip"):
        raise TraceError(f"unknown={unknown!r}: expected 'raise' or 'skip'")
    if targets is not None or any(name.startswith(PREFIX) for name in mapping):
        return of_both_passes(
            from_arrays,
            mapping,
            ids,
            config,
            names=names,
            targets=targets,
            router_aux_loss_coef=router_aux_loss_coef,
            producer=producer,
            dtype=dtype,
            unknown=unknown,
            positions=positions,
        )
    if not mapping:
        raise TraceError(f"{producer} holds no arrays: expected at least one tap point")
    known = {**lookup(config), **_own(names or {}, config)}
    gathered = _Gathered(config, len(ids), known, positions_of(positions, len(ids)))
    skipped = []

    def attempt(name: str, shape: tuple[int, ...], step: Callable[[], None]) -> None:
        try:
            step()
        except TraceError as error:
            if unknown == "raise":
                raise
            skipped.append(Skipped(name, shape, str(error)))

    for name, raw in _taken_apart(mapping, known):
        shape = tuple(getattr(raw, "shape", ()))
        attempt(name, shape, partial(gathered.add, name, raw))
    for tap in gathered.halves:
        attempt(tap, (), partial(gathered.join, tap))
    return Trace(
        {tap: values for tap, (_, values) in gathered.found.items()},
        tokens=ids,
        config=config,
        producer=producer,
        dtype=dtype,
        observed=gathered.observed,
        skipped=skipped,
    )


class _Gathered:
    """The arrays found so far for each tap point.

    Attributes:
        found: by tap point, the name and the values.
        halves: by tap point, gate and up if they are separate arrays.
        observed: by tap point, the mask (T,) of observed rows, if not all.
    """

    def __init__(
        self,
        config: ModelConfig,
        length: int,
        known: Mapping[str, tuple[Meaning, ...]],
        positions: Array | None,
    ) -> None:
        self.config, self.length, self.known, self.positions = config, length, known, positions
        self.found: dict[str, tuple[str, Array]] = {}
        self.halves: dict[str, dict[str, tuple[str, Array]]] = {}
        self.observed: dict[str, Array] = {}

    def add(self, name: str, raw: Any) -> None:
        """Assign one array to its tap point. TraceError if it fits none."""
        values = as_array(raw, name)
        for meaning in self._meanings(name, values):
            try:
                rows, taken = self._rows_of(values, meaning)
            except TraceError as error:
                raise TraceError(f"{name!r}: {error}") from None
            if meaning.layout in ("gate", "up"):
                self.halves.setdefault(meaning.tap, {})[meaning.layout] = (name, taken)
                self._saw(meaning.tap, rows)
                continue
            self._put(meaning.tap, name, taken)
            self._saw(meaning.tap, rows)

    def _meanings(self, name: str, values: Array) -> tuple[Meaning, ...]:
        known = meanings(name, self.known)
        if known is None:
            sizes = axis_sizes(self.config, self.length)
            raise unknown_name(name, values.shape, self.known, sizes)
        return known

    def join(self, tap: str) -> None:
        """Join gate and up into one array. TraceError if one of them is missing."""
        pair = self.halves[tap]
        if len(pair) == 1:
            (present, (name, _)) = next(iter(pair.items()))
            absent = "up" if present == "gate" else "gate"
            raise TraceError(f"{name!r} is half of {tap}: the {absent} half is missing")
        joined = np.stack([pair["gate"][1], pair["up"][1]], -1)  # (T, A, F, 2)
        self._put(tap, pair["gate"][0], joined.reshape(*joined.shape[:2], -1))

    def _saw(self, tap: str, rows: Array | None) -> None:
        if rows is not None:
            self.observed[tap] = np.isin(np.arange(self.length), rows)

    def _rows_of(self, values: Array, meaning: Meaning) -> tuple[Array | None, Array]:
        """The rows that an array holds (None: all), and the whole tap point with only these set."""
        rows = self.positions
        if meaning.tap == "logits" and self.length > 1 and rows is None:
            vocabulary = self.config.vocab_size
            if values.shape in ((vocabulary,), (1, vocabulary), (1, 1, vocabulary)):
                values, rows = values.reshape(1, vocabulary), np.array([self.length - 1])
        if rows is not None and len(rows) != self.length:
            try:
                some = _read(values, meaning, self.config, self.length, rows)
            except TraceError:
                pass  # it may hold all rows
            else:
                return rows, spread(meaning.tap, some, rows, self.length)
        return None, _read(values, meaning, self.config, self.length, None)

    def _put(self, tap: str, name: str, values: Array) -> None:
        """Keep one array; TraceError if a different one for the same tap point was kept."""
        if tap not in self.found:
            self.found[tap] = (name, values)
            return
        other, earlier = self.found[tap]
        same = the_same(earlier, values)
        if same is None:
            raise TraceError(f"{other!r} and {name!r} are both {tap}, but differ: pass one of them")
        self.found[tap] = (other, same)


def _taken_apart(
    mapping: Mapping[str, Any], known: Mapping[str, tuple[Meaning, ...]]
) -> Iterator[tuple[str, Any]]:
    """The arrays by name; lists with one array per layer, as in transformers, are split."""
    for name, raw in _flat(mapping):
        if isinstance(raw, list | tuple) and name not in known and f"{bare(name)}.0" in known:
            yield from ((f"{name}.{n}", part) for n, part in enumerate(raw))
        else:
            yield name, raw


def _flat(mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Entries by dotted name, of dictionaries in dictionaries, such as flax' intermediates.

    There ``{"block_0": {"attn": {"norm": {"__call__": (x,)}}}}`` is ``block.0.attn.norm``: the
    number of a module in a list is a part of its name, and each value is a tuple of what its calls
    returned, of which the first counts.
    """
    for key, value in mapping.items():
        if not isinstance(value, Mapping):
            yield from _returned("logits", value) if key == "__call__" else [(key, value)]
            continue
        start = re.sub(r"_(\d+)$", r".\1", key)
        if set(value) == {"__call__"}:
            yield from _returned(start, value["__call__"])
            continue
        for name, inner in _flat({k: v for k, v in value.items() if k != "__call__"}):
            yield f"{start}.{name}", inner
        if "__call__" in value:
            yield from _returned(start, value["__call__"])


def _returned(name: str, calls: Any) -> Iterator[tuple[str, Any]]:
    """What a module's first call returned, one by one if it is several arrays."""
    first = calls[0] if isinstance(calls, tuple | list) else calls
    if isinstance(first, tuple | list):
        yield from ((f"{name}.{n}", part) for n, part in enumerate(first))
    else:
        yield name, first


def prompt_ids(tokens: Any, path: Path | None = None) -> Array:
    """Ids (T,), from (T,) or a batch of one prompt (1, T).

    Raises:
        TraceError: there are none, they are not integers, or there are several prompts.
    """
    where = "" if path is None else f"{path}: "
    ids = as_array(tokens if hasattr(tokens, "__len__") else list(tokens), f"{where}tokens")
    if not ids.size:
        raise TraceError(f"{where}the prompt is empty: expected at least one token")
    floats = hasattr(tokens, "is_floating_point") and tokens.is_floating_point()  # torch
    if floats or ids.dtype.kind not in "iu":
        dtype = getattr(tokens, "dtype", ids.dtype)
        raise TraceError(f"{where}tokens have dtype {dtype}: expected integers")
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise TraceError(f"{where}tokens have shape {ids.shape}: expected (T,) or (1, T)")
    return ids


def _own(names: Names, config: ModelConfig) -> dict[str, tuple[Meaning, ...]]:
    """The caller's names, checked."""
    found: dict[str, tuple[Meaning, ...]] = {}
    for name, entry in names.items():
        tap, layout = (entry, "") if isinstance(entry, str) else entry
        taps.check_name(tap, config)
        if layout and layout not in _WORDS:
            check_form(tap, layout)
        found[name] = (Meaning(tap, layout, "caller"),)
    return found


def _read(
    values: Array, meaning: Meaning, config: ModelConfig, length: int, rows: Array | None
) -> Array:
    """One array in the form of its tap point, for the tokens at ``rows`` (P,) or for all."""
    sizes = axis_sizes(config, length, rows)
    if meaning.layout == "qkv":
        values = _part_of_qkv(values, meaning.tap, sizes)
    elif meaning.layout == "dense":
        values = _chosen(_floats(values), sizes)
    elif meaning.layout in ("gate", "up"):
        return _half(values, sizes)
    elif meaning.layout:
        if "S.." in meaning.layout:  # the padding is compared with 0; the bits of -0 differ
            values = _floats(values)
        return to_tap(meaning.tap, values, sizes, form=meaning.layout)
    return to_tap(meaning.tap, values, sizes)


def _floats(values: Array) -> Array:
    """bfloat16 bits as float32; other arrays unchanged."""
    return bfloat16_to_float(values) if values.dtype == np.uint16 else values


def _part_of_qkv(values: Array, tap: str, sizes: dict[str, int]) -> Array:
    """The q, k or v of a tap point, from fused rows (T, (H + 2K)·C)."""
    keys = sizes["K"] * sizes["C"]
    queries = sizes["G"] * keys
    rows = values.reshape(values.shape[1:]) if values.ndim == 3 and len(values) == 1 else values
    expected = (sizes["T"], queries + 2 * keys)
    if rows.shape != expected:
        raise TraceError(
            f"shape {values.shape} does not fit fused q, k and v: expected (T, (H + 2K)C) = "
            f"{expected}"
        )
    begin, end = {
        "attn.q": (0, queries),
        "attn.k": (queries, queries + keys),
        "attn.v": (queries + keys, queries + 2 * keys),
    }[taps.split(tap)[1]]
    return rows[:, begin:end]


def _half(values: Array, sizes: dict[str, int]) -> Array:
    """gate or up alone, (T, A, F)."""
    inner = values[0] if values.ndim == 4 and len(values) == 1 else values
    if not fits(inner.shape, "T A F", sizes):
        expected = tuple(sizes[axis] for axis in "TAF")
        raise TraceError(
            f"shape {values.shape} does not fit one half of gate_up: expected (T, A, F) = "
            f"{expected}"
        )
    return inner


def _chosen(values: Array, sizes: dict[str, int]) -> Array:
    """(T, A) weights of the chosen experts, descending, from (T, E) with zeros."""
    rows = values[0] if values.ndim == 3 and len(values) == 1 else values
    expected = (sizes["T"], sizes["E"])
    if rows.shape != expected:
        raise TraceError(
            f"shape {values.shape} does not fit weights over all experts: expected (T, E) = "
            f"{expected}"
        )
    if (np.count_nonzero(rows, axis=-1) > sizes["A"]).any():
        raise TraceError(f"more than {sizes['A']} experts of a token have a weight")
    return -np.sort(-rows, axis=-1)[:, : sizes["A"]]
