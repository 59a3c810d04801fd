"""Backends: a record of layer functions, the one seam between the model and what computes it.

A model calls its layers through a backend, so one layer can be exchanged without touching the rest:
``dataclasses.replace(NUMPY, attention=mine)`` is a backend whose attention is ``mine``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gptoss_ref import layers
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array
from gptoss_ref.routing import RouterOutput


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

BACKENDS = {backend.name: backend for backend in (NUMPY,)}


def get_backend(backend: str | Backend) -> Backend:
    """The backend of that name.

    Raises:
        GptOssError: no backend has that name.
    """
    if isinstance(backend, Backend):
        return backend
    if backend not in BACKENDS:
        raise GptOssError(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    return BACKENDS[backend]
