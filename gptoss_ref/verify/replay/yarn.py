"""YaRN's frequencies with one or several wrong parts.

:func:`gptoss_ref.layers.yarn` computes them in one function. Bugs are in its parts: in the ends of
the ramp, in the variable along it, in the slow frequencies. With separate parts, several can be
wrong together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gptoss_ref import layers
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import ConfigError
from gptoss_ref.numerics import Array


@dataclass(frozen=True)
class Parts:
    """The parts that differ from the specification; None if a part does not.

    Attributes:
        bounds: the pairs at which the ramp begins and ends, as a function of the right ones.
        step: increase of the ramp's index from pair to pair.
        slow: (C/2,) the frequencies of the pairs beyond the ramp, as a function of a configuration.
    """

    bounds: Callable[[float, float], tuple[float, float]] | None = None
    step: int = 1
    slow: Callable[[ModelConfig], Array] | None = None


RIGHT = Parts()

NARROWEST = 1e-3
"""Smallest number of pairs over which the ramp rises, if wrong constants leave less."""


def frequencies(config: ModelConfig, parts: Parts = RIGHT) -> tuple[Array, float]:
    """Return angular frequencies (C/2,) and concentration; plain RoPE has no parts to be wrong."""
    if config.rope_scaling_factor <= 1:
        return layers.yarn(config.head_dim, config.rope_theta)
    if parts == RIGHT and (exact := _specified(config)) is not None:
        return exact
    fast, _ = layers.yarn(config.head_dim, config.rope_theta)  # (C/2,)
    slow = fast / config.rope_scaling_factor if parts.slow is None else parts.slow(config)
    low, high = config.yarn_bounds()
    if parts.bounds is not None:
        low, high = parts.bounds(low, high)
    pair = parts.step * np.arange(config.head_dim // 2)
    ramp = np.clip((pair - low) / max(high - low, NARROWEST), 0.0, 1.0)  # (C/2,) 0: fast, 1: slow
    return ramp * slow + (1 - ramp) * fast, 0.1 * math.log(config.rope_scaling_factor) + 1.0


def _specified(config: ModelConfig) -> tuple[Array, float] | None:
    """Return the layer's result; None for constants that no checkpoint may have, but a port may."""
    try:
        return layers.yarn(
            config.head_dim,
            config.rope_theta,
            config.rope_scaling_factor,
            config.initial_context_length,
            config.rope_ntk_beta,
            config.rope_ntk_alpha,
        )
    except ConfigError:
        return None
