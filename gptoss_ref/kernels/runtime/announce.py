"""Telling the user that kernels compile, and knowing whether they have been."""

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
    """Whether nothing is left to compile: :func:`warmup` has run to its end before, on this path.

    Under ``NUMBA_DISABLE_JIT=1`` there never is.
    """
    if config.DISABLE_JIT:
        return True
    folder = cache_folder()
    return folder is not None and (folder / mark()).exists()


def mark() -> str:
    """File that tells of a finished warm-up, named by what Numba keeps compiled code apart by.

    And by whether there are threads: on one core the loop over them is left uncompiled.
    """
    cpu = config.CPU_NAME or get_host_cpu_name()
    kind = "threads" if current_threads() > 1 else "one-thread"
    python = sys.implementation.cache_tag
    return f"warm-{path_name()}-{kind}-{cpu}-numba{numba.__version__}-{python}"


def announce() -> None:
    """Say on standard error that kernels compile: one line, the first time in this process.

    Nothing is said where :func:`is_warm`: then it is one kernel, of types that no chat uses.
    """
    if announced["compiling"] or is_warm():
        return
    announced["compiling"] = True
    if sys.stderr is not None:  # as under pythonw, or in a service
        once = ", once" if cache_folder() else ""
        line = f"gptoss_ref: compiling kernels{once} (ahead of time: gptoss-ref warmup)\n"
        with suppress(OSError, ValueError):  # a full disk, a closed stream
            sys.stderr.write(line)
            sys.stderr.flush()


when_compiling.append(announce)
