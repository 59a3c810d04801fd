"""The message that kernels are being compiled, and the check whether they have been."""

from __future__ import annotations

import sys
from contextlib import suppress

import numba
from llvmlite.binding import get_host_cpu_name
from numba.core import config

from gptoss_ref.kernels.runtime.isa import path_name
from gptoss_ref.kernels.runtime.jit import cache_folder, when_compiling
from gptoss_ref.kernels.runtime.threads import current_threads

announced = {"compiling": False}


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
    cpu = config.CPU_NAME or get_host_cpu_name()
    kind = "threads" if current_threads() > 1 else "one-thread"
    python = sys.implementation.cache_tag
    return f"warm-{path_name()}-{kind}-{cpu}-numba{numba.__version__}-{python}"


def announce() -> None:
    """Print one line on standard error when the first kernel of this process is compiled.

    Nothing is printed if :func:`is_warm`: then a single kernel is compiled, for types that a chat
    does not use.
    """
    if announced["compiling"] or is_warm():
        return
    announced["compiling"] = True
    if sys.stderr is not None:  # None under pythonw and in services
        once = ", once" if cache_folder() else ""
        line = f"gptoss_ref: compiling kernels{once} (ahead of time: gptoss-ref warmup)\n"
        with suppress(OSError, ValueError):  # the disk is full, or the stream is closed
            sys.stderr.write(line)
            sys.stderr.flush()


when_compiling.append(announce)
