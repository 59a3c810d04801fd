"""Cases of the gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptoss_ref.verify.vectors.case import Group
from gptoss_ref.verify.vectors.numbers import Numbers


def gradient_groups() -> list[Group]:
    """The cases of every gradient."""
    return [
        *(_embedding(), _rmsnorm(), _linear(), _rope(), _attention()),
        *(_router(), _swiglu(), _experts(), _cross_entropy()),
    ]


def _embedding() -> Group:
    draw, group = Numbers(2100), Group("embedding_backward")
    tokens = np.array([3, 0, 10, 3, 7, 3], np.int32)
    group.add(
        "a token that occurs three times, and rows that nobody used",
        "RepeatedToken",
        {"d_x": draw.bell(6, 5), "tokens": tokens},
        {"vocabulary": 11},
    )
    return group


def _rmsnorm() -> Group:
    draw, group = Numbers(2200), Group("rmsnorm_backward")
    eps = {"eps": 1e-5}

    def add(note: str, flags: str, x: np.ndarray) -> None:
        scale = draw.uniform(x.shape[1]) + 1
        group.add(note, flags, {"d_y": draw.bell(*x.shape), "x": x, "scale": scale}, eps)

    add("three tokens of width 20", "NormSecondTerm", draw.bell(3, 20))
    add("values of about 0.002", "NormSecondTerm", draw.uniform(2, 24, scale=2**-9))
    return group


def _linear() -> Group:
    draw, group = Numbers(2300), Group("linear_backward")
    inputs = {"d_y": draw.bell(3, 5), "x": draw.bell(3, 12), "weight": draw.bell(5, 12)}
    group.add("W is (N, M), outputs first", "SumOverTokens", inputs)
    return group


def _rope() -> Group:
    draw, group = Numbers(2400), Group("rope_backward")
    rotary: dict[str, Any] = {
        "head_dim": 16, "theta": 150000.0, "factor": 32.0, "original_length": 4096,
        "beta_fast": 32.0, "beta_slow": 1.0,
    }  # fmt: skip
    inputs = {"d_y": draw.bell(3, 2, 16), "positions": np.array([0, 5, 200], np.int32)}
    group.add("YaRN by 32: turned back and stretched once more", "TurnedBack", inputs, rotary)
    return group


def _attention() -> Group:
    draw, group = Numbers(2500), Group("attention_backward")

    def add(note: str, flags: str, sink: float, window: int | None, past: int = 0) -> None:
        tokens, heads, kv_heads, channels = 6, 6, 2, 4
        keys = tokens + past
        inputs = {
            "d_mix": draw.bell(tokens, heads * channels),
            "q": draw.bell(tokens, heads, channels),
            "k": draw.bell(keys, kv_heads, channels),
            "v": draw.bell(keys, kv_heads, channels),
            "sinks": draw.bell(heads) + np.float32(sink),
            "q_positions": np.arange(past, keys, dtype=np.int32),
            "k_positions": np.arange(keys, dtype=np.int32),
        }
        group.add(note, flags, inputs, {"window": window})

    add("all keys, sinks as strong as a key", "SinkGradient GroupGradient", 0.0, None)
    add("sinks that dominate", "SinkGradient", 6.0, None)
    add("a window of three", "WindowGradient SinkGradient", 0.0, 3)
    add("queries of a later chunk", "GroupGradient", -2.0, None, 5)
    return group


def _router() -> Group:
    draw, group = Numbers(2600), Group("router_backward")
    logits = draw.bell(5, 7)
    indices = np.argsort(-logits, axis=1, kind="stable")[:, :3].astype(np.int32)
    inputs = {"d_weights": draw.bell(5, 3), "logits": logits, "indices": indices}
    group.add("three of seven experts", "ChosenOnly", inputs)
    return group


def _swiglu() -> Group:
    draw, group = Numbers(2700), Group("swiglu_backward")
    constants = {"alpha": 1.702, "limit": 7.0}

    def add(note: str, flags: str, x: np.ndarray, accepted: tuple[Any, ...] = ()) -> None:
        d_y = draw.bell(len(x), x.shape[1] // 2)
        group.add(note, flags, {"d_y": d_y, "x": x}, constants, accepted)

    add("moderate values", "GateDerivative", draw.bell(3, 18))
    add("many beyond the clamps", "ClampGradient", draw.bell(3, 18, scale=9.0))
    deep = np.array([[-8.0, 3.0, -7.5, -2.0, -7.25, 1.0]], np.float32)
    add("gates below −7, whose gradient passes", "ClampGradient", deep)
    at = np.array([[7.0, 1.0, 1.0, 7.0, 1.0, -7.0, 7.0, 7.0]], np.float32)
    # A convention: torch from 2.14 on stops the gradient at the bound itself.
    d_y = Numbers(2701).bell(1, 4)
    group.add(
        "at the clamps themselves: either convention is right",
        "ClampConvention",
        {"d_y": d_y, "x": at},
        constants,
        ({"d_x": _stopped_at_the_bound(d_y, at)},),
    )
    return group


def _stopped_at_the_bound(d_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The gradient of torch 2.14: none for gates of 7 and ups of ±7."""
    gate, up = x[:, 0::2].astype(np.float64), x[:, 1::2].astype(np.float64)
    s = 1 / (1 + np.exp(-1.702 * gate))
    d_gate = d_y * (up + 1) * (s + 1.702 * gate * s * (1 - s))
    d_up = d_y * gate * s
    d_x = np.zeros(x.shape)
    d_x[:, 0::2] = np.where(gate < 7, d_gate, 0)
    d_x[:, 1::2] = np.where(np.abs(up) < 7, d_up, 0)
    return d_x


def _experts() -> Group:
    draw, group = Numbers(2800), Group("experts_backward")
    tokens, experts, active, width, inner = 5, 6, 2, 7, 4
    shares = draw.uniform(tokens, 1, scale=0.5) * np.float32(0.5) + np.float32(0.5)
    group.add(
        "two of six experts, one of which nobody chose",
        "ExpertGradient",
        {
            "d_y": draw.bell(tokens, width),
            "x": draw.bell(tokens, width),
            "indices": draw.choices(tokens, experts - 1, active),
            "weights": np.concatenate([shares, 1 - shares], 1),
            "mlp1_weight": draw.bell(experts, 2 * inner, width, scale=0.5),
            "mlp1_bias": draw.bell(experts, 2 * inner),
            "mlp2_weight": draw.bell(experts, width, inner, scale=0.5),
            "mlp2_bias": draw.bell(experts, width),
        },
        {"alpha": 1.702, "limit": 7.0},
    )
    return group


def _cross_entropy() -> Group:
    draw, group = Numbers(2900), Group("cross_entropy")
    inputs = {
        "logits": draw.bell(5, 9, scale=3.0),
        "targets": np.array([2, 0, 8, 3, 3], np.int32),
        "mask": np.array([1, 0, 1, 1, 0], np.int32),
    }
    group.add("three of five positions count", "LossMask", inputs)
    large = {**inputs, "logits": draw.bell(5, 9, scale=400.0)}
    group.add("logits of a thousand", "LargeLogits", large)
    return group
