"""How many threads the kernels use, and how they are started safely.

A kernel's work is cut into *tasks* whose results do not depend on one another; a task is always
computed by the same instructions in the same order, whichever thread runs it. So results do not
depend on the number of threads.

Two Python threads may run kernels at once: Numba's OpenMP and TBB layers allow it, and where only
its ``workqueue`` layer is available, which would abort the process, parallel kernels take turns.
After a ``fork`` Numba's threads are gone, whoever had started them, and OpenMP would end the
process: in the child of a process that had threads every kernel runs on the calling thread.

``numba.set_num_threads`` belongs to the caller: kernels keep to it where :func:`threads` says
nothing else, and leave it as it was.
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
"""Multiply-adds below which starting threads would cost more than it saves.

On an idle machine that is 2^18. But threads that meet at the end of a kernel wait for the one
whose core another process has taken, for milliseconds: a kernel of some 50 us runs alone."""

_chosen = threading.local()
_turns = threading.Lock()
_NO_TURNS = nullcontext()
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
    if chosen := getattr(_chosen, "n", 0):
        return int(chosen)
    n = available_threads()
    return min(n, numba.get_num_threads()) if _running() else n


def _running() -> bool:
    """Whether Numba's threads have been started, by kernels or by anybody else."""
    return bool(getattr(_numba_threads, "_is_initialized", True))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Within this context, kernels called from this Python thread use ``n`` threads.

    Raises:
        GptOssError: fewer than one thread, or more than the cores that this process may use (more
            would only slow one another down).
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
    """Run a kernel's ``tasks``, on threads if they are worth it.

    Args:
        kernel: called with the arguments, the number of tasks and a team (``_tasks.py``).
    """
    with team(tasks, multiply_adds) as of:
        kernel(*arguments, tasks, of)


@contextmanager
def team(tasks: int, multiply_adds: int) -> Iterator[tuple[int, int]]:
    """Within this context, a team for kernels of up to that many tasks and so much work."""
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
        with _turns if _state["take_turns"] else _NO_TURNS:
            yield team_of(n)
    finally:
        if before != n:
            numba.set_num_threads(before)


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
            _state["started"] = True


def _after_fork() -> None:
    global _turns
    _turns = threading.Lock()  # another thread may have held it
    _state["forked"] = _running()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
