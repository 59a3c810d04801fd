"""What this machine gives the kernels: instructions, threads, cache folder, memory bandwidth.

Decoding one token reads every weight it touches once, so bandwidth over bytes is a ceiling of the
tokens per second. The bandwidth is the better of a plain and a prefetching read: on some CPUs the
hardware's own prefetching does not reach memory speed.
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
from numba.extending import intrinsic

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime import llvm_ir as vec
from gptoss_ref.kernels.runtime.isa import NEEDS, available_paths, cpu_features, path_name
from gptoss_ref.kernels.runtime.jit import cache_folder, jit
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import SMALL, current_threads, run, threading_layer
from gptoss_ref.numerics import Array

MXFP4_BYTES = 17 / 32
"""Of one weight: half a byte, and its share of the scale byte."""

LEAST_MEGABYTES = 64
"""Fewer may lie in the caches, whose rate is several times the memory's."""

_LINE = 64
"""Bytes of a cache line."""


def doctor(
    configs: Mapping[str, Any] | None = None, *, megabytes: int = 1024, seconds: float = 1.0
) -> dict[str, Any]:
    """Facts of this machine as plain values, ready for JSON.

    Args:
        configs: models (:class:`gptoss_ref.config.ModelConfig`) whose speed is predicted, by name.
        megabytes: read at a time by the measurement, 64 or more; more than the caches hold.
        seconds: spent on each of the two measurements, about.

    Raises:
        GptOssError: what :func:`bandwidth` refuses.
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
    """Bytes of weights that one token reads: bfloat16, but MXFP4 for its experts.

    Keys and values are left out: they depend on the context's length.
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
    """Gigabytes a second that all threads read together: plainly, and with prefetching.

    The median over several reads, taken in turns, of an array of that size.

    Raises:
        GptOssError: nothing is compiled (``NUMBA_DISABLE_JIT``), the array would fit into caches,
            or there is not so much memory.
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
    _read(words, False, n)  # compiled, and the pages are there
    end = time.perf_counter() + 2 * seconds
    while time.perf_counter() < end or len(rates[0]) < 3:
        for prefetching in (False, True):
            start = time.perf_counter()
            _read(words, prefetching, n)
            rates[prefetching].append(words.nbytes / (time.perf_counter() - start) / 1e9)
    return float(np.median(rates[0])), float(np.median(rates[1]))


def _read(words: Array, prefetching: bool, n: int) -> int:
    """Sum of all words, which is what makes them be read; ``n`` threads take equal parts."""
    total = np.zeros(n, np.int64)
    run(_read_words, n, max(words.size, SMALL + 1), words, prefetching, total)
    return int(total.sum())


@jit
def _read_words(*arguments: Any) -> None:
    _read_parts(*arguments)


@jit_tasks
def _read_parts(words: Any, prefetching: bool, total: Any, first: int, last: int) -> None:
    """Parts ``first`` … ``last`` − 1 of the words, a sum each."""
    n = total.size
    for t in range(first, last):
        start, stop = t * words.size // n, (t + 1) * words.size // n
        if prefetching:
            total[t] = _sum_prefetching(words, start, (stop - start) // (4 * _LINE // 8))
        else:
            part = 0
            for i in range(start, stop):
                part += words[i]
            total[t] = part


@intrinsic
def _sum_prefetching(typing_context: Any, words: Any, start: Any, steps: Any) -> Any:
    """Sum of ``steps`` times four cache lines."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = builder.gep(vec.data(context, builder, words, args[0]), [args[1]])
        type_ = vec.vector(vec.i64, _LINE // 8)
        sums = vec.Accumulators(builder, 1, 4, type_)
        with cgutils.for_range(builder, args[2]) as loop:
            base = builder.mul(loop.index, vec.index(4 * type_.count))
            for line in range(4):
                at = builder.add(base, vec.index(line * type_.count))
                vec.prefetch(builder, data, at, vec.NEAR)
                sums[0, line] = builder.add(sums[0, line], vec.load(builder, data, at, type_))
        total = builder.add(
            builder.add(sums[0, 0], sums[0, 1]), builder.add(sums[0, 2], sums[0, 3])
        )
        result = vec.index(0)
        for lane in range(type_.count):
            result = builder.add(result, builder.extract_element(total, ir.Constant(vec.i32, lane)))
        return result

    return types.int64(words, types.intp, types.intp), generate
