"""Constants that differ from the configuration: the released models' value, or any other.

A port that hard-codes a constant of gpt-oss-20b and -120b is right for these models and wrong for
every other checkpoint. The standard form of each mutant has the released value or, if the
configuration has it too, another usual value; any other value is fitted to the numbers
(:mod:`gptoss_ref.verify.search.estimate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gptoss_ref.config import GPT_OSS_20B, ModelConfig
from gptoss_ref.numerics import Array
from gptoss_ref.verify.mutants.mutant import (
    Change,
    Mutant,
    Obstacle,
    Parameter,
    Right,
    Shortest,
    bug,
    misread,
    no_window,
    no_yarn,
    one_past_the_window,
    replacing,
    stretched,
)
from gptoss_ref.verify.replay.ops import ModelOps, OpContext

ROPE = "attn.q_rope"


def _field(op: str, field: str) -> Callable[[float], Change]:
    """Changes that hand an operation a configuration with another value of a field."""

    def change(value: float) -> Change:
        def wrong(right: Right, at: OpContext, *arguments: Any) -> Any:
            return right(misread(at, **{field: value}), *arguments)

        return replacing(**{op: wrong})

    return change


def _concentration(value: float) -> Change:
    def wrong(right: Right, at: OpContext, *parts: Any) -> tuple[Array, float]:
        return right(at, *parts)[0], value

    return replacing(yarn=wrong)


def _score_scale(value: float) -> Change:
    """Attention whose scores are multiplied by ``value`` instead of 1/√C."""

    def attend(right: Right, at: OpContext, q: Array, *rest: Any) -> Array:
        factor = at.policy.dtype.type(value * math.sqrt(at.config.head_dim))
        weights: Array = right(at, q * factor, *rest)
        return weights

    return replacing(attention_weights=attend)


def _window(value: float) -> Change:
    def keys(right: Right, at: OpContext) -> int | None:
        right_one: int | None = right(at)
        return None if right_one is None else round(value)

    return replacing(window=keys)


def own_concentration(config: ModelConfig) -> float:
    """The concentration of a configuration."""
    return 0.1 * math.log(config.rope_scaling_factor) + 1 if stretched(config) else 1.0


def _constant(
    name: str,
    what: str,
    change: Callable[[float], Change],
    right: Callable[[ModelConfig], float],
    other: Callable[[ModelConfig], float],
    *,
    stage: str,
    consequence: str,
    spread: float = 1e3,
    integer: bool = False,
    shortest: int | Shortest = 1,
    obstacle: Obstacle | None = None,
    reports: tuple[str, ...] = (),
) -> Mutant:
    """A constant of the configuration with another value.

    Args:
        right: reads the value from a configuration.
        other: the value that is tried if a configuration has the released one.
        spread: by what factor the value may be too small or too large.
    """
    released = right(GPT_OSS_20B)

    def wrong(ops: ModelOps) -> ModelOps:
        def dispatch(at: OpContext) -> float:
            own = right(at.config)
            return released if abs(released - own) > 1e-9 * abs(own) else other(at.config)

        return _by_config(change, dispatch)(ops)

    wrong.__doc__ = (
        f"{what} is {released:g}, that of the released models, or another value instead of the "
        "configured one."
    )
    parameter = Parameter(
        what.split(" (")[0].removeprefix("The ").lower(),
        change,
        right,
        low=lambda config, tokens: 1 if integer else right(config) / spread,
        high=lambda config, tokens: tokens if integer else right(config) * spread,
        scale="integer" if integer else "log",
    )
    extra: dict[str, Any] = {} if obstacle is None else {"obstacle": obstacle}
    return bug(
        name,
        stage=stage,
        consequence=consequence,
        shortest=shortest,
        reports=reports,
        note="The value is fitted to the observed numbers."
        + " Short prompts hide it: the window covers them." * integer,
        parameter=parameter,
        **extra,
    )(wrong)


def _by_config(change: Callable[[float], Change], value: Callable[[OpContext], float]) -> Change:
    """A change whose value depends on the configuration, known when it is applied."""
    probe = change(1.0)

    def apply(ops: ModelOps) -> ModelOps:
        names = [n for n in vars(ops) if getattr(probe(ops), n) is not getattr(ops, n)]

        def wrong(name: str) -> Callable[..., Any]:
            def op(at: OpContext, *arguments: Any) -> Any:
                return getattr(change(value(at))(ops), name)(at, *arguments)

            return op

        return type(ops)(**{**vars(ops), **{name: wrong(name) for name in names}})

    return apply


def _start(config: ModelConfig) -> int:
    """A wrong concentration shows at position 0, a wrong angle from position 1 on."""
    return 1 if stretched(config) else 2


CONSTANTS: tuple[Mutant, ...] = (
    _constant(
        "rope-theta",
        "The base of RoPE (theta)",
        _field("yarn", "rope_theta"),
        lambda config: config.rope_theta,
        lambda config: 500000.0,
        stage=ROPE,
        consequence="Every pair but the first turns at the wrong speed.",
        shortest=2,
    ),
    _constant(
        "yarn-factor",
        "The scaling factor of YaRN",
        _field("yarn", "rope_scaling_factor"),
        lambda config: config.rope_scaling_factor,
        lambda config: 8.0,
        stage=ROPE,
        consequence="Slow pairs turn at the wrong speed, and the concentration is off.",
        shortest=_start,
    ),
    _constant(
        "yarn-original-length",
        "The original context length of YaRN",
        _field("yarn", "initial_context_length"),
        lambda config: float(config.initial_context_length),
        lambda config: 2.0 * config.initial_context_length,
        stage=ROPE,
        consequence="YaRN's ramp begins and ends at other pairs.",
        shortest=2,
        obstacle=no_yarn,
    ),
    _constant(
        "yarn-beta-fast",
        "The fast beta of YaRN (beta_fast)",
        _field("yarn", "rope_ntk_beta"),
        lambda config: config.rope_ntk_beta,
        lambda config: 2.0 * config.rope_ntk_beta,
        stage=ROPE,
        consequence="YaRN's ramp begins at another pair.",
        shortest=2,
        obstacle=no_yarn,
    ),
    _constant(
        "yarn-beta-slow",
        "The slow beta of YaRN (beta_slow)",
        _field("yarn", "rope_ntk_alpha"),
        lambda config: config.rope_ntk_alpha,
        lambda config: 2.0 * config.rope_ntk_alpha,
        stage=ROPE,
        consequence="YaRN's ramp ends at another pair.",
        shortest=2,
        obstacle=no_yarn,
    ),
    _constant(
        "yarn-concentration",
        "The concentration of YaRN",
        _concentration,
        own_concentration,
        lambda config: own_concentration(config) ** 2,
        stage=ROPE,
        consequence="Queries and keys are too long or too short, and attention too sharp or flat.",
        spread=30,
    ),
    _constant(
        "score-scale",
        "The scale of the scores",
        _score_scale,
        lambda config: 1 / math.sqrt(config.head_dim),
        lambda config: 1 / math.sqrt(2 * config.head_dim),
        stage="attn.weights",
        consequence="Attention is too sharp or too flat.",
    ),
    _constant(
        "window-width",
        "The width of the window",
        _window,
        lambda config: float(config.sliding_window),
        lambda config: 2.0 * config.sliding_window,
        stage="attn.weights",
        consequence="Windowed layers see more or fewer keys than they should.",
        integer=True,
        shortest=one_past_the_window,
        obstacle=no_window,
    ),
    _constant(
        "swiglu-alpha",
        "The factor of the sigmoid in SwiGLU (alpha)",
        _field("swiglu", "swiglu_alpha"),
        lambda config: config.swiglu_alpha,
        lambda config: 2 * math.sqrt(2 / math.pi),
        stage="mlp.swiglu",
        consequence="The gate opens more steeply or more gently than it should.",
        spread=30,
    ),
    _constant(
        "swiglu-limit",
        "The limit of the clamp in SwiGLU",
        _field("swiglu", "swiglu_limit"),
        lambda config: config.swiglu_limit,
        lambda config: 6.0,
        stage="mlp.swiglu",
        consequence="Values are clamped at a limit that is too small or too large.",
        spread=100,
    ),
)
"""The epsilon of RMSNorm is in whole.py; the lengths of chunks and rings are in caches.py."""
