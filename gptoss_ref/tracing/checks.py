"""Checks of a trace's names, shapes, dtypes, tokens and targets."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.losses import IGNORED
from gptoss_ref.numerics import Array
from gptoss_ref.tracing import gradients
from gptoss_ref.tracing.taps import check_name, check_shape, nearest


def checked_tokens(tokens: Iterable[int] | Array, config: ModelConfig) -> NDArray[np.int64]:
    ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise TraceError(
            f"tokens have shape {ids.shape} and dtype {ids.dtype}: expected one row of integers"
        )
    wrong = ids[(ids < 0) | (ids >= config.vocab_size)]
    if wrong.size:
        raise TraceError(f"token {wrong[0]} is out of range: expected 0 to {config.vocab_size - 1}")
    return ids.astype(np.int64)


def checked_targets(
    targets: Iterable[int] | Array, tokens: Array, config: ModelConfig
) -> NDArray[np.int64]:
    ids = np.asarray(targets if isinstance(targets, np.ndarray) else list(targets))
    if ids.shape != tokens.shape or ids.dtype.kind not in "iu":
        raise TraceError(
            f"targets have shape {ids.shape} and dtype {ids.dtype}: expected integers of shape "
            f"{tokens.shape}, one for each token"
        )
    size = config.vocab_size
    wrong = ids[(ids != IGNORED) & ((ids < 0) | (ids >= size))]
    if wrong.size:
        raise TraceError(
            f"target {wrong[0]} is out of range: expected 0 to {size - 1}, or {IGNORED}"
        )
    return ids.astype(np.int64)


def check_array_name(name: str, config: ModelConfig) -> None:
    """Raises TraceError unless a trace of this model may hold an array of that name."""
    if gradients.is_gradient(name):
        if name not in (known := gradients.names(config)):
            raise TraceError(f"unknown gradient {name!r}{nearest(name, known)}")
    else:
        check_name(name, config)


def masks(text: str, length: int) -> dict[str, NDArray[np.bool_]]:
    """Masks (T,) by tap point, from JSON lists of row numbers.

    Raises:
        ValueError, TypeError, IndexError: the JSON is not as expected.
    """
    masks = {}
    for name, rows in json.loads(text).items():
        masks[name] = np.zeros(length, bool)
        masks[name][np.asarray(rows, np.int64)] = True
    return masks


def checked_rows(name: str, rows: Array, length: int) -> NDArray[np.bool_]:
    """The mask (T,) of a tap point's observed rows; TraceError if it is not one."""
    mask = np.asarray(rows)
    if mask.shape != (length,) or mask.dtype != np.bool_ or not mask.any():
        raise TraceError(
            f"observed rows of {name} have dtype {mask.dtype} and shape {mask.shape}: expected a "
            f"boolean mask ({length},) with at least one True"
        )
    return mask


def checked(name: str, values: Array, config: ModelConfig, length: int) -> Array:
    """One array in the form that a trace keeps; TraceError if it does not fit."""
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
    if values.dtype.name == "bfloat16":  # the dtype of ml_dtypes
        return values.view(np.uint16)
    if values.dtype != np.uint16 and values.dtype.name not in ("float16", "float32", "float64"):
        raise TraceError(
            f"{name} has dtype {values.dtype}: expected float16, float32, float64, "
            "or uint16 for bfloat16 bits"
        )
    return values
