"""One whole block for one token, as in decoding: attention, experts and both residual additions.

One kernel calls the kernels of the layers one after the other, so the result is the same to the
last bit. It saves the Python code between the layers. That code is slow in decoding: while a layer
computes, tens of megabytes of weights pass through the caches and displace Python's own memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gptoss_ref.kernels.attention import chunks_of, reach
from gptoss_ref.kernels.expert_tasks import mixture
from gptoss_ref.kernels.experts import refuse_chosen
from gptoss_ref.kernels.flash.flash_decode import flash_decode
from gptoss_ref.kernels.matmul.gemm import ROWS_PER_TASK, gemv
from gptoss_ref.kernels.matmul.gemv import gemv_rows
from gptoss_ref.kernels.matmul.mxfp4_block import ROWS
from gptoss_ref.kernels.matmul.mxfp4_methods import method_of, stored_of
from gptoss_ref.kernels.rmsnorm import normalised
from gptoss_ref.kernels.rope import turned
from gptoss_ref.kernels.router import choose
from gptoss_ref.kernels.runtime.arrays import weight_of
from gptoss_ref.kernels.runtime.buffers import add_all, floats
from gptoss_ref.kernels.runtime.isa import current_path, path_name
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.kernels.runtime.tasks import ALONE, address_of, by_address, jit_tasks
from gptoss_ref.kernels.runtime.threads import SMALL, team
from gptoss_ref.numerics import Array
from gptoss_ref.weights import MXFP4, BlockWeights, ExpertMatrix, ModelWeights

Blocks = Callable[[Array, Array, Array, int, list[Any]], None]
"""Arguments: x (1, D), which is overwritten with the result; cosines and sines (1, C/2); the
token's position; the layers of the cache (``cache.LayerCache``), which are replaced by layers that
also hold the token."""


def blocks_of(config: Any, weights: ModelWeights) -> Blocks | None:
    """Return a function that runs all blocks of a model (``ModelConfig``) for one token.

    Return None if a weight is not stored as in the released checkpoints: contiguous bfloat16, and
    contiguous MXFP4 for the experts.
    """
    if weights.embedding.shape[1:] != (config.hidden_size,):
        return None
    prepared = [_prepared(config, block) for block in weights.blocks]
    inner, active = config.intermediate_size, config.experts_per_token
    tasks, work = -(-2 * inner // ROWS), 3 * active * config.hidden_size * inner
    numbers = (config.rms_norm_eps, 1 / math.sqrt(config.head_dim))
    constants = [np.float32(n) for n in (*numbers, config.swiglu_alpha, config.swiglu_limit)]
    addresses: dict[str, tuple[int, int, int]] = {}

    def blocks(x: Array, cos: Array, sin: Array, position: int, layers: list[Any]) -> None:
        path, chosen, failed = current_path(), np.empty(active, np.int64), np.zeros(1, np.bool_)
        if path_name() not in addresses:
            addresses[path_name()] = _addresses(config, prepared[0])
        kernels = addresses[path_name()]
        first = (path, method_of(1, config.width), kernels, x.reshape(-1), chosen, failed)
        common = (*first, *constants, cos, sin)
        # run all Python code first, before the weights displace its memory from the caches
        calls: list[list[Any]] = []
        for n, arguments in enumerate(prepared):
            assert arguments is not None
            layers[n], keys, values, origin = layers[n].reserved(position, 1)
            where = (keys, values, origin, reach(layers[n].window), *chunks_of(len(keys)))
            calls.append([*common, *where, *arguments, tasks])
        with team(tasks, work) as of:
            for n, call in enumerate(calls):
                _block(*(*call, of))
                if failed[0]:
                    mlp = weights.blocks[n].mlp
                    refuse_chosen(chosen, mlp.mlp1_weight, mlp.mlp2_weight)

    return None if None in prepared else blocks


def _prepared(config: Any, block: BlockWeights) -> tuple[Any, ...] | None:
    """Return the weights of a block as :func:`_block` takes them, or None."""
    attn, mlp = block.attn, block.mlp
    D, F, E = config.hidden_size, config.intermediate_size, config.num_experts
    H, KC = config.num_attention_heads, config.num_key_value_heads * config.head_dim
    HC = H * config.head_dim
    parts = (
        *(_stored(attn.norm_scale, D), _stored(attn.q_weight, HC, D), _stored(attn.q_bias, HC)),
        *(_stored(attn.k_weight, KC, D), _stored(attn.k_bias, KC)),
        *(_stored(attn.v_weight, KC, D), _stored(attn.v_bias, KC), _stored(attn.sinks, H)),
        *(_stored(attn.out_weight, D, HC), _stored(attn.out_bias, D)),
        *(_stored(mlp.norm_scale, D), _stored(mlp.gate_weight, E, D), _stored(mlp.gate_bias, E)),
        *(_stored(mlp.mlp1_weight, E, 2 * F, D), _stored(mlp.mlp1_bias, E, 2 * F)),
        *(_stored(mlp.mlp2_weight, E, D, F), _stored(mlp.mlp2_bias, E, D)),
    )
    if None in parts or config.experts_per_token > E:
        return None
    return tuple(array for part in parts for array in part or ())


def _stored(weight: ExpertMatrix | None, *shape: int) -> tuple[Any, ...] | None:
    """Return a weight, flat, if it has this shape and is stored as :func:`blocks_of` expects."""
    if not isinstance(weight, MXFP4 if len(shape) == 3 else np.ndarray) or weight.shape != shape:
        return None
    if isinstance(weight, MXFP4):
        return stored_of(weight)
    bits = weight_of(weight)
    return None if bits is None or bits.dtype != np.uint16 else (bits.reshape(-1),)


def _addresses(config: Any, block: Any) -> tuple[int, int, int]:
    """Return the addresses of :func:`gemv`, :func:`flash_decode` and :func:`mixture`."""
    path, one = current_path(), np.ones(1, np.float32)
    method = method_of(1, config.width)
    heads, scalar, positions = np.ones((1, 1, 1), np.float32), np.float32(1), np.ones(1, np.int64)
    weight, sinks, experts = block[1], block[7], block[-8:]
    return (
        address_of(gemv, one, weight, weight, one, 1, ALONE),
        address_of(
            flash_decode,
            *(path, heads, heads, heads, sinks, positions, positions, 1, scalar, 1, one, 1, ALONE),
        ),
        address_of(
            mixture,
            *(path, method, heads[0], positions, one, *experts, 1, scalar, scalar),
            *(heads[0], heads[0], np.ones(1, np.bool_), 1, ALONE),
        ),
    )


_gemv, _flash_decode, _mixture = by_address(gemv), by_address(flash_decode), by_address(mixture)


@jit
def _block(
    path: Any, method: Any, kernels: Any, x: Any, chosen: Any, failed: Any, eps: Any, scale: Any,
    alpha: Any, limit: Any, cos: Any, sin: Any, keys: Any, values: Any, first: int, window: int,
    size: int, chunks: int, norm_scale: Any, q_weight: Any, q_bias: Any, k_weight: Any, k_bias: Any,
    v_weight: Any, v_bias: Any, sinks: Any, out_weight: Any, out_bias: Any, mlp_norm_scale: Any,
    gate_weight: Any, gate_bias: Any, blocks: Any, scales: Any, scale_255: int, bias: Any,
    blocks_2: Any, scales_2: Any, scale_255_2: int, bias_2: Any, tasks: int, team: Any
) -> None:  # fmt: skip
    """Run one block. The token's keys and values go to the last row of ``keys`` and ``values``.

    ``tasks`` is the number of tasks of the experts' first matrices. All arguments are single arrays
    and numbers, because passing tuples of arrays from Python is slow.
    """
    gemv_at, flash_at, mixture_at = kernels
    width, kv_heads, channels = x.size, keys.shape[1], keys.shape[2]
    norm, out, last = floats(width), floats(width), len(keys) - 1
    q, k = floats(q_bias.size), floats(k_bias.size)

    normalised(x, norm_scale, eps, norm)
    work = (q.size + 2 * k.size) * width
    _projections(
        norm, q_weight, q_bias, q, k_weight, k_bias, k, v_weight, v_bias, values[last].reshape(-1),
        (q.size + 2 * k.size + ROWS_PER_TASK - 1) // ROWS_PER_TASK, team if work > SMALL else ALONE,
    )  # fmt: skip
    query = floats(q.size).reshape(1, sinks.size, channels)
    turned(q.reshape(query.shape), cos, sin, query)
    turned(k.reshape(1, kv_heads, channels), cos, sin, keys[last:])
    positions = np.arange(first, first + len(keys))
    work = 2 * q.size * min(len(keys), window + 1)
    _flash_decode(
        flash_at, path, query, keys, values, sinks, positions[last:], positions, window, scale,
        size, q, chunks, team if work > SMALL else ALONE,
    )  # fmt: skip
    tasks_out = (width + ROWS_PER_TASK - 1) // ROWS_PER_TASK
    of = team if width * q.size > SMALL else ALONE
    _gemv(gemv_at, q, out_weight, out_bias, out, tasks_out, of)
    add_all(out, x)

    normalised(x, mlp_norm_scale, eps, norm)
    logits, weights = floats(gate_bias.size), floats(chosen.size)
    gemv_rows(norm, gate_weight, gate_bias, logits, 0, logits.size)
    choose(logits.reshape(1, -1), chosen.reshape(1, -1), weights.reshape(1, -1))
    nothing = norm[:0].reshape(0, 0)
    _mixture(
        mixture_at, path, method, norm.reshape(1, width), chosen, weights, blocks, scales,
        scale_255, bias, blocks_2, scales_2, scale_255_2, bias_2, gate_bias.size, alpha, limit,
        nothing, out.reshape(1, width), failed, tasks, team,
    )  # fmt: skip
    add_all(out, x)


@jit_tasks
def _projections(
    x: Any, q_weight: Any, q_bias: Any, q: Any, k_weight: Any, k_bias: Any, k: Any, v_weight: Any,
    v_bias: Any, v: Any, start: int, stop: int
) -> None:  # fmt: skip
    """Compute queries, keys and values of one token as one set of rows, so threads start once."""
    first, last = start * ROWS_PER_TASK, stop * ROWS_PER_TASK
    gemv_rows(x, q_weight, q_bias, q, first, last)
    gemv_rows(x, k_weight, k_bias, k, first - q.size, last - q.size)
    gemv_rows(x, v_weight, v_bias, v, first - q.size - k.size, last - q.size - k.size)
