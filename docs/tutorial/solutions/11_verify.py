"""Solution of chapter 11: port.py with its two faulty functions as they should be.

Check it by `gptoss-ref check 11_verify.py:forward model`.
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import port


def frequencies(config):
    """YaRN: angles per position of each pair of channels, and the factor on cosine and sine."""
    half, theta = config.head_dim // 2, config.rope_theta
    pair = np.arange(half)
    fast = theta ** (-pair / half)
    slow = fast / config.rope_scaling_factor
    # The ends of the ramp lie between two pairs, and that is where they stay. The port rounded
    # them to whole pairs, as YaRN's own code does and the released models' does not.
    low, high = (
        half * math.log(config.initial_context_length / (turns * 2 * math.pi)) / math.log(theta)
        for turns in (config.rope_ntk_beta, config.rope_ntk_alpha)
    )
    ramp = np.clip((pair - low) / (high - low), 0, 1)
    return ramp * slow + (1 - ramp) * fast, 0.1 * math.log(config.rope_scaling_factor) + 1


def visible(positions, window):
    """Which keys each query sees: (T, T)."""
    distance = positions[:, None] - positions[None, :]
    if window is None:
        return distance >= 0
    # A window of W shows W keys, at distances 0 to W - 1. With <= it shows one more.
    return (distance >= 0) & (distance < window)


def forward(tokens):
    """The port's forward pass with the two functions exchanged, and put back afterwards."""
    faulty = port.frequencies, port.visible
    port.frequencies, port.visible = frequencies, visible
    try:
        return port.forward(tokens)
    finally:
        port.frequencies, port.visible = faulty
