"""Compilation of kernels: Numba's options, and the cache on disk.

Only this file passes options to Numba. Importing it compiles nothing: a kernel is compiled when it
is first called with arguments of some types, and is then stored on disk.

A **part** is a function that only kernels call. Numba optimises each function and makes machine
code of it, and does both again in each kernel that contains the function. For a part the first time
is wasted. Therefore parts have their own compiler pipeline: the LLVM code from Numba's lowering is
linked into the kernel without changes, and is optimised there. Kernels skip Numba's first
optimisation, whose only purpose is to save memory. This uses undocumented interfaces of Numba. If
they are missing, functions are compiled as usual.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import caching, codegen, compiler, config
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import IRLegalization
from numba.extending import overload

F = TypeVar("F", bound=Callable[..., Any])


class _KernelLibrary(codegen.JITCodeLibrary):
    """The LLVM code of a kernel."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        """Keep the parts to this kernel.

        Their names count functions as a process compiles them. If they were visible, a kernel from
        the cache could call a part of another kernel, from another process, that has the same name.
        """
        super()._optimize_final_module()
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage.name == "linkonce_odr":
                function.linkage = "internal"


class _PartLibrary(_KernelLibrary):
    """The LLVM code of a part, which is never optimised or made executable by itself."""

    def finalize(self) -> None:
        """Link the functions that the part calls."""
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: a part has no address."""
        return 0

    @property
    def codegen(self) -> Any:
        """Return the object in which Numba sets the addresses of Python objects."""
        return self

    def set_env(self, name: str, env: Any) -> None:
        """Do nothing: a part has no Python objects."""


def _pipeline(library: type) -> type:
    """Return Numba's compiler with libraries of the given type."""

    @register_pass(mutates_CFG=False, analysis_only=False)
    class TakeLibrary(LoweringPass):
        _name = f"gptoss_ref{library.__name__}"

        def __init__(self) -> None:
            LoweringPass.__init__(self)

        def run_pass(self, state: Any) -> bool:
            state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
            state.library.enable_object_caching()
            return False

    class Compiler(compiler.CompilerBase):
        def define_pipelines(self) -> list[Any]:
            pipeline = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
            pipeline.add_pass_after(TakeLibrary, IRLegalization)
            pipeline.finalize()
            return [pipeline]

    return Compiler


_USED = {"_final_module", "_get_module_for_linking", "_raise_if_finalized", "link_in"}
_FOUND = (
    hasattr(codegen.CPUCodeLibrary, "_optimize_functions")
    and hasattr(codegen.CPUCodeLibrary, "_optimize_final_module")
    and set(codegen.CPUCodeLibrary.finalize.__code__.co_names) >= _USED
)

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
"""Options of every kernel: it releases the GIL, a division by zero gives an infinity as in NumPy,
and there is no wrapper for calls from C."""

DOT_PRODUCT = {"contract", "reassoc"}
"""What the compiler may do in a dot product: use fused multiply-add, and keep several partial sums.
``nnan`` and ``ninf`` are never used: NaN and infinities must propagate, and masks are −inf."""

_KERNEL: dict[str, Any] = {"pipeline_class": _pipeline(_KernelLibrary)} if _FOUND else {}
_PART: dict[str, Any] = {"no_cpython_wrapper": True} | (
    {"pipeline_class": _pipeline(_PartLibrary)} if _FOUND else {}
)
_LEAF = OPTIONS | _PART | {"fastmath": DOT_PRODUCT}
LEAF: dict[str, Any] = {"strict": False, "jit_options": _LEAF}
"""Arguments of ``numba.extending.overload`` for a leaf, which has an implementation per path."""

INLINED: dict[str, Any] = {"strict": False, "jit_options": _LEAF | {"forceinline": True}}
"""The same for a leaf of every row, which is inlined: a call with arrays takes more than 10 ns."""

INTERPRETED = bool(config.DISABLE_JIT)
"""Whether ``NUMBA_DISABLE_JIT`` is set: a debugger can then step through the kernels."""

when_compiling: list[Callable[[], None]] = []
"""Functions that are called before each compilation (``warmup`` tells the user)."""


def jit(function: F) -> F:
    """Compile a kernel that runs on the calling thread."""
    return _compiled_lazily(function)


def jit_inner(function: F, **options: Any) -> F:
    """Compile a function that only kernels call; Python cannot call it."""
    return cast(F, numba.njit(**OPTIONS | _PART | options)(function))


def jit_dot_inner(function: F) -> F:
    """Like :func:`jit_inner`, inlined; its sums of products may be reordered and fused."""
    return jit_inner(function, fastmath=DOT_PRODUCT, forceinline=True)


def jit_parallel(function: F) -> F:
    """Compile a kernel whose ``prange`` loop runs on Numba's threads."""
    return _compiled_lazily(function, parallel=True)


def by_types(
    python: Callable[..., Any], *, checked: bool = False, **options: Any
) -> Callable[[F], F]:
    """Let kernels call, in place of ``python``, the function that the decorated one returns.

    The decorated function gets the Numba types of the arguments. If ``checked``, ``python`` itself
    is compiled under ``NUMBA_BOUNDSCHECK``. ``options``: LEAF or INLINED.
    """

    def decorate(choose: F) -> F:
        @overload(python, **(options or LEAF))
        def chosen(*types: Any) -> Any:
            if checked and config.BOUNDSCHECK:
                return python
            function = choose(*types)
            return lambda *arguments: function(*arguments)

        return choose

    return decorate


def dispatched(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls the function which ``choose`` returns.

    ``choose`` gets the arguments or, when a kernel is compiled, their Numba types.
    """

    @wraps(choose)
    def function(*arguments: Any) -> Any:
        return choose(*arguments)(*arguments)

    by_types(function)(choose)
    return function


def _compiled_lazily(function: F, **options: Any) -> F:
    own = {} if "parallel" in options else _KERNEL
    dispatcher = numba.njit(**OPTIONS | own | options)(function)
    if not config.DISABLE_JIT:
        dispatcher._cache = _LazyCache(function)
    return cast(F, dispatcher)


class _LazyCache:
    """Numba's cache of one function, opened when the function is first compiled or loaded.

    Numba's own ``cache=True`` accesses the disk when a function is *defined*, and raises if it
    finds no folder. Here kernels are then compiled in memory, with one warning.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @cached_property
    def _opened(self) -> Any:
        folder = cache_folder()
        if folder is None:
            return caching.NullCache()
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        try:
            return caching.FunctionCache(self._function)
        finally:
            config.CACHE_DIR = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        kept = self._opened.load_overload(sig, target_context)
        if kept is None:
            for told in when_compiling:
                told()
        return kept


@cache
def cache_folder() -> Path | None:
    """Return the folder of the compiled kernels, or None if it cannot be written (one warning).

    The folder is in ``NUMBA_CACHE_DIR`` if this is set, else in the user's cache folder, so that an
    installation may be read-only. Its name has a digest of the sources of all kernels, because
    Numba notices changes in a function's own file but not in the functions that it calls, and of
    ``NUMBA_BOUNDSCHECK``, which is not part of Numba's keys.
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
        os.utime(folder)  # the time of last use, for ``warmup.drop_unused``
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
