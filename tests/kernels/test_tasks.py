"""Tasks in ranges: every one is done once, whatever the arguments' types and the team."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import pytest

from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import SMALL, run, team
from tests.support.kernel_cases import BUSY, COMPILED_ONLY
from tests.support.processes import run_python


class Given(NamedTuple):
    """Of several types, some of them tuples."""

    counts: Any
    pair: Any
    factor: Any


@jit_tasks
def _tasks(given: Given, last: bool, starts: Any, start: int, stop: int) -> None:
    for n in range(start, stop):
        given.counts[n] += given.pair[1] * given.factor + (100 if last else 0)
        starts[n] = start


@jit
def kernel(counts: Any, factor: Any, starts: Any, tasks: int, of: Any) -> None:
    made = Given(counts, (7, np.int64(2)), factor)  # temporary, and read by other threads
    _tasks(made, False, starts, tasks, of)
    _tasks(made, True, starts, tasks, of)


@BUSY
@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 17])
@pytest.mark.parametrize("work", [0, SMALL + 1])
def test_every_task_is_done_once(tasks: int, work: int) -> None:
    counts, starts = np.zeros(tasks), np.full(tasks, -1)
    before = numba.get_num_threads()
    run(kernel, tasks, work, counts, 3.0, starts)
    np.testing.assert_array_equal(counts, np.full(tasks, 2 * 2 * 3.0 + 100))
    with team(tasks, work) as (n, _):  # runs of tasks side by side, at most one a thread
        assert np.count_nonzero(np.diff(starts)) < max(n, 1) if tasks else starts.size == 0
        assert all(starts[start] == start for start in starts.astype(int))
    assert numba.get_num_threads() == before


@COMPILED_ONLY
def test_an_error_on_the_calling_thread_is_raised() -> None:
    code = """
from gptoss_ref.kernels.runtime.tasks import ALONE
from tests.kernels.test_tasks import kernel
import numpy as np
try:
    kernel(np.zeros(4), 3.0, np.zeros(4, np.int64), 5, ALONE)
except IndexError as error:
    print(error)
"""
    assert "out of bounds" in run_python(code, NUMBA_BOUNDSCHECK="1")
