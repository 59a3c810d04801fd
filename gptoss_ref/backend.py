"""Backends: records of the layer functions that a model calls.

A model calls its layers through a backend, so one layer can be replaced without changing the rest:
``dataclasses.replace(NUMPY, attention=mine)`` is a backend whose attention is ``mine``.

``numpy`` is the specification, under every policy. ``numba`` computes the same with compiled
kernels, under the float32 policy; numba is imported when that backend is first used. ``auto`` is
``numba``, except for a small model while its kernels are not compiled: then it is ``numpy``, which
answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from gptoss_ref import layers
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import FLOAT32, Array, Policy
from gptoss_ref.weights import MXFP4, ModelWeights, RouterOutput


@dataclass(frozen=True)
class Backend:
    """Layer functions with the signatures of :mod:`gptoss_ref.layers`."""

    name: str
    embedding: Callable[..., Array]
    rmsnorm: Callable[..., Array]
    linear: Callable[..., Array]
    rope_tables: Callable[..., tuple[Array, Array]]
    rope: Callable[..., Array]
    attention_weights: Callable[..., Array]
    attention: Callable[..., Array]
    router: Callable[..., RouterOutput]
    experts: Callable[..., Array]

    def blocks(self, config: ModelConfig, weights: ModelWeights) -> Callable[..., None] | None:
        """A function that computes all blocks for one token, or None if there is none.

        None if any layer function was replaced. See ``kernels/decode_step.py``.
        """
        for backend, make in _BLOCKS:
            if backend == self:
                return make(config, weights)
        return None


_BLOCKS: list[tuple[Backend, Callable[..., Callable[..., None] | None]]] = []

NUMPY = Backend(
    name="numpy",
    embedding=layers.embedding,
    rmsnorm=layers.rmsnorm,
    linear=layers.linear,
    rope_tables=layers.rope_tables,
    rope=layers.rope,
    attention_weights=layers.attention_weights,
    attention=layers.attention,
    router=layers.router,
    experts=layers.experts,
)


@cache
def _numba() -> Backend:
    from gptoss_ref import kernels
    from gptoss_ref.kernels.decode_step import blocks_of
    from gptoss_ref.kernels.runtime.isa import path_name

    path_name()  # raises if GPTOSS_REF_KERNELS names an instruction path that cannot run here
    backend = Backend(
        name="numba",
        embedding=kernels.embedding,
        rmsnorm=kernels.rmsnorm,
        linear=kernels.linear,
        rope_tables=kernels.rope_tables,
        rope=kernels.rope,
        attention_weights=layers.attention_weights,
        attention=kernels.attention,
        router=kernels.router,
        experts=kernels.experts,
    )
    _BLOCKS.append((backend, blocks_of))
    return backend


BACKENDS: dict[str, Callable[[], Backend]] = {"numba": _numba, "numpy": lambda: NUMPY}


SMALL = 1 << 28
"""Size of the weights in bytes below which NumPy answers sooner than kernels compile."""


def is_small(weights: ModelWeights) -> bool:
    """Whether the NumPy layers compute a token with these weights in a fraction of a second."""
    arrays = (
        array
        for part in weights.named().values()
        for array in ((part.blocks, part.scales) if isinstance(part, MXFP4) else (part,))
    )
    return sum(getattr(array, "nbytes", 0) for array in arrays) < SMALL


def compiled(width: int | None = None) -> bool:
    """Whether a model's kernels for this machine's instructions are in the kernel cache.

    Args:
        width: of the model, ``config.width``; None: of all models.
    """
    from gptoss_ref.kernels.runtime.jit import INTERPRETED
    from gptoss_ref.kernels.runtime.warmup import is_warm

    return is_warm(width) and not INTERPRETED


def get_backend(
    backend: str | Backend,
    policy: Policy = FLOAT32,
    weights: ModelWeights | None = None,
    width: int | None = None,
) -> Backend:
    """The backend with that name, or the NumPy one if that backend does not support the policy.

    Args:
        weights: of the model; ``"auto"`` is ``"numpy"`` if they are small and the model's kernels
            are not compiled, else ``"numba"``.
        width: of the model, ``config.width``; None: the kernels of all models must be compiled.

    Raises:
        GptOssError: the name is unknown, or ``GPTOSS_REF_KERNELS`` names instructions that this
            machine does not have.
    """
    if isinstance(backend, Backend):
        return backend
    if backend not in ("auto", *BACKENDS):
        raise GptOssError(
            f"unknown backend {backend!r}: expected one of auto, {', '.join(BACKENDS)}"
        )
    if policy.name != "float32":
        return NUMPY
    if backend == "auto":
        small = weights is not None and is_small(weights)
        backend = "numpy" if small and not compiled(width) else "numba"
    return BACKENDS[backend]()
