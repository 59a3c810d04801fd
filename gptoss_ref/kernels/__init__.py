"""The hot path: every layer of gpt-oss as a Numba kernel, named as in :mod:`gptoss_ref.layers`.

A kernel has the signature of its layer and equals it under the float32 policy, within the bound
that its file states. It shares no computation with it. Only ``threads`` and ``sampling`` are no
layers. Importing this package compiles nothing: see :mod:`gptoss_ref.kernels.runtime.jit`.
"""

from importlib import import_module
from typing import Any

from gptoss_ref.kernels import mxfp4, sampling
from gptoss_ref.kernels.attention import attention, attention_weights
from gptoss_ref.kernels.embedding import embedding
from gptoss_ref.kernels.experts import experts
from gptoss_ref.kernels.linear import linear
from gptoss_ref.kernels.rmsnorm import rmsnorm
from gptoss_ref.kernels.rope import rope, rope_tables, yarn
from gptoss_ref.kernels.router import router
from gptoss_ref.kernels.runtime import announce  # noqa: F401  (tells the user of compilation)
from gptoss_ref.kernels.runtime.threads import threads
from gptoss_ref.kernels.swiglu import swiglu
from gptoss_ref.weights import RouterOutput

__all__ = [
    "RouterOutput",
    "attention",
    "attention_weights",
    "embedding",
    "experts",
    "linear",
    "mxfp4",
    "rmsnorm",
    "rope",
    "rope_tables",
    "router",
    "sampling",
    "swiglu",
    "threads",
    "yarn",
]


def __getattr__(name: str) -> Any:
    if name in ("doctor", "warmup"):  # loaded when asked for: they import every kernel
        return import_module(f"gptoss_ref.kernels.runtime.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
