"""Compilation of the kernels of a chat ahead of time.

A kernel is compiled when it is first called. :func:`warmup` calls each kernel that a chat uses with
small arrays of the types that a checkpoint gives: for one token and for several, and for sizes with
and without threads. Kernels that are in the cache folder are loaded instead of compiled. Experts of
small models have kernels of their own (``mxfp4_methods``), so no chat needs all.

Without a warm-up, the first call of a kernel waits for its compilation, and a message says so.
"""

from __future__ import annotations

import gc
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
from numba.core import config

from gptoss_ref.kernels.attention import attention
from gptoss_ref.kernels.decode_step import blocks_of
from gptoss_ref.kernels.embedding import embedding
from gptoss_ref.kernels.experts import experts
from gptoss_ref.kernels.linear import linear
from gptoss_ref.kernels.matmul.mxfp4_methods import WIDE
from gptoss_ref.kernels.rmsnorm import rmsnorm
from gptoss_ref.kernels.rope import rope, rope_tables
from gptoss_ref.kernels.router import router
from gptoss_ref.kernels.runtime.isa import cpu_name, path_name
from gptoss_ref.kernels.runtime.jit import cache_folder, when_compiling
from gptoss_ref.kernels.runtime.threads import current_threads
from gptoss_ref.weights import MXFP4, AttentionWeights, BlockWeights, MLPWeights, ModelWeights

Progress = Callable[[str, int, int], None]
"""Called with the current step's name, the number of finished steps and the number of steps."""

UNUSED = 30 * 24 * 3600
"""Seconds without use after which the folder of another version is removed."""

_FOLDER = re.compile("kernels-[0-9a-f]{12}")
_announced = {"compiling": False}


def _bits(*shape: int) -> Any:
    """Return bfloat16 ones."""
    return np.full(shape, 0x3F80, np.uint16)


