"""Assignment of tokens to experts.

A *slot* is one choice of one token: slot t·A + a is the a-th choice of token t. A *position*
numbers the slots in the order of their experts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.matmul.amx import ROWS as TILE
from gptoss_ref.kernels.matmul.mxfp4_gemm_int16 import SPARE
from gptoss_ref.kernels.runtime.buffers import integers, zeros
from gptoss_ref.kernels.runtime.jit import jit, jit_inner
from gptoss_ref.numerics import Array


def refuse_indices(chosen: Array, per_token: int, count: int) -> None:
    """Raise GptOssError if an expert index is out of range or repeated within a token."""
    if chosen.min() < 0 or chosen.max() >= count:
        raise GptOssError(
            f"expert indices range from {chosen.min()} to {chosen.max()}: expected 0 to {count - 1}"
        )
    ranked = np.sort(chosen.reshape(-1, per_token), axis=-1)
    t, a = np.argwhere(ranked[:, 1:] == ranked[:, :-1])[0]
    raise GptOssError(
        f"token {t} chooses expert {ranked[t, a]} twice: expected each expert once a token"
    )


class Plan(NamedTuple):
    """The positions 0 … T·A − 1 in the order of their experts."""

    order: Any  # the slot of each position
    starts: Any  # (E + 1,) first position of each expert
    active: Any  # the experts that a token chose; empty if ``refuse_indices`` would raise
    tokens: Any  # the token of each position; ``tokens`` and ``positions`` have SPARE more entries
    positions: Any
    tiles: Any  # (E + 1,) first tile of each expert
    tile_tokens: Any  # the token of each row of the tiles
    tile_positions: Any  # the position of each row of the tiles


@jit
def plan_of(chosen: Any, per_token: int, count: int) -> Plan:
    """Return the plan for the slots ``chosen`` among ``count`` experts."""
    slots = chosen.size
    order, tokens, positions = integers(slots), zeros(slots + SPARE), zeros(slots + SPARE)
    starts, tiles, active = zeros(count + 1), zeros(count + 1), integers(count)
    n = _group(chosen, per_token, order, starts, active)
    for i in range(slots):
        tokens[i], positions[i] = order[i] // per_token, i
    for e in range(count):
        tiles[e + 1] = tiles[e] + (starts[e + 1] - starts[e] + TILE - 1) // TILE
    rows = tiles[count] * TILE
    tile_tokens, tile_positions = integers(rows), integers(rows)
    for e in active[:n]:
        for i in range(tiles[e] * TILE, tiles[e + 1] * TILE):
            position = min(starts[e] + i - tiles[e] * TILE, starts[e + 1] - 1)
            tile_positions[i], tile_tokens[i] = position, tokens[position]
    return Plan(order, starts, active[:n], tokens, positions, tiles, tile_tokens, tile_positions)


@jit_inner
def _group(chosen: Any, per_token: int, order: Any, starts: Any, active: Any) -> int:
    """Sort slots by expert into the last three arguments.

    Returns:
        The number of active experts; 0 if the choices are invalid.
    """
    count, n = starts.size - 1, 0
    for e in chosen:
        if e < 0 or e >= count:
            return 0
        starts[e + 1] += 1
    for e in range(count):
        if starts[e + 1]:
            active[n] = e
            n += 1
        starts[e + 1] += starts[e]
    filled = zeros(count)
    for slot in range(chosen.size):
        e = chosen[slot]
        at = starts[e] + filled[e]
        order[at] = slot
        if filled[e] and order[at - 1] // per_token == slot // per_token:
            return 0
        filled[e] += 1
    return n
