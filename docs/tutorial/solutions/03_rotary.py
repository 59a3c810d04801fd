"""Solutions to chapter 3: YaRN's frequencies, and turning heads by them."""

import numpy as np


def yarn(head_dim, theta, factor, original_length, beta_fast, beta_slow):
    """Six numbers -> frequencies (C/2,) in radians per position, and the concentration."""
    half = head_dim // 2
    i = np.arange(half)  # (C/2,)
    plain = theta ** (-i / half)  # (C/2,) from 1 radian a token down to nearly nothing
    if factor <= 1:
        return plain, 1.0

    def pair(turns):
        # Pair i turns L ω_i / 2π times within L tokens. Set that to `turns`, and solve for i.
        return half * np.log(original_length / (2 * np.pi * turns)) / np.log(theta)

    fast, slow = pair(beta_fast), pair(beta_slow)  # fractions; do not round them
    ramp = np.clip((i - fast) / (slow - fast), 0, 1)  # (C/2,) 0 keeps the speed, 1 divides it
    return plain * (1 - ramp + ramp / factor), 0.1 * np.log(factor) + 1


def rope(x, positions, head_dim, theta, factor, original_length, beta_fast, beta_slow):
    """x (T, H, C), positions (T,), and the numbers of yarn -> y (T, H, C)."""
    frequencies, concentration = yarn(
        head_dim, theta, factor, original_length, beta_fast, beta_slow
    )
    # A pair of channels is one complex number, and turning is a product with exp(i · angle).
    hands = x[..., : head_dim // 2] + 1j * x[..., head_dim // 2 :]  # (T, H, C/2)
    turns = concentration * np.exp(1j * np.outer(positions, frequencies))  # (T, C/2)
    turned = hands * turns[:, None]  # (T, H, C/2): the same turn for every head
    return np.concatenate([turned.real, turned.imag], axis=-1)  # (T, H, C)
