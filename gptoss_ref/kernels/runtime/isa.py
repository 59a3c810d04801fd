"""Choice of the instruction set that kernels use.

Numba specialises a function by the *types* of its arguments. Therefore kernels have a first
argument ``path`` whose type selects the form of the leaves, and whose value is never read:

===========  ===================  ==============================================================
path         type of ``path``     requirements
===========  ===================  ==============================================================
``plain``    uint8                none
``avx2``     uint16               AVX2 and FMA
``avx512``   uint32               AVX-512 F, BW, VL and VNNI
``amx``      uint64               those of ``avx512``, AMX for bfloat16, and permission by Linux
===========  ===================  ==============================================================

Under ``NUMBA_DISABLE_JIT=1`` leaves are Python functions, and every path runs on any CPU.

By default kernels use the best path that the CPU has; the environment variable
``GPTOSS_REF_KERNELS`` selects another one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_name
from numba import typeof, types
from numba.core import config
from numba.core.codegen import get_host_cpu_features

from gptoss_ref.errors import GptOssError

PATHS: dict[str, Any] = {
    "amx": np.uint64(0),
    "avx512": np.uint32(0),
    "avx2": np.uint16(0),
    "plain": np.uint8(0),
}
"""All paths, best first, with the argument that selects each."""

_NAMES = {key(value): name for name, value in PATHS.items() for key in (type, typeof)}

_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx2", "fma"}
NEEDS = {
    "amx": _AVX512 | {"amx-tile", "amx-bf16"},
    "avx512": _AVX512,
    "avx2": {"avx2", "fma"},
    "plain": set[str](),
}

ENVIRONMENT = "GPTOSS_REF_KERNELS"


def name_of(path: Any) -> str:
    """Return a path's name, given a value of :data:`PATHS` or, during compilation, its type."""
    return _NAMES[path if isinstance(path, types.Type) else type(path)]


def lanes_of(path: Any) -> int:
    """Return the number of floats in a vector of this path."""
    return 16 if name_of(path) in ("amx", "avx512") else 8


@cache
def cpu_name() -> str:
    """Return LLVM's name of the CPU that kernels are compiled for, such as ``znver4``."""
    return str(config.CPU_NAME or get_host_cpu_name())


@cache
def cpu_features() -> frozenset[str]:
    """Return LLVM's names of the features that kernels are compiled for, such as ``avx2``."""
    chosen = config.CPU_FEATURES  # None means those of this CPU
    flags = get_host_cpu_features() if chosen is None else chosen
    return frozenset(flag[1:] for flag in flags.split(",") if flag.startswith("+"))


@cache
def available_paths() -> tuple[str, ...]:
    """Return the names of the paths that this process can run, best first; ``plain`` is the last.

    Without compilation all paths can run, because Python functions replace the instructions.
    """
    if config.DISABLE_JIT:
        return tuple(PATHS)
    fitting = (path for path in PATHS if cpu_features() >= NEEDS[path])
    return tuple(path for path in fitting if path != "amx" or _tiles_granted())


@cache
def _tiles_granted() -> bool:
    """Ask Linux for permission to use AMX's tile registers; return whether it was granted."""
    if sys.platform != "linux":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # numbers of x86-64
    refused = ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data)
    return bool(refused == 0)


_forced: list[str] = []


@contextmanager
def instructions(path: str) -> Iterator[None]:
    """Within this context, kernels use ``path``, from whichever thread they are called.

    Raises:
        GptOssError: this CPU cannot run the path, or the name is unknown.
    """
    _forced.append(_checked(path))
    try:
        yield
    finally:
        _forced.pop()


def current_path() -> Any:
    """Return the first argument of a kernel, which selects the path."""
    return PATHS[path_name()]


def path_name() -> str:
    """Return the name of the path that kernels use now."""
    return _forced[-1] if _forced else _default_path()


@cache
def _default_path() -> str:
    name = os.environ.get(ENVIRONMENT)
    if name:
        return _checked(name, f"{ENVIRONMENT}=")
    return "plain" if config.DISABLE_JIT else available_paths()[0]


def _checked(path: str, source: str = "") -> str:
    if path not in available_paths():
        raise GptOssError(
            f"{source}{path}: expected an instruction path that this process can run: "
            f"{', '.join(available_paths())}"
        )
    return path
