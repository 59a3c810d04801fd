"""The number of threads that kernels use, and the safe start of these threads.

The work of a kernel is divided into independent *tasks*. A task is always computed by the same
instructions in the same order, on whichever thread, so results do not depend on the number of
threads.

Two Python threads may run kernels at the same time: Numba's OpenMP and TBB layers allow it. If only
its ``workqueue`` layer is available, which would abort the process, parallel kernels take turns.
A ``fork`` does not copy Numba's threads, and OpenMP would end the child process. Therefore, in the
child of a process that had threads, every kernel runs on the calling thread.

``numba.set_num_threads`` belongs to the caller: kernels use its value unless :func:`threads` sets
another one, and restore it afterwards.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numba
import numpy as np
from numba.core import config
from numba.np.ufunc import parallel as _numba_threads

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.tasks import ALONE, team_of

SMALL = 1 << 20
"""Number of multiply-adds up to which a kernel runs on one thread.

On an idle machine threads pay off from 2^18. But all threads wait at the end of a kernel, and if
another process has taken the core of one of them, they wait for milliseconds. Therefore kernels of
about 50 us run on one thread."""

_chosen = threading.local()
_turns = threading.Lock()
_state = {"take_turns": True, "started": False, "forked": False}


def available_threads() -> int:
    """Return the number of cores this process may run on, or Numba's limit if that is smaller."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, int(config.NUMBA_NUM_THREADS))


def current_threads() -> int:
    """Return the number of threads that a large kernel called from this thread would use."""
    if _state["forked"] or config.DISABLE_JIT:
        return 1
    if chosen := getattr(_chosen, "n", 0):
        return int(chosen)
    n = available_threads()
    return min(n, numba.get_num_threads()) if _running() else n


def _running() -> bool:
    """Return whether Numba's threads have been started, by kernels or by other code."""
    return bool(getattr(_numba_threads, "_is_initialized", True))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Within this context, kernels called from this Python thread use ``n`` threads.

    Raises:
        GptOssError: ``n`` is below 1, or above the number of cores that this process may use (more
            threads would only slow each other down).
    """
    most = available_threads()
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= most:
        raise GptOssError(
            f"threads({n!r}): expected 1 to {most}, the cores that this process may use"
        )
    before = getattr(_chosen, "n", 0)
    _chosen.n = int(n)
    try:
        yield
    finally:
        _chosen.n = before


def run(kernel: Callable[..., Any], tasks: int, multiply_adds: int, *arguments: Any) -> None:
    """Run the ``tasks`` of a kernel, on several threads if the work is large enough.

    Args:
        kernel: called with the arguments, the number of tasks and a team (``tasks.py``).
    """
    with team(tasks, multiply_adds) as of:
        kernel(*arguments, tasks, of)


@contextmanager
def team(tasks: int, multiply_adds: int) -> Iterator[tuple[int, int]]:
    """Yield the threads for a kernel of ``tasks`` tasks: one if ``multiply_adds`` ≤ SMALL."""
    n = min(current_threads(), tasks) if multiply_adds > SMALL else 1
    if n <= 1:
        yield ALONE
        return
    if not _state["started"]:
        _start()
    before = numba.get_num_threads()
    try:
        if before != n:
            numba.set_num_threads(n)
        with _turns if _state["take_turns"] else nullcontext():
            yield team_of(n)
    finally:
        if before != n:
            numba.set_num_threads(before)


def threading_layer() -> str:
    """Return Numba's threading layer: ``tbb``, ``omp`` or ``workqueue``."""
    _start()
    return str(numba.threading_layer())


def _start() -> None:
    """Start Numba's threads, and find out whether its layer allows two callers at once."""
    with _turns:
        if not _state["started"]:
            numba.get_num_threads()  # this call starts them
            _state["take_turns"] = numba.threading_layer() not in ("omp", "tbb")
            _state["started"] = True


def _after_fork() -> None:
    global _turns
    _turns = threading.Lock()  # another thread may have held the lock
    _state["forked"] = _running()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
