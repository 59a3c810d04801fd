"""Rotary positions with YaRN: turn each pair of channels by an angle proportional to the position.

    o₁ = x₁ cos(p ωᵢ) − x₂ sin(p ωᵢ)
    o₂ = x₂ cos(p ωᵢ) + x₁ sin(p ωᵢ)          pair i is channels (i, i + C/2), not (2i, 2i + 1)

Plain RoPE has ωᵢ = θ^(−2i/C). YaRN extends the context by ``factor`` and leaves the fast pairs as
they are: pairs that turn more than beta_fast times within the original context keep ωᵢ, pairs that
turn less than beta_slow times get ωᵢ / factor, and a linear ramp over i joins the two. Its ends

    i(β) = (C/2) · ln(original / (2π β)) / ln θ

are **not rounded**: for gpt-oss 8.09 and 17.40; flooring and ceiling them is a common public
bug (``yarn-truncated``). YaRN also sharpens attention: cos and sin are both multiplied by the
concentration 0.1 ln(factor) + 1, so scores grow by its square. Source: Su et al. 2021, arXiv
2104.09864; Peng et al. 2023, arXiv 2309.00071, sections 3.2 to 3.4; OpenAI gpt-oss reference,
``RotaryEmbedding``.
"""

import math

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.errors import ConfigError
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy


def yarn(
    head_dim: int,
    theta: float,
    factor: float = 1.0,
    original_length: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> tuple[NDArray[np.float64], float]:
    """Angular frequencies ω (C/2,) in radians per position, and the concentration.

    Args:
        head_dim: C, even.
        theta: the base θ.
        factor: by which YaRN extends the context; 1 or less is plain RoPE.
        original_length: tokens of the original context, before YaRN.
        beta_fast: a pair with more turns than this within the original context keeps its ω.
        beta_slow: a pair with fewer turns than this is slowed by the whole factor.

    Raises:
        ConfigError: the ramp's ends do not satisfy 0 < i(beta_fast) < i(beta_slow) < C/2 − 1, as
            the OpenAI code asserts.

    >>> inv_freq, concentration = yarn(64, 150000.0, 32.0)
    >>> inv_freq[8] == 150000.0 ** (-16 / 64), inv_freq[18] == 150000.0 ** (-36 / 64) / 32
    (np.True_, np.True_)
    >>> round(concentration, 5)
    1.34657
    """
    half = head_dim // 2
    pair = np.arange(half)
    plain = theta ** (-2.0 * pair / head_dim)  # (C/2,)
    if factor <= 1.0:
        return plain, 1.0

    def pair_that_turns(beta: float) -> float:
        """The (fractional) pair that turns ``beta`` times within the original context."""
        return half * math.log(original_length / (beta * 2 * math.pi)) / math.log(theta)

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if not 0 < low < high < half - 1:
        raise ConfigError(
            f"YaRN ramp from pair {low:.3f} to {high:.3f}: expected 0 < low < high < C/2 - 1 = "
            f"{half - 1} (original length {original_length}, beta_fast {beta_fast}, beta_slow "
            f"{beta_slow}, theta {theta}, head size {head_dim})"
        )
    ramp = np.clip((pair - low) / (high - low), 0.0, 1.0)  # (C/2,) 0: fast, 1: slow
    return ramp * plain / factor + (1 - ramp) * plain, 0.1 * math.log(factor) + 1.0


def rope_tables(
    positions: Array, inv_freq: Array, concentration: float, *, policy: str | Policy = FLOAT32
) -> tuple[Array, Array]:
    """Cosines and sines, times the concentration, for ``positions`` (T,): two arrays (T, C/2).

    ``inv_freq`` (C/2,) is in radians per position. Angles are computed in ``policy.angle_dtype``;
    their cosines and sines are rounded once to the policy.

    >>> cos, sin = rope_tables(np.array([0, 1]), np.array([np.pi / 2, 0.0]), 1.0)
    >>> cos.round(6).tolist(), sin.round(6).tolist()
    ([[1.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]])
    """
    policy = get_policy(policy)
    dtype = policy.angle_dtype
    angles = np.outer(positions.astype(dtype), inv_freq.astype(dtype))  # (T, C/2)
    scale = dtype.type(concentration)
    return policy.round(np.cos(angles) * scale), policy.round(np.sin(angles) * scale)


def rope(x: Array, cos: Array, sin: Array, *, policy: str | Policy = FLOAT32) -> Array:
    """Turn the heads ``x`` (T, H, C) by the tables ``cos``, ``sin`` (T, C/2): (T, H, C).

    >>> x = np.array([[[1.0, 2.0, 3.0, 4.0]]], np.float32)
    >>> quarter_turn = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])  # pair 0 by 90°, pair 1 by 0°
    >>> rope(x, *quarter_turn)
    array([[[-3.,  2.,  1.,  4.]]], dtype=float32)
    """
    policy = get_policy(policy)
    x1, x2 = np.split(x, 2, axis=-1)  # (T, H, C/2) each
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, C/2)
    r = policy.round
    o1 = r(r(x1 * cos) - r(x2 * sin))
    o2 = r(r(x2 * cos) + r(x1 * sin))
    return np.concatenate([o1, o2], axis=-1)
