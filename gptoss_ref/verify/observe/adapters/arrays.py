"""Arrays under anybody's names, from a dictionary or a file, as a Trace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gptoss_ref.checkpoint.reader import ARRAY_DTYPES, SafetensorsFile
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import CheckpointError, TraceError
from gptoss_ref.numerics import Array, bfloat16_to_float
from gptoss_ref.tracing import taps
from gptoss_ref.tracing.file import READABLE
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters.layouts import axis_sizes, check_form, fits, to_tap
from gptoss_ref.verify.observe.adapters.names import Meaning, lookup, meanings
from gptoss_ref.verify.observe.adapters.tensors import as_array
from gptoss_ref.verify.observe.npz import load_npz

Names = Mapping[str, str | tuple[str, str]]
"""Foreign name -> tap point, or (tap point, layout); see names.py and layouts.py."""

TOKENS = ("tokens", "input_ids", "token_ids")
"""The names under which a file may hold the prompt."""

_WORDS = ("qkv", "gate", "up", "dense")
_DTYPES: dict[str, DTypeLike] = {**ARRAY_DTYPES, "F16": "<f2", "I32": "<i4", "I64": "<i8"}


def from_arrays(
    mapping: Mapping[str, Any],
    tokens: Iterable[int] | Array,
    config: ModelConfig,
    *,
    names: Names | None = None,
    producer: str = "arrays",
    dtype: str | None = None,
) -> Trace:
    """A Trace of arrays that carry anybody's names.

    Args:
        mapping: arrays by name: tap points, or the names that OpenAI's torch reference,
            transformers, TransformerLens and llama.cpp's eval-callback have for them.
        tokens: (T,) or (1, T) integers, the whole prompt.
        config: of the model.
        names: what names of your own stand for, and which axes they have, such as
            ``{"my_q": ("block.0.attn.q", "H T C")}``.
        producer: who computed them, in words.
        dtype: the rounding of the producer; None infers it from the numbers.

    Raises:
        TraceError: tokens that are no row of integers, an unknown name (the nearest is suggested),
            a shape that does not fit (the order of axes that would is named), half of a gate and up
            pair, or two arrays for one tap point that differ.
    """
    ids = prompt_ids(tokens)
    known = {**lookup(config), **_own(names or {}, config)}
    if not mapping:
        raise TraceError(f"{producer} holds no arrays: expected at least one tap point")
    found: dict[str, tuple[str, Array]] = {}
    halves: dict[str, dict[str, tuple[str, Array]]] = {}
    for name, raw in mapping.items():
        values = as_array(raw, name)
        for meaning in meanings(name, known):
            try:
                if meaning.layout in ("gate", "up"):
                    half = _half(values, config, len(ids))
                    halves.setdefault(meaning.tap, {})[meaning.layout] = (name, half)
                    continue
                canonical_values = _read(values, meaning, config, len(ids))
            except TraceError as error:
                raise TraceError(f"{name!r}: {error}") from None
            _put(found, meaning.tap, name, canonical_values)
    for tap, pair in halves.items():
        if len(pair) == 1:
            (present, (name, _)) = next(iter(pair.items()))
            absent = "up" if present == "gate" else "gate"
            raise TraceError(f"{name!r} is half of {tap}: the {absent} half is missing")
        joined = np.stack([pair["gate"][1], pair["up"][1]], -1)  # (T, A, F, 2)
        _put(found, tap, pair["gate"][0], joined.reshape(*joined.shape[:2], -1))
    arrays = {tap: values for tap, (_, values) in found.items()}
    return Trace(arrays, tokens=ids, config=config, producer=producer, dtype=dtype)


def read(
    path: str | Path,
    *,
    tokens: Iterable[int] | Array | None = None,
    config: ModelConfig | None = None,
    names: Names | None = None,
) -> Trace:
    """A Trace of a trace file, or of an .npz or .safetensors file with anybody's names.

    Args:
        path: the file.
        tokens: the prompt, for a file that does not hold it (as an array ``tokens`` or
            ``input_ids``, or in the metadata); where both are there they must agree.
        config: of the model; a trace file brings its own.
        names: see :func:`from_arrays`.

    Raises:
        TraceError: the file is absent, truncated or of another kind, the prompt or the
            configuration is nowhere to be had, or :func:`from_arrays` cannot read the arrays.
    """
    path = Path(path)
    if path.suffix == ".npz":
        arrays, metadata = load_npz(path), dict[str, str]()
    elif path.suffix in (".npy", ".pt", ".pth", ".pkl", ".gguf"):
        raise TraceError(f"{path}: expected a trace, an .npz or a .safetensors file")
    else:
        arrays, metadata = _read_safetensors(path)
        if metadata.get("format") in READABLE:
            return Trace.load(path)
    given = None if tokens is None else prompt_ids(tokens)
    own = next((prompt_ids(arrays.pop(name), path) for name in TOKENS if name in arrays), None)
    if own is None and "tokens" in metadata:
        own = _json_tokens(metadata["tokens"], path)
    if own is not None and given is not None and not np.array_equal(own, given):
        raise TraceError(
            f"{path}: holds {len(own)} tokens that are not the {len(given)} expected ones"
        )
    ids = own if own is not None else given
    if ids is None:
        raise TraceError(f"{path}: the prompt is missing: expected an array {TOKENS[0]!r}")
    if config is None:
        raise TraceError(f"{path}: no configuration: pass that of the model")
    try:
        return from_arrays(arrays, ids, config, names=names, producer=path.name)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def prompt_ids(tokens: Any, path: Path | None = None) -> Array:
    """Ids (T,), out of (T,) or a batch of one prompt.

    Raises:
        TraceError: there are none, or they are no integers, or of several prompts.
    """
    where = "" if path is None else f"{path}: "
    ids = as_array(tokens if hasattr(tokens, "__len__") else list(tokens), f"{where}tokens")
    if not ids.size:
        raise TraceError(f"{where}the prompt is empty: expected at least one token")
    floats = hasattr(tokens, "is_floating_point") and tokens.is_floating_point()  # of torch
    if floats or ids.dtype.kind not in "iu":
        raise TraceError(f"{where}tokens are no integers but {getattr(tokens, 'dtype', ids.dtype)}")
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


def _read(values: Array, meaning: Meaning, config: ModelConfig, length: int) -> Array:
    """One array as its tap point has it."""
    if meaning.layout == "qkv":
        values = _part_of_qkv(values, meaning.tap, config, length)
    elif meaning.layout == "dense":
        values = _chosen(_floats(values), config, length)
    elif meaning.layout:
        if "S.." in meaning.layout:  # is looked at, and bits would hide a zero's sign
            values = _floats(values)
        return to_tap(meaning.tap, values, config, length, form=meaning.layout)
    return to_tap(meaning.tap, values, config, length)


def _floats(values: Array) -> Array:
    """bfloat16 bits widened; others as they are."""
    return bfloat16_to_float(values) if values.dtype == np.uint16 else values


def _part_of_qkv(values: Array, tap: str, config: ModelConfig, length: int) -> Array:
    """The q, k or v of a tap point out of rows (T, (H + 2K)·C)."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    rows = values.reshape(values.shape[1:]) if values.ndim == 3 and len(values) == 1 else values
    expected = (length, queries + 2 * keys)
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


