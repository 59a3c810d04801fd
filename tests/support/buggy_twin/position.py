"""Rotary position embedding with YaRN, and what went wrong there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.support.buggy_twin.arithmetic import HALF, Bugs, wide
from tests.support.buggy_twin.checkpoints import Config


def positions(length: int, bugs: Bugs) -> Tensor:
    """Rotary positions (T,) of a prompt whose first tokens went into a cache before the others."""
    where = torch.arange(length)
    if "positions-from-one" in bugs:  # only differences count
        where = where + 1
    if "rope-position-off-by-one" in bugs:  # one token, then the rest at cache length + 1
        where[1:] += 1
    if "rope-position-off-by-one/half" in bugs:
        where[length // 2 :] += 1
    return where


def concentration(config: Config) -> float:
    return 0.1 * math.log(config.rope_scaling_factor) + 1


def frequencies(config: Config, dtype: torch.dtype, bugs: Bugs) -> tuple[Tensor, float]:
    """Inverse frequencies (C/2,) and what multiplies cos and sin."""
    width, half = config.head_dim, config.head_dim // 2
    theta, factor = config.rope_theta, config.rope_scaling_factor
    if "rope-base-10000" in bugs:  # sglang#30050: the key of the base had moved, the default stayed
        theta = 10000.0
    if "rope-theta" in bugs:
        theta = 90000.0
    if "yarn-factor" in bugs:
        factor = 12.0
    exponent = torch.arange(0, width, 2, dtype=dtype) / width
    freq = theta**exponent
    if "yarn-skipped" in bugs:  # TensorRT-Model-Connect#399: the scaling was looked up elsewhere
        return 1 / freq, 1.0

    original = 700 if "yarn-original-length" in bugs else config.initial_context_length
    if "yarn-original-length/released" in bugs:  # keras-hub: that of gpt-oss-20b is in the code
        original = 4096

    def pair_of(turns: float) -> float:
        return half * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low = pair_of(21.0 if "yarn-beta-fast" in bugs else config.beta_fast)
    high = pair_of(1.6 if "yarn-beta-slow" in bugs else config.beta_slow)
    if "yarn-truncated" in bugs:  # vllm#27722: truncate=false of the configuration not read
        low, high = float(max(math.floor(low), 0)), float(min(math.ceil(high), width - 1))
    index = torch.arange(half, dtype=dtype)
    if "yarn-ramp-over-dims" in bugs:  # low and high are pairs, the ramp runs over dimensions
        index = 2 * index
    ramp = ((index - low) / (high - low)).clamp(0, 1)
    interpolated = 1 / (factor * freq)
    if "yarn-factor-in-exponent" in bugs:  # tvm#18576: power(factor * theta, 2i/C)
        interpolated = 1 / (factor * theta) ** exponent
    inv_freq = ramp * interpolated + (1 - ramp) * (1 / freq)
    if bugs & {"yarn-no-concentration", "yarn-concentration-in-scores"}:
        return inv_freq, 1.0
    if "yarn-concentration" in bugs:
        return inv_freq, 1.2
    if "yarn-factor" in bugs:
        return inv_freq, 0.1 * math.log(factor) + 1
    return inv_freq, concentration(config)


def tables(config: Config, where: Tensor, dtype: torch.dtype, bugs: Bugs) -> tuple[Tensor, Tensor]:
    """cos and sin, (T, 1, C/2): angles in float32 for a 16-bit run, float64 otherwise."""
    inv_freq, size = frequencies(config, torch.float32 if dtype in HALF else torch.float64, bugs)
    angle = where.to(inv_freq.dtype)[:, None, None] * inv_freq
    return (angle.cos() * size).to(dtype), (angle.sin() * size).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, windowed: bool, bugs: Bugs) -> Tensor:
    """(T, heads, C) -> (T, heads, C)."""
    if windowed and "rope-skipped-on-window-layers" in bugs:
        return x
    times = 2 if "rope-twice" in bugs else 1  # TensorRT-LLM#16378: by Python and by the kernel
    for _ in range(times):
        x = _rotate_once(x, cos, sin, bugs)
    return x


def _rotate_once(x: Tensor, cos: Tensor, sin: Tensor, bugs: Bugs) -> Tensor:
    dtype = x.dtype
    if "rope-rounded-once" in bugs:
        x, cos, sin = wide(x), wide(cos), wide(sin)
    # TensorRT-LLM#16378: is_neox=False pairs neighbours
    if bugs & {"rope-interleaved", "rope-pairs-adjacent"}:
        x1, x2 = x[..., 0::2], x[..., 1::2]
        turned = torch.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).flatten(-2)
    else:
        x1, x2 = x.chunk(2, -1)
        turned = torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)
    return turned.to(dtype)
