"""Parts of kernels: functions that only kernels call, compiled only inside these kernels.

Numba optimises each function and makes machine code of it, and does both again in each kernel that
contains the function. For a part the first time is wasted. Therefore parts have their own compiler
pipeline: the LLVM code from Numba's lowering is linked into the kernel without changes, and is
optimised there. Kernels skip Numba's first optimisation, whose only purpose is to save memory.

This uses undocumented interfaces of Numba. If they are missing, ``PART`` and ``KERNEL`` do not
contain the pipelines, and functions are compiled as usual.
"""

from __future__ import annotations

from typing import Any

from numba.core import codegen, compiler
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import IRLegalization


class _KernelLibrary(codegen.JITCodeLibrary):
    """The LLVM code of a kernel."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout


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
    and set(codegen.CPUCodeLibrary.finalize.__code__.co_names) >= _USED
)

KERNEL: dict[str, Any] = {"pipeline_class": _pipeline(_KernelLibrary)} if _FOUND else {}
"""Options of ``numba.njit`` for a kernel."""

PART: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True} | (
    {"pipeline_class": _pipeline(_PartLibrary)} if _FOUND else {}
)
"""Options of ``numba.njit`` for a part."""