def _half(values: Array, config: ModelConfig, length: int) -> Array:
    """gate or up alone, (T, A, F)."""
    sizes = axis_sizes(config, length)
    inner = values[0] if values.ndim == 4 and len(values) == 1 else values
    if not fits(inner.shape, "T A F", sizes):
        expected = tuple(sizes[axis] for axis in "TAF")
        raise TraceError(
            f"shape {values.shape} does not fit one half of gate_up: expected (T, A, F) = "
            f"{expected}"
        )
    return inner


def _chosen(values: Array, config: ModelConfig, length: int) -> Array:
    """(T, A) weights of the chosen experts, descending, out of (T, E) with zeros."""
    rows = values[0] if values.ndim == 3 and len(values) == 1 else values
    expected = (length, config.num_experts)
    if rows.shape != expected:
        raise TraceError(
            f"shape {values.shape} does not fit weights over all experts: expected (T, E) = "
            f"{expected}"
        )
    if (np.count_nonzero(rows, axis=-1) > config.experts_per_token).any():
        raise TraceError(f"more than {config.experts_per_token} experts of a token have a weight")
    return -np.sort(-rows, axis=-1)[:, : config.experts_per_token]


def _put(found: dict[str, tuple[str, Array]], tap: str, name: str, values: Array) -> None:
    """Keep one array, unless another one for the same tap point says something else."""
    if tap not in found:
        found[tap] = (name, values)
        return
    other, earlier = found[tap]
    if not np.array_equal(earlier, values, equal_nan=values.dtype.kind == "f"):
        raise TraceError(f"{other!r} and {name!r} are both {tap} and differ: pass one of them")


def _read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    try:
        file = SafetensorsFile(path)
        return {name: file.array(name, _DTYPES) for name in file.tensors}, dict(file.metadata)
    except CheckpointError as error:
        raise TraceError(str(error)) from None


def _json_tokens(text: str, path: Path) -> Array:
    try:
        ids = np.asarray(json.loads(text))
    except (ValueError, RecursionError):
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TraceError(f"{path}: the metadata's tokens are no JSON list of integers")
    return ids
