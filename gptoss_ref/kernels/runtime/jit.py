"""How kernels are compiled: Numba's options, and the cache on disk.

This is the only file that passes options to Numba. Nothing compiles when it is imported: a kernel
compiles when it is first called with arguments of some types, and is then kept on disk.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import caching, config

from gptoss_ref.kernels.runtime.parts import KERNEL, PART

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
"""Of every kernel: the GIL is released, a division by zero gives an infinity, as in NumPy, and none
is called from C."""

DOT_PRODUCT = {"contract", "reassoc"}
"""Liberties of a dot product: fused multiply-add, and several partial sums. Never ``nnan`` or
``ninf``: NaN and infinities must propagate, and masks are −inf."""

LEAF: dict[str, Any] = {
    "strict": False,
    "jit_options": OPTIONS | PART | {"fastmath": DOT_PRODUCT},
}
"""Of ``numba.extending.overload``: how a leaf is given its forms for the paths."""

INTERPRETED = bool(config.DISABLE_JIT)
"""Whether ``NUMBA_DISABLE_JIT`` is set: kernels are plain Python, to be stepped through."""

INLINED: dict[str, Any] = {
    "strict": False,
    "jit_options": LEAF["jit_options"] | {"forceinline": True},
}
"""The same for a leaf that is called for every row: a call with arrays costs more than ten ns."""

when_compiling: list[Callable[[], None]] = []
"""Called each time that a kernel is about to be compiled (``warmup`` tells the user)."""


def jit(function: F) -> F:
    """A kernel that runs on the calling thread."""
    return _compiled_lazily(function)


def jit_dot(function: F) -> F:
    """A leaf that may reorder and fuse its sums of products."""
    return _compiled_lazily(function, fastmath=DOT_PRODUCT)


def jit_inner(function: F, **options: Any) -> F:
    """A part of kernels that only they call (``parts.py``): Python cannot call it."""
    return cast(F, numba.njit(**OPTIONS | PART | options)(function))


def jit_dot_inner(function: F) -> F:
    """A part that may reorder and fuse its sums of products, put where it is called."""
    return jit_inner(function, fastmath=DOT_PRODUCT, forceinline=True)


def jit_parallel(function: F) -> F:
    """A kernel whose ``prange`` loop runs on Numba's threads."""
    return _compiled_lazily(function, parallel=True)


def _compiled_lazily(function: F, **options: Any) -> F:
    own = {} if "parallel" in options else KERNEL
    dispatcher = numba.njit(**OPTIONS | own | options)(function)
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
            for told in when_compiling:
                told()
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
    root = Path(__file__).parents[1]
    for source in sorted(root.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode() + source.read_bytes())
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
