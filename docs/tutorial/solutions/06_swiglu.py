"""Solutions to chapter 6: the activation inside an expert, and a layer of experts."""

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # what the four-bit codes 0 to 7 stand for


def swiglu(x, alpha, limit):
    """x (T, 2F), two numbers -> y (T, F)."""
    gate, up = x[..., 0::2], x[..., 1::2]  # (T, F) each: they alternate, gate first
    gate = np.minimum(gate, limit)  # not clamped from below
    up = np.clip(up, -limit, limit)
    return gate / (1 + np.exp(-alpha * gate)) * (up + 1)


def experts(
    x,
    indices,
    weights,
    mlp1_blocks,
    mlp1_scales,
    mlp1_bias,
    mlp2_blocks,
    mlp2_scales,
    mlp2_bias,
    alpha,
    limit,
):
    """x (T, D), indices and weights (T, A), matrices in MXFP4, biases -> y (T, D)."""
    mlp1, mlp2 = decode(mlp1_blocks, mlp1_scales), decode(mlp2_blocks, mlp2_scales)
    y = np.zeros_like(x)
    for t, token in enumerate(x):  # (D,)
        for e, weight in zip(indices[t], weights[t], strict=True):
            gate_up = mlp1[e] @ token + mlp1_bias[e]  # (2F, D) @ (D,) = (2F,)
            answer = mlp2[e] @ swiglu(gate_up, alpha, limit) + mlp2_bias[e]  # (D,)
            y[t] += weight * answer  # the weight is for all of it, the bias too
    return y


def decode(blocks, scales):
    """MXFP4 blocks (E, N, M/32, 16) and scales (E, N, M/32) -> matrices (E, N, M)."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1)  # the low half of a byte comes first
    values = E2M1[codes & 7] * np.where(codes & 8, -1.0, 1.0)  # (E, N, M/32, 16, 2)
    scaled = np.ldexp(values, scales.astype(int)[..., None, None] - 127)
    return scaled.reshape(*scales.shape[:2], -1)  # (E, N, M)
