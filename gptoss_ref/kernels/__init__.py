"""Every layer of gpt-oss as a Numba kernel, named as in :mod:`gptoss_ref.layers`.

A kernel has the signature of its layer and gives the layer's result under the float32 policy,
within the error bound that its file states. Kernels and layers share no computation, so each can
test the other. ``threads`` is the only name here that is not a layer. There is no kernel for what a
model computes once when it is loaded (``yarn``, the conversion of MXFP4), nor for the weights of
attention, which only observers see. Importing this package compiles nothing: see
:mod:`gptoss_ref.kernels.runtime.jit`.

These words have one meaning in all files of this package:

path
    The family of instructions that a kernel uses: ``plain``, ``avx2``, ``avx512`` or ``amx``
    (``runtime/isa.py``).
task
    A part of a kernel's work that does not depend on any other part (``runtime/threads.py``).
team
    The threads that share the tasks of a kernel (``runtime/tasks.py``).
leaf
    An innermost function, such as a dot product. A leaf may have one implementation per path.
panel
    Some rows of a matrix stored side by side, inner index first (``matmul/register_tile.py``).
plane
    One of the parts into which floats are split without loss (``matmul/amx.py``).
L1, L2, L3
    The first-, second- and third-level cache of the CPU.
"""

from importlib import import_module
from typing import Any

from gptoss_ref.kernels.attention import attention
from gptoss_ref.kernels.embedding import embedding
from gptoss_ref.kernels.experts import experts
from gptoss_ref.kernels.linear import linear
from gptoss_ref.kernels.rmsnorm import rmsnorm
from gptoss_ref.kernels.rope import rope, rope_tables
from gptoss_ref.kernels.router import router
from gptoss_ref.kernels.runtime import warmup  # noqa: F401  (tells the user of compilation)
from gptoss_ref.kernels.runtime.threads import threads
from gptoss_ref.kernels.swiglu import swiglu
from gptoss_ref.weights import RouterOutput

__all__ = [
    "RouterOutput",
    "attention",
    "embedding",
    "experts",
    "linear",
    "rmsnorm",
    "rope",
    "rope_tables",
    "router",
    "swiglu",
    "threads",
]


def __getattr__(name: str) -> Any:
    if name == "doctor":
        return import_module("gptoss_ref.kernels.runtime.doctor")
    if name == "sampling":  # a former name
        return import_module("gptoss_ref.sampling")
    if name in ("attention_weights", "mxfp4", "yarn"):  # the layers' are the only ones
        return getattr(import_module("gptoss_ref.layers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
