"""Compilation of the kernels of a chat ahead of time.

A kernel is compiled when it is first called. :func:`warmup` calls each kernel that a chat uses with
small arrays of the types that a checkpoint gives: for one token and for several, and for sizes with
and without threads. Kernels that are in the cache folder are loaded instead of compiled.

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


def _experts(tokens: int, size: int) -> None:
    x = np.ones((tokens, size), np.float32)
    indices, weights = np.zeros((tokens, 1), np.int64), np.ones((tokens, 1), np.float32)
    first, second = _mxfp4(1, 2 * size, size), _mxfp4(1, size, size)
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


def _linear(tokens: int, size: int) -> None:
    linear(np.ones((tokens, size), np.float32), _bits(size, size), _bits(size))


class _Room:
    """A layer of a cache with one position."""

    window = None

    def reserved(self, length: int, count: int) -> tuple[_Room, Any, Any, int]:
        keys = np.empty((1, 2, 32), np.float32)
        return self, keys, np.empty_like(keys), length


def _block() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 32, "head_dim": 32}
    counts = {"num_attention_heads": 2, "num_key_value_heads": 2}
    experts_ = {"num_experts": 2, "experts_per_token": 1}
    constants = {"rms_norm_eps": 1e-5, "swiglu_alpha": 1.0, "swiglu_limit": 1.0}
    config = SimpleNamespace(**sizes, **counts, **experts_, **constants)
    square, vector, both = _bits(64, 64), _bits(64), _bits(2, 64)
    q_k_v = (square, vector, square, vector, square, vector)
    attn = AttentionWeights(vector, *q_k_v, _bits(2), square, vector)
    mlp = MLPWeights(vector, both, _bits(2), _mxfp4(2, 64, 64), both, _mxfp4(2, 64, 32), both)
    weights = ModelWeights(both, (BlockWeights(attn, mlp),), vector, both)
    blocks = blocks_of(config, weights)
    assert blocks is not None
    x, angles = np.ones((1, 64), np.float32), np.ones((1, 16), np.float32)
    blocks(x, angles, angles, 0, [_Room()])


STEPS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("embedding, norms, positions, routing", _small),
    ("linear layers, one token", lambda: _linear(1, 64)),
    ("linear layers, several tokens", lambda: _linear(3, 64)),
    ("attention, one token", lambda: _attention(1)),
    ("attention, several tokens", lambda: _attention(3)),
    ("experts, one token", lambda: _experts(1, 64)),
    ("experts, several tokens", lambda: _experts(5, 512)),
    ("experts, several tokens, short rows", lambda: _experts(5, 64)),
    ("blocks, one token", _block),
    ("threads", lambda: _linear(1, 1088)),
)


def warmup(progress: Progress | None = None) -> None:
    """Compile or load every kernel of a chat, for the current path and number of threads.

    The first warm-up also removes folders of versions that have not been used for 30 days.

    Args:
        progress: called before each step; it replaces the message.
    """
    tell = progress or (lambda name, done, steps: None)
    _announced["compiling"] |= progress is not None
    collecting = gc.isenabled()
    gc.disable()  # a compiler creates many small objects and few cycles
    try:
        for done, (name, step) in enumerate(STEPS):
            tell(name, done, len(STEPS))
            step()
    finally:
        if collecting:
            gc.enable()
    tell("done", len(STEPS), len(STEPS))
    folder = cache_folder()
    if folder is not None and not (folder / mark()).exists():
        (folder / mark()).touch()
        drop_unused(folder)


def is_warm() -> bool:
    """Return whether :func:`warmup` has run to its end on this path, so nothing is left to compile.

    Under ``NUMBA_DISABLE_JIT=1`` nothing is ever compiled, and the answer is True.
    """
    if config.DISABLE_JIT:
        return True
    folder = cache_folder()
    return folder is not None and (folder / mark()).exists()


def mark() -> str:
    """Return the name of the marker of a finished warm-up, made from Numba's cache key.

    The name also says whether there are several threads: with one core the parallel loop is not
    compiled.
    """
    kind = "threads" if current_threads() > 1 else "one-thread"
    python = sys.implementation.cache_tag
    return f"warm-{path_name()}-{kind}-{cpu_name()}-numba{numba.__version__}-{python}"


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

    Nothing is printed if :func:`is_warm`: then a single kernel is compiled, for types that a chat
    does not use.
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
