"""Bugs of the sliding window: its width, its layers and its mask."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gptoss_ref.config import FULL, SLIDING, ModelConfig
from gptoss_ref.numerics import Array
from gptoss_ref.verify.mutants.mutant import (
    KeyMask,
    Mutant,
    Right,
    Variant,
    bug,
    misread,
    no_window,
    one_past_the_window,
    replacing,
)
from gptoss_ref.verify.replay.ops import SPECIFICATION, OpContext

WEIGHTS = "attn.weights"


@bug(
    "window-plus-one",
    op="window",
    stage=WEIGHTS,
    consequence="A query sees the key that has just left its window.",
    shortest=one_past_the_window,
    reports=("mlx-lm#390", "Megatron-LM#2771", "sglang#34273"),
    note="Short prompts hide it: nothing has left the window yet.",
    obstacle=no_window,
)
def window_plus_one(right: Right, at: OpContext) -> int | None:
    """A window of W shows W + 1 keys: p − j ≤ W instead of p − j < W."""
    keys: int | None = right(at)
    return None if keys is None else keys + 1


@bug(
    "window-minus-one",
    op="window",
    stage=WEIGHTS,
    consequence="A query misses the oldest key in its window.",
    shortest=lambda config: config.sliding_window,
    note="Short prompts hide it: all keys are newer than that.",
    obstacle=no_window,
)
def window_minus_one(right: Right, at: OpContext) -> int | None:
    """A window of W shows W − 1 keys: the query's own is not counted."""
    keys: int | None = right(at)
    return None if keys is None else keys - 1


def _exchanged(config: ModelConfig) -> tuple[str, ...]:
    return tuple(FULL if kind == SLIDING else SLIDING for kind in config.attention_types)


@bug(
    "window-odd-layers",
    op="window",
    stage=WEIGHTS,
    consequence="Layers that should see everything see a window, and vice versa.",
    shortest=one_past_the_window,
    note="Short prompts hide it: the window covers them.",
)
def window_odd_layers(right: Right, at: OpContext) -> int | None:
    """The windowed and the full layers are exchanged: odd layers have the window."""
    keys: int | None = right(misread(at, layer_types=_exchanged(at.config)))
    return keys


@bug(
    "window-everywhere",
    op="window",
    stage=WEIGHTS,
    consequence="No layer sees keys outside the window.",
    shortest=one_past_the_window,
    note="Short prompts hide it: the window covers them.",
    obstacle=lambda config, weights: (
        None if FULL in config.attention_types else "every layer has a window"
    ),
)
def window_everywhere(right: Right, at: OpContext) -> int | None:
    """Every layer has the window."""
    keys: int | None = right(misread(at, layer_types=(SLIDING,) * at.config.num_hidden_layers))
    return keys


@bug(
    "window-nowhere",
    op="window",
    stage=WEIGHTS,
    consequence="Windowed layers see everything, so the keys in the window weigh less.",
    shortest=one_past_the_window,
    reports=("openvino#32911", "sglang#30050"),
    note="Short prompts hide it: the window covers them.",
    obstacle=no_window,
)
def window_nowhere(right: Right, at: OpContext) -> int | None:
    """No layer has a window."""
    keys: int | None = right(misread(at, layer_types=(FULL,) * at.config.num_hidden_layers))
    return keys


@bug(
    "window-scores-zero",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="Every key that has left the window weighs as much as a score of 0 does: attention "
    "is diluted, more with every position.",
    shortest=one_past_the_window,
    note="Short prompts hide it. In the variant, old keys add to the denominator and not to the "
    "mix, like zeroed slots of a buffer.",
    obstacle=no_window,
    variants=lambda config, tokens: (
        Variant("of zeroed slots", replacing(attention_weights=_zeroed_slots)),
    ),
)
def window_scores_zero(
    right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *positions: Any
) -> Array:
    """Keys that have left the window score 0 (scores times mask) instead of −∞."""
    mask = KeyMask(*positions)
    weights: Array = right(at, q, k, sinks, *mask)
    if mask.window is None:
        return weights
    for row, position in enumerate(mask.q):  # which keys are old differs from row to row
        old = position - mask.k >= mask.window  # (S,)
        if old.any():
            here = slice(row, row + 1)
            zeroed = np.where(old[:, None, None], 0, k)  # a key of zeros scores 0
            weights[:, here] = right(at, q[here], zeroed, sinks, mask.q[here], mask.k, None)
    return weights


def _zeroed_slots(right: Right, *arguments: Any) -> Array:
    """As ``window_scores_zero``, but the old keys' own columns are empty."""
    ops = dataclasses.replace(SPECIFICATION, attention_weights=right)
    weights: Array = window_scores_zero.apply(ops).attention_weights(*arguments)
    mask = KeyMask(*arguments[4:])
    if mask.window is not None:
        weights[:, mask.q[:, None] - mask.k >= mask.window] = 0
    return weights


WINDOWS: tuple[Mutant, ...] = (
    window_plus_one,
    window_minus_one,
    window_odd_layers,
    window_everywhere,
    window_nowhere,
    window_scores_zero,
)
