"""Cases of the operations on single tokens: embedding, norm, linear, router and SwiGLU."""

from __future__ import annotations

import numpy as np

from gptoss_ref.verify.vectors.case import Group
from gptoss_ref.verify.vectors.numbers import Numbers


def embedding() -> Group:
    draw, group = Numbers(100), Group("embedding")
    weight = draw.integers(-128, 129, 11, 7).astype(np.float32) / 64  # exact in bfloat16
    group.add(
        "repeated, first and last rows",
        "Ordinary",
        {"tokens": np.array([3, 0, 10, 3, 7], np.int32), "weight": weight},
    )
    return group


def rmsnorm() -> Group:
    draw, group = Numbers(200), Group("rmsnorm")
    eps = {"eps": 1e-5}

    def add(note: str, flags: str, x: np.ndarray) -> None:
        group.add(note, flags, {"x": x, "scale": draw.uniform(x.shape[1]) + 1}, eps)

    add("three tokens of width 20", "Ordinary UnequalDimensions", draw.bell(3, 20))
    add("values of about 0.002", "Epsilon", draw.uniform(2, 24, scale=2**-9))
    add("zeros", "ZeroInput Epsilon", np.zeros((2, 5), np.float32))
    heavy = draw.bell(2, 33)
    heavy[:, 4] *= 1000
    add("one channel a thousand times the rest", "HeavyTail", heavy)
    add("a single channel: the sign and the scale are left", "Ordinary", draw.bell(4, 1) + 3)
    add("values of 45,000, as in the 120b's layer 34", "HeavyTail", draw.bell(2, 12, scale=30000))
    return group


def linear() -> Group:
    draw, group = Numbers(300), Group("linear")

    def add(note: str, flags: str, tokens: int, outputs: int, inputs: int) -> None:
        x = draw.bell(tokens, inputs)
        if "HeavyTail" in flags:
            x[:, inputs // 2] *= 1000
        group.add(
            note,
            flags,
            {"x": x, "weight": draw.bell(outputs, inputs, scale=0.25), "bias": draw.bell(outputs)},
        )

    add("W is (N, M), outputs first", "Ordinary UnequalDimensions", 3, 5, 12)
    add("one token", "Ordinary", 1, 7, 33)
    add("an outlier in x", "HeavyTail", 2, 9, 64)
    return group


def router() -> Group:
    draw, group = Numbers(400), Group("router")

    def add(note: str, flags: str, tokens: int, experts: int, active: int) -> None:
        inputs = {
            "x": draw.bell(tokens, 10),
            "weight": draw.bell(experts, 10),
            "bias": 2 * draw.bell(experts),
        }
        group.add(note, flags, inputs, {"experts_per_token": active})

    add("three of seven experts", "Ordinary RouterSoftmax", 5, 7, 3)
    add("one of five: its weight is 1", "RouterSoftmax", 3, 5, 1)
    add("all of six", "Ordinary", 2, 6, 6)

    bias = np.array([0.5, 2.0, 1.0, 2.0, -1.0], np.float32)
    zero = {"x": np.zeros((1, 3), np.float32), "weight": np.zeros((5, 3), np.float32), "bias": bias}
    group.add(
        "logits 2 and 2, both chosen",
        "RouterTie",
        zero,
        {"experts_per_token": 2},
        ({"indices": np.array([[3, 1]], np.int32)},),
    )
    bias = np.array([0.0, 1.0, 3.0, 1.0, 1.0], np.float32)
    group.add(
        "three equal logits for one place",
        "RouterTie",
        {**zero, "bias": bias},
        {"experts_per_token": 2},
        tuple({"indices": np.array([[2, e]], np.int32)} for e in (3, 4)),
    )
    near = np.array([1.0, 1.0 + 2**-18, 0.0, 1.0 - 2**-18], np.float32)
    zero = {"x": np.zeros((1, 3), np.float32), "weight": np.zeros((4, 3), np.float32), "bias": near}
    group.add("margins of 2^-18", "RouterNearTie", zero, {"experts_per_token": 2})
    return group


def swiglu() -> Group:
    draw, group = Numbers(500), Group("swiglu")
    constants = {"alpha": 1.702, "limit": 7.0}

    def add(note: str, flags: str, gate: np.ndarray, up: np.ndarray) -> None:
        pairs = np.stack([gate, up], -1).astype(np.float32)
        group.add(note, flags, {"x": pairs.reshape(len(pairs), -1)}, constants)

    add(
        "moderate values",
        "Ordinary Interleaved SigmoidAlpha UpPlusOne",
        draw.bell(3, 9),
        draw.bell(3, 9),
    )
    up_zero = np.zeros((1, 8))
    add(
        "up is 0: gate · sigmoid alone", "UpPlusOne SigmoidAlpha", draw.bell(1, 8, scale=2), up_zero
    )
    step = np.float32(7)
    near = np.array(
        [step, np.nextafter(step, np.float32(8)), np.nextafter(step, np.float32(6)), -step]
    )
    grid = np.meshgrid(near, [*near, -8.0, 8.0], indexing="ij")
    add(
        "gates and ups at and beside ±7",
        "ClampBoundary",
        grid[0].reshape(2, -1),
        grid[1].reshape(2, -1),
    )
    far = np.array([[50.0, 3000.0, 12.0, 7.5, 9.0, 100.0]])
    add("far beyond the limit", "ClampBoundary", far, far[:, ::-1] * [[1, -1, 1, -1, 1, -1]])
    deep = np.array([[-8.0, -7.5, -20.0, -80.0, -7.25]])
    add("gates below −7, which are not clamped", "ClampBoundary", deep, np.full((1, 5), 3.0))
    return group