def _mxfp4(*shape: int) -> MXFP4:
    *lead, inputs = shape
    blocks = np.zeros((*lead, inputs // 32, 16), np.uint8)
    return MXFP4(blocks, np.full(blocks.shape[:-1], 127, np.uint8))


def _experts(size: int, *numbers_of_tokens: int) -> None:
    first, second = _mxfp4(1, 2 * size, size), _mxfp4(1, size, size)
    for tokens in numbers_of_tokens:
        x = np.ones((tokens, size), np.float32)
        indices, weights = np.zeros((tokens, 1), np.int64), np.ones((tokens, 1), np.float32)
        experts(x, indices, weights, first, _bits(1, 2 * size), second, _bits(1, size))


def _attention(tokens: int) -> None:
    q, k = np.ones((tokens, 2, 32), np.float32), np.ones((128, 2, 32), np.float32)
    positions = np.arange(128)
    attention(q, k, k, _bits(2), positions[-tokens:], positions)


def _small() -> None:
    x = embedding(np.zeros(2, np.int64), _bits(3, 32))
    x = rmsnorm(x, _bits(32))
    rope(x.reshape(2, 2, 16), *rope_tables(np.arange(2), np.ones(8), 1.0))
    router(x, _bits(4, 32), _bits(4), 2)


def _linear(size: int, *numbers_of_tokens: int) -> None:
    for tokens in numbers_of_tokens:
        linear(np.ones((tokens, size), np.float32), _bits(size, size), _bits(size))


class _Room:
    """A layer of a cache with one position."""

    window = None

    def reserved(self, length: int, count: int) -> tuple[_Room, Any, Any, int]:
        keys = np.empty((1, 2, 32), np.float32)
        return self, keys, np.empty_like(keys), length


def _block(size: int) -> None:
    sizes = {"hidden_size": size, "intermediate_size": size, "width": size, "head_dim": 32}
    counts = {"num_attention_heads": 2, "num_key_value_heads": 2}
    experts_ = {"num_experts": 2, "experts_per_token": 1}
    constants = {"rms_norm_eps": 1e-5, "swiglu_alpha": 1.0, "swiglu_limit": 1.0}
    config = SimpleNamespace(**sizes, **counts, **experts_, **constants)
    vector, both = _bits(size), _bits(2, size)
    q_k_v = 3 * (_bits(64, size), _bits(64))
    attn = AttentionWeights(vector, *q_k_v, _bits(2), _bits(size, 64), vector)
    first, second = (_mxfp4(2, 2 * size, size), _bits(2, 2 * size)), (_mxfp4(2, size, size), both)
    mlp = MLPWeights(vector, both, _bits(2), *first, *second)
    weights = ModelWeights(both, (BlockWeights(attn, mlp),), vector, both)
    blocks = blocks_of(config, weights)
    assert blocks is not None
    x, angles = np.ones((1, size), np.float32), np.ones((1, 16), np.float32)
    blocks(x, angles, angles, 0, [_Room()])


SIZES = (64, WIDE)
"""Two widths: of a model whose experts have short rows, and of one with long rows."""

STEPS: tuple[tuple[str, Callable[[], None], tuple[int, ...]], ...] = (
    ("embedding, norms, positions, routing", _small, SIZES),
    ("linear layers", lambda: _linear(64, 1, 3), SIZES),
    ("attention, one token", lambda: _attention(1), SIZES),
    ("attention, several tokens", lambda: _attention(3), SIZES),
    ("experts of a small model", lambda: _experts(SIZES[0], 1, 5), SIZES[:1]),
    ("blocks of a small model, one token", lambda: _block(SIZES[0]), SIZES[:1]),
    ("experts, one token", lambda: _experts(SIZES[1], 1), SIZES[1:]),
    ("experts, several tokens", lambda: _experts(SIZES[1], 5), SIZES[1:]),
    ("blocks, one token", lambda: _block(SIZES[1]), SIZES[1:]),
    ("threads", lambda: _linear(1088, 1), SIZES),
)
"""Name and function of each step, and the widths that need it."""


def warmup(progress: Progress | None = None, *, width: int | None = None) -> None:
    """Compile or load the kernels of a chat, for the current path and number of threads.

    The first warm-up also removes folders of versions that have not been used for 30 days.

    Args:
        progress: called before each step; it replaces the message.
        width: of the model, ``config.width``; None: the kernels for all models.
    """
    sizes = _sizes(width)
    steps = [(name, step) for name, step, of in STEPS if set(of) & set(sizes)]
    tell = progress or (lambda name, done, steps: None)
    _announced["compiling"] |= progress is not None
    collecting = gc.isenabled()
    gc.disable()  # a compiler creates many small objects and few cycles
    try:
        for done, (name, step) in enumerate(steps):
            tell(name, done, len(steps))
            step()
    finally:
        if collecting:
            gc.enable()
    tell("done", len(steps), len(steps))
    folder = cache_folder()
    if folder is not None and not is_warm(width):
        for size in sizes:
            (folder / mark(size)).touch()
        drop_unused(folder)


def _sizes(width: int | None) -> tuple[int, ...]:
    """Return those of :data:`SIZES` that stand for a model, or for all."""
    if width is None:
        return SIZES
    return SIZES[:1] if width < WIDE else SIZES[1:]


def is_warm(width: int | None = None) -> bool:
    """Return whether :func:`warmup` of this ``width`` has run to its end on this path.

    Under ``NUMBA_DISABLE_JIT=1`` nothing is ever compiled, and the answer is True.
    """
    if config.DISABLE_JIT:
        return True
    folder = cache_folder()
    return folder is not None and all((folder / mark(size)).exists() for size in _sizes(width))


def mark(size: int) -> str:
    """Return the name of the marker of a finished warm-up for ``size``, one of :data:`SIZES`.

    It is made from Numba's cache key, and also says whether there are several threads: with one
    core the parallel loop is not compiled.
    """
    kind = "threads" if current_threads() > 1 else "one-thread"
    python = sys.implementation.cache_tag
    return f"warm-{size}-{path_name()}-{kind}-{cpu_name()}-numba{numba.__version__}-{python}"


def drop_unused(folder: Path) -> None:
    """Remove the other folders of kernels beside ``folder`` that were not used for 30 days.

    They belong to other versions of this package; a process that runs such a version compiles its
    kernels again. Only folders whose names match are considered, and no links; a folder that cannot
    be removed stays.
    """
    with suppress(OSError):
        for other in list(folder.parent.iterdir()):
            if _FOLDER.fullmatch(other.name) and other != folder:
                with suppress(OSError):  # another process removes it, or it belongs to another user
                    if time.time() - other.lstat().st_mtime > UNUSED:
                        shutil.rmtree(other)  # raises for a link


def _announce() -> None:
    """Print one line on standard error when the first kernel of this process is compiled.

    Nothing is printed if all kernels of chats are compiled: then a single kernel is compiled, for
    types that a chat does not use.
    """
    if _announced["compiling"] or is_warm():
        return
    _announced["compiling"] = True
    if sys.stderr is not None:  # None under pythonw and in services
        once = ", once" if cache_folder() else ""
        line = f"gptoss_ref: compiling kernels{once} (ahead of time: gptoss-ref warmup)\n"
        with suppress(OSError, ValueError):  # the disk is full, or the stream is closed
            sys.stderr.write(line)
            sys.stderr.flush()


when_compiling.append(_announce)
