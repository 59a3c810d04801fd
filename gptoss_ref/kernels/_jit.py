"""How kernels are compiled: Numba's options, the cache on disk, and which instructions are used.

This is the only file that passes options to Numba. Nothing compiles when it is imported: a kernel
compiles when it is first called with arguments of some types, and is then kept on disk.

**Instruction paths.** A few innermost loops exist twice: as a plain loop, which any CPU runs, and
as vector instructions of one family of CPUs. Numba specialises a function on the *types* of its
arguments, so the path travels as the type of a first argument ``path`` (whose value is never
read), and one source of a kernel serves all paths:

===========  ===================  ==============================================================
path         type of ``path``     needs
===========  ===================  ==============================================================
``plain``    uint8                nothing; also what runs under ``NUMBA_DISABLE_JIT=1``
``avx2``     uint16               AVX2 and FMA
``avx512``   uint32               AVX-512 F, BW, VL and VNNI
``amx``      uint32               those, AMX for bfloat16, and Linux, which grants its use
===========  ===================  ==============================================================

``amx`` differs from ``avx512`` in products of several rows of activations only, where Python calls
kernels of their own (``_tiles.py``); leaves need not know it.

The best path that the CPU has is taken; the environment variable ``GPTOSS_REF_KERNELS`` names a
lesser one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numba.core import caching, config
from numba.core.codegen import get_host_cpu_features

from gptoss_ref.errors import GptOssError

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
"""Of every kernel: the GIL is released, a division by zero gives an infinity, as in NumPy, and none
is called from C."""

DOT_PRODUCT = {"contract", "reassoc"}
"""Liberties of a dot product: fused multiply-add, and several partial sums. Never ``nnan`` or
``ninf``: NaN and infinities must propagate, and masks are −inf."""

PATHS: dict[str, Any] = {
    "amx": np.uint32(0),
    "avx512": np.uint32(0),
    "avx2": np.uint16(0),
    "plain": np.uint8(0),
}
"""Every path, best first, and the argument that stands for it."""

PATH_TYPES = {"avx512": types.uint32, "avx2": types.uint16, "plain": types.uint8}

_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx2", "fma"}
NEEDS = {
    "amx": _AVX512 | {"amx-tile", "amx-bf16"},
    "avx512": _AVX512,
    "avx2": {"avx2", "fma"},
    "plain": set[str](),
}

ENVIRONMENT = "GPTOSS_REF_KERNELS"


def jit(function: F) -> F:
    """A kernel that runs on the calling thread."""
    return _compiled_lazily(function)


def jit_dot(function: F) -> F:
    """A leaf that may reorder and fuse its sums of products."""
    return _compiled_lazily(function, fastmath=DOT_PRODUCT)


def jit_inner(function: F, **options: Any) -> F:
    """A part of kernels that only they call: its entry for Python, long to compile, is left out.

    It is kept on disk in the kernels that contain it, not by itself.
    """
    return cast(F, numba.njit(**OPTIONS, no_cpython_wrapper=True, **options)(function))


def jit_parallel(function: F) -> F:
    """A kernel whose ``prange`` loop runs on Numba's threads."""
    return _compiled_lazily(function, parallel=True)


def _compiled_lazily(function: F, **options: Any) -> F:
    dispatcher = numba.njit(**OPTIONS, **options)(function)
    if not config.DISABLE_JIT:
        dispatcher._cache = _LazyCache(function)
    return cast(F, dispatcher)


class _LazyCache(caching.NullCache):
    """Numba's cache of one function, opened when the function is first compiled or loaded.

    Numba's own ``cache=True`` touches the disk when a function is *defined*, and raises where it
    finds no folder; kernels then compile in memory instead, with one warning.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._opened: Any = None

    def _open(self) -> Any:
        if self._opened is None:
            folder = cache_folder()
            if folder is None:
                self._opened = caching.NullCache()
            else:
                before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
                try:
                    self._opened = caching.FunctionCache(self._function)
                finally:
                    config.CACHE_DIR = before
        return self._opened

    @property
    def cache_path(self) -> Any:
        return self._open().cache_path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        kept = self._open().load_overload(sig, target_context)
        if kept is None:
            from gptoss_ref.kernels.warmup import announce  # which imports every kernel

            announce()
        return kept

    def save_overload(self, sig: Any, data: Any) -> None:
        self._open().save_overload(sig, data)

    def flush(self) -> None:
        self._open().flush()


@cache
def cache_folder() -> Path | None:
    """Folder of the compiled kernels, or None (after one warning) where none can be written.

    It lies in ``NUMBA_CACHE_DIR`` if that is set, else in the user's cache folder, so that an
    installation may be read-only. Its name holds a digest of the kernels' sources (Numba itself
    notices only that a function's own file changed, not what the function calls) and of
    ``NUMBA_BOUNDSCHECK``, which Numba's own keys leave out.
    """
    digest = hashlib.sha256(b"bounds checked" if config.BOUNDSCHECK else b"")
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    base = config.CACHE_DIR or os.path.join(_user_cache_folder(), "gptoss_ref")
    folder = Path(base) / f"kernels-{digest.hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        os.utime(folder)  # when it was last used, for ``warmup.drop_unused``
    except OSError as error:
        warnings.warn(
            f"cannot write to the kernel cache {folder} ({error.strerror}): kernels are compiled "
            f"again in every process; set NUMBA_CACHE_DIR to a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return folder


def _user_cache_folder() -> str:
    home = os.path.expanduser("~")
    if sys.platform == "darwin":
        return os.path.join(home, "Library", "Caches")
    if sys.platform == "win32":
        return os.environ.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
    return os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")


@cache
def cpu_features() -> frozenset[str]:
    """LLVM's names of the features that kernels are compiled for, such as ``avx2``."""
    chosen = config.CPU_FEATURES  # None: those of this CPU
    flags = get_host_cpu_features() if chosen is None else chosen
    return frozenset(flag[1:] for flag in flags.split(",") if flag.startswith("+"))


@cache
def available_paths() -> tuple[str, ...]:
    """Names of the paths that this process can run, best first; ``plain`` is always the last."""
    if config.DISABLE_JIT:
        return ("plain",)
    fitting = (path for path in PATHS if cpu_features() >= NEEDS[path])
    return tuple(path for path in fitting if path != "amx" or _tiles_granted())


@cache
def _tiles_granted() -> bool:
    """Ask Linux for the use of AMX's tile registers, which it grants to a process that asks."""
    if sys.platform != "linux":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # numbers of x86-64
    refused = ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data)
    return bool(refused == 0)


_forced: list[str] = []


@contextmanager
def instructions(path: str) -> Iterator[None]:
    """Within this context, kernels called from any thread take ``path``.

    Raises:
        GptOssError: this CPU cannot run the path, or there is none of that name.
    """
    _forced.append(_checked(path))
    try:
        yield
    finally:
        _forced.pop()


def current_path() -> Any:
    """The first argument of a kernel: it stands for the path to take."""
    return PATHS[path_name()]


def path_name() -> str:
    """Name of the path that kernels take now."""
    return _forced[-1] if _forced else _default_path()


def tiles() -> bool:
    """Whether products of several rows of activations run on AMX now (``_tiles.py``)."""
    return path_name() == "amx"


@cache
def _default_path() -> str:
    name = os.environ.get(ENVIRONMENT)
    return _checked(name, f"{ENVIRONMENT}=") if name else available_paths()[0]


def _checked(path: str, source: str = "") -> str:
    if path not in available_paths():
        raise GptOssError(
            f"{source}{path}: expected an instruction path that this process can run: "
            f"{', '.join(available_paths())}"
        )
    return path
