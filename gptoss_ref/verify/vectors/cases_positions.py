"""Cases of the operations that depend on positions: YaRN, rotary embedding, attention."""

from __future__ import annotations

import numpy as np

from gptoss_ref.verify.vectors.case import Group, Parameter
from gptoss_ref.verify.vectors.numbers import Numbers

RELEASED: dict[str, Parameter] = {
    "head_dim": 64,
    "theta": 150000.0,
    "factor": 32.0,
    "original_length": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
TINY: dict[str, Parameter] = {**RELEASED, "head_dim": 32, "factor": 8.0, "original_length": 256}
PLAIN: dict[str, Parameter] = {**RELEASED, "head_dim": 10, "factor": 1.0}


def yarn() -> Group:
    group = Group("yarn")
    group.add("the released models", "YarnRamp Concentration", {}, RELEASED)
    group.add("the tiny model", "YarnRamp Concentration", {}, TINY)
    group.add("factor 1: plain rotary embedding", "Ordinary", {}, PLAIN)
    return group


def rope() -> Group:
    draw, group = Numbers(600), Group("rope")

    def add(note: str, flags: str, positions: list[int], parameters: dict[str, Parameter]) -> None:
        channels = int(parameters["head_dim"] or 0)
        inputs = {
            "x": draw.bell(len(positions), 3, channels),
            "positions": np.array(positions, np.int32),
        }
        group.add(note, flags, inputs, parameters)

    add("plain, positions 0 to 4", "Ordinary RotaryPairs", [0, 1, 2, 3, 4], PLAIN)
    add("position 0 is scaled, not turned", "Concentration", [0], RELEASED)
    add("released, around the window", "YarnRamp RotaryPairs", [1, 127, 128, 129], RELEASED)
    add("past the original context", "LongPosition YarnRamp", [4095, 4096, 8191], RELEASED)
    add("the last position", "LongPosition", [131071, 65537], RELEASED)
    add("tiny's constants, unordered positions", "YarnRamp", [300, 7, 2047, 7], TINY)
    return group


def attention() -> Group:
    draw, group = Numbers(700), Group("attention")

    def add(
        note: str,
        flags: str,
        *,
        queries: np.ndarray | range,
        keys: np.ndarray | range,
        window: int | None,
        heads: tuple[int, int, int] = (6, 2, 8),
        sink: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        h, k, c = heads
        inputs = {
            "q": draw.bell(len(queries), h, c, scale=scale),
            "k": draw.bell(len(keys), k, c),
            "v": draw.bell(len(keys), k, c),
            "sinks": draw.uniform(h) + np.float32(sink),
            "q_positions": np.array(queries, np.int32),
            "k_positions": np.array(keys, np.int32),
        }
        group.add(note, flags, inputs, {"window": window})

    full, shown = range(9), range(12)
    add(
        "no window",
        "Ordinary Causal GroupedQueries ScoreScale UnequalDimensions",
        queries=full,
        keys=full,
        window=None,
    )
    add("one token alone with its sink", "Causal", queries=range(1), keys=range(1), window=4)
    add("window 5, context 6", "WindowEdge", queries=range(6), keys=range(6), window=5)
    add("window 5, context 12", "WindowEdge", queries=shown, keys=shown, window=5)
    add("window 1: only itself", "WindowEdge", queries=range(4), keys=range(4), window=1)
    add(
        "window of 128 at 129 and 130 keys",
        "WindowEdge",
        queries=range(127, 130),
        keys=range(130),
        window=128,
        heads=(3, 1, 4),
    )
    add(
        "the first of 140 keys, no window",
        "FullLayer",
        queries=range(138, 140),
        keys=range(140),
        window=None,
        heads=(3, 1, 4),
    )
    add(
        "sinks about 12 above the scores",
        "SinkDominates",
        queries=full,
        keys=full,
        window=None,
        sink=12.0,
    )
    add(
        "sinks about 3, within a window",
        "SinkDominates",
        queries=shown,
        keys=shown,
        window=4,
        sink=3.0,
    )
    add("sinks about −30", "SinkNegligible", queries=full, keys=full, window=None, sink=-30.0)
    add("scores of about ±60", "HeavyTail", queries=full, keys=full, window=None, scale=20.0)
    add(
        "a chunk of three after seven cached keys",
        "CacheBoundary",
        queries=range(7, 10),
        keys=range(10),
        window=None,
    )
    ring = np.array([8, 9, 5, 6, 7])
    add(
        "a ring of five slots, oldest key in the third",
        "CacheBoundary WindowEdge",
        queries=np.array([9]),
        keys=ring,
        window=5,
    )
    add(
        "a ring with keys outside the window and ahead of the query",
        "CacheBoundary WindowEdge",
        queries=np.array([8]),
        keys=np.array([8, 9, 3, 6, 7]),
        window=4,
    )
    add(
        "five key/value heads of three queries each",
        "GroupedQueries",
        queries=range(4),
        keys=range(4),
        window=None,
        heads=(15, 5, 2),
    )

    n = 6
    probe = {
        "q": np.zeros((n, 4, 2), np.float32),
        "k": draw.bell(n, 2, 2),
        "v": np.ones((n, 2, 2), np.float32),
        "sinks": np.array([0.0, 1.0, -1.0, 2.0], np.float32),
        "q_positions": np.arange(n, dtype=np.int32),
        "k_positions": np.arange(n, dtype=np.int32),
    }
    group.add("q·k = 0, v = 1", "SinkEqual", probe, {"window": 3})
    return group
