"""Report on this machine: instruction sets, threads, cache folder, memory bandwidth.

Decoding one token reads every weight that the token uses once, so the bandwidth divided by these
bytes is an upper bound of the tokens per second. The bandwidth is the better of two measurements,
with and without prefetch instructions: on some CPUs the hardware prefetcher alone does not reach
the speed of the memory.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.isa import NEEDS, available_paths, cpu_features, path_name
from gptoss_ref.kernels.runtime.jit import cache_folder, jit
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import SMALL, current_threads, run, threading_layer
from gptoss_ref.numerics import Array

MXFP4_BYTES = 17 / 32
"""Bytes of one weight: half a byte, and its share of the scale byte."""

LEAST_MEGABYTES = 64
"""Smallest array for the measurement; a smaller one may fit into the caches, which are several
times as fast as memory.
"""

_LINE = 64
"""Bytes of a cache line."""


def doctor(
    configs: Mapping[str, Any] | None = None, *, megabytes: int = 1024, seconds: float = 1.0
) -> dict[str, Any]:
    """Return facts about this machine as plain values that JSON can hold.

    Args:
        configs: models (:class:`gptoss_ref.config.ModelConfig`) by name, whose speed is predicted.
        megabytes: size of the array that is read; 64 or more, and more than the caches hold.
        seconds: approximate duration of each of the two measurements.

    Raises:
        GptOssError: see :func:`bandwidth`.
    """
    plain, prefetching = bandwidth(megabytes, seconds)
    best = max(plain, prefetching)
    wanted = set().union(*NEEDS.values()) | {"f16c", "avx512bf16", "amx-int8"}
    return {
        "machine": platform.machine(),
        "cpu": llvmlite.binding.get_host_cpu_name(),
        "cpu_features": sorted(wanted & cpu_features()),
        "instruction_paths": list(available_paths()),
        "instruction_path": path_name(),
        "threads": current_threads(),
        "threading_layer": threading_layer(),
        "cache_folder": None if (folder := cache_folder()) is None else str(folder),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
            "llvm": ".".join(map(str, llvmlite.binding.llvm_version_info)),
        },
        "read_gigabytes_per_second": {"plain": plain, "prefetching": prefetching},
        "predicted_tokens_per_second": {
            name: 1e9 * best / bytes_per_token(config) for name, config in (configs or {}).items()
        },
    }


def bytes_per_token(config: Any) -> float:
    """Return the bytes of weights that one token reads: bfloat16, and MXFP4 for its experts.

    Keys and values are not included: they depend on the length of the context.
    """
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    C, H, K = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    E, A = config.num_experts, config.experts_per_token
    attention = 2 * (D * C * (2 * H + 2 * K) + C * (H + 2 * K) + H + 2 * D)
    router = 2 * (E * D + E + D)
    chosen = A * (3 * D * F * MXFP4_BYTES + 2 * (2 * F + D))
    unembedding = 2 * (V * D + D + D)
    return float(config.num_hidden_layers * (attention + router + chosen) + unembedding)


def bandwidth(megabytes: int = 1024, seconds: float = 1.0) -> tuple[float, float]:
    """Return the GB/s that all threads read together, without and with prefetch instructions.

    Each is the median of several reads of an array of the given size; the two kinds alternate.

    Raises:
        GptOssError: kernels are not compiled (``NUMBA_DISABLE_JIT``), the array would fit into the
            caches, or there is not enough memory for it.
    """
    if config.DISABLE_JIT:
        raise GptOssError(
            "the doctor measures compiled kernels, and NUMBA_DISABLE_JIT is set: unset it"
        )
    if megabytes < LEAST_MEGABYTES:
        raise GptOssError(
            f"{megabytes} MB lie in the caches: expected {LEAST_MEGABYTES} or more, to read memory"
        )
    try:
        words = np.ones(megabytes << 17, np.int64)
    except (MemoryError, OverflowError, ValueError) as error:
        raise GptOssError(f"no memory for an array of {megabytes} MB to read") from error
    n = current_threads()
    rates: tuple[list[float], list[float]] = ([], [])
    _read(words, False, n)  # compiles, and maps the pages
    end = time.perf_counter() + 2 * seconds
    while time.perf_counter() < end or len(rates[0]) < 3:
        for prefetching in (False, True):
            start = time.perf_counter()
            _read(words, prefetching, n)
            rates[prefetching].append(words.nbytes / (time.perf_counter() - start) / 1e9)
    return float(np.median(rates[0])), float(np.median(rates[1]))


def _read(words: Array, prefetching: bool, n: int) -> int:
    """Return the sum of all words, so that they are read; ``n`` threads take equal parts."""
    total = np.zeros(n, np.int64)
    run(_read_words, n, max(words.size, SMALL + 1), words, prefetching, total)
    return int(total.sum())


@jit
def _read_words(*arguments: Any) -> None:
    _read_parts(*arguments)


@jit_tasks
def _read_parts(words: Any, prefetching: bool, total: Any, first: int, last: int) -> None:
    """Sum parts ``first`` … ``last`` − 1 of the words, each into its own element of ``total``."""
    n = total.size
    for t in range(first, last):
        start, stop = t * words.size // n, (t + 1) * words.size // n
        if prefetching:
            total[t] = _sum_prefetching(words, start, (stop - start) // (4 * _LINE // 8))
        else:
            for word in words[start:stop]:
                total[t] += word


def _emit_sum(builder: ir.IRBuilder, words: Any, start: Any, steps: Any) -> Any:
    """Return the sum of ``steps`` times four cache lines."""
    data, type_ = builder.gep(words, [start]), vec.vector(vec.i64, _LINE // 8)
    sums = vec.Accumulators(builder, 1, 4, type_)
    with cgutils.for_range(builder, steps) as loop:
        base = builder.mul(loop.index, vec.index(4 * type_.count))
        for line in range(4):
            at = builder.add(base, vec.index(line * type_.count))
            vec.prefetch(builder, data, at, vec.NEAR)
            sums[0, line] = builder.add(sums[0, line], vec.load(builder, data, at, type_))
    total = builder.add(builder.add(sums[0, 0], sums[0, 1]), builder.add(sums[0, 2], sums[0, 3]))
    return vec.call(builder, f"llvm.vector.reduce.add.v{type_.count}i64", vec.i64, total)


_sum_prefetching = vec.instructions(_emit_sum, types.int64)
