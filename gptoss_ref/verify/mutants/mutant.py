"""The record of a mutant: a wrong version of one operation of the model, with a description.

A mutant is written as a function of the operation it replaces, *where* it is applied, and the
operation's own arguments; its docstring is the summary::

    @bug("window-plus-one", op="window", stage="attn.weights", consequence="…", shortest=…)
    def window_plus_one(right, at):
        \"\"\"A window of W shows W + 1 keys: …\"\"\"
        keys = right(at)
        return keys and keys + 1

Calling ``right`` rather than the specification makes mutants compose: two of them applied one after
the other are two bugs at once.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import FLOAT64, Array, widen
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps, OpContext
from gptoss_ref.weights import MXFP4, ModelWeights

Right = Callable[..., Any]
"""The operation that a mutant replaces."""

Change = Callable[[ModelOps], ModelOps]
"""The same operations with one replaced."""
Obstacle = Callable[[ModelConfig, ModelWeights], str | None]
"""Why a mutant cannot be tried on a model, or None."""
Shortest = Callable[[ModelConfig], int]
"""Tokens of the shortest prompt on which a mutant shows."""


@dataclass(frozen=True)
class Variant:
    """The same bug with another parameter, e.g. another epsilon."""

    label: str
    apply: Change


@dataclass(frozen=True)
class Parameter:
    """A number that a bug has wrong, to be fitted to the observed numbers.

    Attributes:
        name: with its value it makes a label, ``"epsilon 0.01"``.
        change: the change of operations for a value.
        right: the specification's own value, for a configuration.
        low, high: ends of the range of values to search.
        scale: whether to search evenly in the logarithm or among whole numbers.
    """

    name: str
    change: Callable[[float], Change]
    right: Callable[[ModelConfig], float]
    low: Callable[[ModelConfig, int], float]
    high: Callable[[ModelConfig, int], float]
    scale: Literal["log", "integer"] = "log"


Variants = Callable[[ModelConfig, int], Iterable[Variant]]
"""Further parameters worth trying, for a configuration and a number of tokens."""


def _no_obstacle(config: ModelConfig, weights: ModelWeights) -> str | None:
    return None


def _no_variants(config: ModelConfig, tokens: int) -> Iterable[Variant]:
    return ()


@dataclass(frozen=True)
class Mutant:
    """One small, named, wrong version of the model (or an equivalent rewriting of it).

    Attributes:
        name: as in the list of public bugs, e.g. ``"window-plus-one"``.
        stage: the tap point, without its block, whose numbers it changes first.
        summary: one sentence: what is wrong.
        consequence: what that does to the numbers.
        change: the operations with this bug, given the operations without it.
        shortest: the smallest number of tokens with which it changes a number, for a configuration.
        reports: public reports, as ``repository#number``.
        note: what hides it, or how it is modelled, if that needs saying.
        obstacle: the reason why it cannot show on this model; None if it can.
        variants: the same bug with other parameters, for a configuration and a prompt length.
        parameter: the number that is wrong, if it may be any number.
        form: describes the standard form, if there are several.
        equivalent: a rewriting that computes the same function and must never be called a bug.
        touches: of an equivalent rewriting: the tap points, without their block, whose numbers
            differ although nothing that is computed from them does.
    """

    name: str
    stage: str
    summary: str
    consequence: str
    change: Change
    shortest: Shortest
    reports: tuple[str, ...] = ()
    note: str = ""
    obstacle: Obstacle = _no_obstacle
    variants: Variants = _no_variants
    parameter: Parameter | None = None
    form: str | None = None
    equivalent: bool = False
    touches: tuple[str, ...] = ()

    def apply(self, ops: ModelOps = SPECIFICATION) -> ModelOps:
        """``ops`` with this bug added."""
        return self.change(ops)

    def applies(self, config: ModelConfig, weights: ModelWeights) -> bool:
        """Whether it can show on this model at all; ``obstacle`` says why not."""
        return self.obstacle(config, weights) is None


def replacing(**wrong: Callable[..., Any]) -> Change:
    """A change that hands the operation of each keyword to its replacement as first argument."""

    def change(ops: ModelOps) -> ModelOps:
        return dataclasses.replace(
            ops,
            **{op: partial(function, getattr(ops, op)) for op, function in wrong.items()},
        )

    return change


def bug(
    name: str,
    *,
    stage: str,
    consequence: str,
    op: str | None = None,
    shortest: int | Shortest = 1,
    reports: tuple[str, ...] = (),
    note: str = "",
    obstacle: Obstacle = _no_obstacle,
    variants: Variants = _no_variants,
    parameter: Parameter | None = None,
    form: str | None = None,
) -> Callable[[Callable[..., Any]], Mutant]:
    """Make a function a :class:`Mutant`; its docstring is the summary.

    With ``op`` the function replaces that operation, and gets it as first argument. Without, it is
    the change itself: from operations to operations.
    """

    def decorate(function: Callable[..., Any]) -> Mutant:
        return Mutant(
            name=name,
            stage=stage,
            summary=_sentence(function),
            consequence=consequence,
            change=function if op is None else replacing(**{op: function}),
            shortest=_length(shortest),
            reports=reports,
            note=note,
            obstacle=obstacle,
            variants=variants,
            parameter=parameter,
            form=form,
        )

    return decorate


def rewriting(
    name: str,
    *,
    stage: str,
    consequence: str,
    touches: str = "",
    op: str | None = None,
    variants: Variants = _no_variants,
) -> Callable[[Callable[..., Any]], Mutant]:
    """As :func:`bug`, for an equivalent rewriting; ``touches`` are names with blanks between."""
    decorate = bug(name, stage=stage, consequence=consequence, op=op, variants=variants)
    taps = tuple(touches.split())
    return lambda function: dataclasses.replace(decorate(function), equivalent=True, touches=taps)


def _sentence(function: Callable[..., Any]) -> str:
    """The docstring on one line."""
    return " ".join((function.__doc__ or "").split())


def _length(shortest: int | Shortest) -> Shortest:
    return (lambda config: shortest) if isinstance(shortest, int) else shortest


# --- helpers of several mutants ---


def misread(at: OpContext, **changes: Any) -> OpContext:
    """The same context with other values in the configuration, which are not checked."""
    config = copy.copy(at.config)
    for name, value in changes.items():
        object.__setattr__(config, name, value)
    return dataclasses.replace(at, config=config)


def wide(sinks: Array) -> Array:
    """Sink logits (H,) as float64."""
    return widen(sinks, FLOAT64.dtype)


class KeyMask(NamedTuple):
    """The keys that a query may see: the last arguments of the attention operations.

    Attributes:
        q: (t,) positions of the queries.
        k: (S,) positions of the keys.
        window: keys that a query of this layer sees, itself included; None: all before it.
    """

    q: Array
    k: Array
    window: int | None


def whole_number(name: str, change: Callable[[int], Change]) -> Parameter:
    """A parameter that counts tokens."""
    return Parameter(
        name,
        lambda value: change(round(value)),
        right=lambda config: math.nan,
        low=lambda config, tokens: 1,
        high=lambda config, tokens: tokens - 1,
        scale="integer",
    )


def usual_chunks(tokens: int) -> list[int]:
    """Lengths of a first pass that is shorter than the prompt, usual lengths first."""
    powers = [1 << n for n in range(4, tokens.bit_length()) if 1 << n < tokens]
    chunks = [tokens - 1, *powers, 1, tokens // 2, tokens // 4, 3 * tokens // 4]
    return [n for n in dict.fromkeys(chunks) if 0 < n < tokens]


def one_past_the_window(config: ModelConfig) -> int:
    """Length of the shortest prompt whose last query has a key outside its window."""
    return config.sliding_window + 1


def no_window(config: ModelConfig, weights: ModelWeights) -> str | None:
    """Obstacle: no layer has a window."""
    windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
    return "no layer has a window" if windows == [None] * len(windows) else None


def no_yarn(config: ModelConfig, weights: ModelWeights) -> str | None:
    """Obstacle: plain RoPE."""
    return "rope_scaling_factor is at most 1: plain RoPE" if not stretched(config) else None


def stretched(config: ModelConfig) -> bool:
    """Whether YaRN does anything."""
    return config.rope_scaling_factor > 1


def not_mxfp4(config: ModelConfig, weights: ModelWeights) -> str | None:
    """Obstacle: the checkpoint's experts are not stored as MXFP4."""
    stored = any(
        isinstance(matrix, MXFP4)
        for block in weights.blocks
        for matrix in (block.mlp.mlp1_weight, block.mlp.mlp2_weight)
    )
    return None if stored else "the experts are not stored as MXFP4"
