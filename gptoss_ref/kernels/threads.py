"""How many threads the kernels use, and how they are started safely.

A kernel's work is cut into *tasks* whose results do not depend on one another; a task is always
computed by the same instructions in the same order, whichever thread runs it. So results do not
depend on the number of threads.

Two Python threads may run kernels at once: Numba's OpenMP and TBB layers allow it, and where only
its ``workqueue`` layer is available, which would abort the process, parallel kernels take turns.
After a ``fork`` Numba's threads are gone, and OpenMP would end the process: in the child every
kernel runs on the calling thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
from numba.core import config

from gptoss_ref.errors import GptOssError

SMALL = 1 << 20
"""Multiply-adds below which starting threads would cost more than it saves.

On an idle machine that is 2^18. But threads that meet at the end of a kernel wait for the one
whose core another process has taken, for milliseconds: a kernel of some 50 us runs alone."""

_chosen = threading.local()
_turns = threading.Lock()
_state = {"take_turns": True, "started": False, "forked": False}


def available_threads() -> int:
    """Threads that kernels may use: the cores this process may run on, less if Numba is limited."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, int(config.NUMBA_NUM_THREADS))


def current_threads() -> int:
    """Threads that a large kernel called now, from this Python thread, will use."""
    if _state["forked"] or config.DISABLE_JIT:
        return 1
    return getattr(_chosen, "n", 0) or available_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Within this context, kernels called from this Python thread use ``n`` threads.

    Raises:
        GptOssError: fewer than one thread, or more than the cores that this process may use (more
            would only slow one another down).
    """
    most = available_threads()
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= most:
        raise GptOssError(
            f"threads({n!r}): expected 1 to {most}, the cores that this process may use"
        )
    before = getattr(_chosen, "n", 0)
    _chosen.n = n
    try:
        yield
    finally:
        _chosen.n = before


def run(
    serial: Callable[..., Any],
    parallel: Callable[..., Any],
    tasks: int,
    multiply_adds: int,
    *arguments: Any,
) -> None:
    """Run a kernel's ``tasks``, on threads if they are worth it.

    Args:
        serial: called with the arguments, the first task and one past the last.
        parallel: called with the arguments, the number of tasks and the number of threads.
    """
    n = min(current_threads(), tasks) if multiply_adds > SMALL else 1
    if n <= 1:
        serial(*arguments, 0, tasks)
        return
    if not _state["started"]:
        _start()
    if getattr(_chosen, "set", 0) != n:  # once a Python thread: it is slow
        numba.set_num_threads(n)
        _chosen.set = n
    if _state["take_turns"]:
        with _turns:
            parallel(*arguments, tasks, n)
    else:
        parallel(*arguments, tasks, n)


def threading_layer() -> str:
    """Numba's threading layer: ``tbb``, ``omp`` or ``workqueue``."""
    _start()
    return str(numba.threading_layer())


def _start() -> None:
    """Start Numba's threads, and learn whether its layer allows two callers at once."""
    with _turns:
        if not _state["started"]:
            numba.get_num_threads()  # starts them
            _state["take_turns"] = numba.threading_layer() not in ("omp", "tbb")
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_after_fork)
            _state["started"] = True


def _after_fork() -> None:
    global _turns
    _turns = threading.Lock()  # another thread may have held it
    _state["forked"] = True
