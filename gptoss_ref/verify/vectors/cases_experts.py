"""Cases of the experts and of MXFP4."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gptoss_ref.numerics import Array
from gptoss_ref.verify.vectors.case import Group
from gptoss_ref.verify.vectors.numbers import Numbers

CONSTANTS = {"alpha": 1.702, "limit": 7.0}


def experts() -> Group:
    draw, group = Numbers(800), Group("experts")

    def matrix(count: int, outputs: int, inputs: int) -> tuple[Array, Array]:
        scales = draw.integers(122, 126, count, outputs, inputs // 32).astype(np.uint8)
        return draw.bytes(count, outputs, inputs // 32, 16), scales

    def add(
        note: str,
        flags: str,
        *,
        tokens: int,
        sizes: tuple[int, int, int] = (5, 32, 64),
        chosen: Array | None = None,
        poison: int | None = None,
        gain: float = 1.0,
    ) -> None:
        count, width, inner = sizes
        indices = draw.choices(tokens, count, 3) if chosen is None else chosen
        weights = draw.uniform(*indices.shape) + np.float32(1.5)
        blocks1, scales1 = matrix(count, 2 * inner, width)
        blocks2, scales2 = matrix(count, width, inner)
        if poison is not None:
            scales1[poison] = scales2[poison] = 255
        inputs = {
            "x": draw.bell(tokens, width, scale=gain),
            "indices": indices,
            "weights": weights / 4,
            "mlp1_blocks": blocks1,
            "mlp1_scales": scales1,
            "mlp1_bias": draw.bell(count, 2 * inner),
            "mlp2_blocks": blocks2,
            "mlp2_scales": scales2,
            "mlp2_bias": draw.bell(count, width),
        }
        group.add(note, flags, inputs, CONSTANTS)

    add(
        "three of five experts",
        "Ordinary ExpertBiases Interleaved SigmoidAlpha UpPlusOne",
        tokens=4,
    )
    add("one token", "Ordinary NibbleOrder ScaleBias", tokens=1)
    add(
        "everybody chooses experts 4 and 1",
        "OneExpert",
        tokens=3,
        chosen=np.array([[4, 1]] * 3, np.int32),
    )
    add(
        "expert 2 is NaN and nobody's choice",
        "UnusedExpert",
        tokens=2,
        chosen=np.array([[0, 3], [1, 4]], np.int32),
        poison=2,
    )
    add("large activations: the clamps bite", "ClampBoundary", tokens=3, gain=8.0)
    add("D larger than F", "UnequalDimensions", tokens=2, sizes=(4, 96, 32))
    return group


def mxfp4_decode() -> Group:
    draw, group = Numbers(900), Group("mxfp4_decode")

    def add(
        note: str,
        flags: str,
        blocks: Array,
        scales: list[int] | Array,
        accepted: tuple[dict[str, Array], ...] = (),
    ) -> None:
        stored = np.array(scales, np.uint8).reshape(blocks.shape[:-1])
        group.add(note, flags, {"blocks": blocks, "scales": stored}, accepted=accepted)

    codes = np.arange(16, dtype=np.uint8)
    every = (codes | (15 - codes) << 4).astype(np.uint8).reshape(1, 1, 16)
    add("every code in either nibble, scale 1", "AllCodes NibbleOrder NegativeZero", every, [127])
    add(
        "random bytes, moderate scales",
        "Ordinary NibbleOrder ScaleBias UnequalDimensions",
        draw.bytes(3, 2, 16),
        draw.integers(110, 140, 3, 2),
    )
    add(
        "all 256 bytes",
        "AllCodes",
        np.arange(256, dtype=np.uint8).reshape(4, 4, 16),
        draw.integers(120, 130, 4, 4),
    )
    add(
        "zeros and negative zeros",
        "NegativeZero",
        np.array([0x80, 0x08, 0x88, 0x00] * 4, np.uint8).reshape(1, 1, 16),
        [130],
    )
    add("scale bytes 0 and 1", "Scale0 ScaleBias", np.concatenate([every, every], 1), [0, 1])
    small = np.array([0x12, 0xA9] * 8, np.uint8).reshape(1, 1, 16)  # 1, 1/2, −1/2, −1
    add("scale byte 254", "Scale254", small, [254])
    exponent = 2.0**128 * np.array([[1.0, 0.5, -0.5, -1.0] * 8])  # ±2^128 is stored as infinity
    add("scale byte 255", "Scale255", small, [255], ({"values": exponent},))
    add("scale byte 134, which is 2^7", "Scale134", every, [134])
    return group


def mxfp4_encode() -> Group:
    draw, group = Numbers(1000), Group("mxfp4_encode")

    def add(note: str, flags: str, values: ArrayLike) -> None:
        group.add(note, flags, {"values": np.asarray(values, np.float32).reshape(-1, 32)})

    add("bell-shaped values", "Ordinary", draw.bell(4, 32))
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 4.0]
    add("half-way values under scale 1", "RoundHalfEven", [*ties, *(-x for x in ties)] * 2)
    add("up to the next power of two", "Saturates", np.linspace(0, 7.9375, 32))
    add("zeros", "ZeroInput", np.zeros(32))
    add("zeros that keep their sign", "NegativeZero", [0.0, -0.0, 1.0, -1.0] * 8)
    return group
