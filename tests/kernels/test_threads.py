"""Threads: results do not depend on their number, callers may overlap, a fork is survived."""

from __future__ import annotations

import os
import threading
from typing import Any

import numba
import numpy as np
import pytest

from gptoss_ref import kernels
from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels import threads as _function  # noqa: F401  (the package's name)
from gptoss_ref.kernels.runtime.isa import instructions
from gptoss_ref.kernels.runtime.threads import available_threads, current_threads, threads
from tests.support.kernel_cases import (
    BUSY,
    COMPILED_ONLY,
    EVERY_PATH,
    bits,
    gaussian,
    random_mxfp4,
)
from tests.support.processes import run_python


def everything_threaded() -> list[np.ndarray]:
    """Every kernel that starts threads, with work enough to start them."""
    rng = np.random.default_rng(0)
    results = []
    for tokens in (1, 19):
        x = gaussian(rng, tokens, 576)
        results.append(kernels.linear(x, bits(gaussian(rng, 700, 576))))
        results.append(kernels.linear(x, random_mxfp4(rng, 700, 576)))
        w1, w2 = random_mxfp4(rng, 5, 640, 576), random_mxfp4(rng, 5, 576, 320)
        b1, b2 = bits(gaussian(rng, 5, 640)), bits(gaussian(rng, 5, 576))
        indices = np.argsort(rng.random((tokens, 5)), axis=-1)[:, :3]
        weights = np.full((tokens, 3), np.float32(1 / 3))
        results.append(kernels.experts(x, indices, weights, w1, b1, w2, b2))
        k, v = gaussian(rng, 700, 4, 32), gaussian(rng, 700, 4, 32)
        q, sinks = gaussian(rng, tokens, 12, 32), np.zeros(12, np.float32)
        at = np.arange(700 - tokens, 700)
        results.append(kernels.attention(q, k, v, sinks, at, np.arange(700)))
    return results


@BUSY
@COMPILED_ONLY
@EVERY_PATH
def test_results_do_not_depend_on_the_number_of_threads(path: str) -> None:
    with instructions(path):
        with threads(1):
            alone = everything_threaded()
        for n in {2, available_threads()}:
            with threads(n):
                together = everything_threaded()
            for a, b in zip(alone, together, strict=True):
                np.testing.assert_array_equal(a, b)


@COMPILED_ONLY
def test_python_threads_may_overlap() -> None:
    expected = everything_threaded()
    failures: list[Any] = []

    def repeat() -> None:
        for _ in range(5):
            for a, b in zip(everything_threaded(), expected, strict=True):
                if not np.array_equal(a, b):
                    failures.append((a, b))

    callers = [threading.Thread(target=repeat) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_the_number_of_threads_is_checked_and_restored() -> None:
    most = available_threads()
    before = current_threads()
    for wrong in (0, -1, most + 1, 1.0, True):
        with pytest.raises(GptOssError, match=f"expected 1 to {most}"), threads(wrong):  # type: ignore[arg-type]
            pass
    for one in (1, np.int64(1)):
        with threads(one):  # type: ignore[arg-type]
            assert current_threads() == 1
        assert current_threads() == before


@BUSY
@COMPILED_ONLY
def test_callers_take_turns_on_the_workqueue_layer() -> None:
    """Numba's workqueue aborts the process when two Python threads are in it."""
    code = """
import tests.kernels.test_threads as t
from gptoss_ref.kernels.runtime.threads import threading_layer
t.test_python_threads_may_overlap()
print(threading_layer())
"""
    assert run_python(code, NUMBA_THREADING_LAYER="workqueue") == "workqueue"


@BUSY
@COMPILED_ONLY
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_runs_on_one_thread() -> None:
    code = """
import os, numpy as np
import tests.kernels.test_threads as t
expected = t.everything_threaded()
child = os.fork()
same = all(np.array_equal(a, b) for a, b in zip(t.everything_threaded(), expected))
if child == 0:
    os._exit(0 if same and t.current_threads() == 1 else 1)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code) == "True 0"


@BUSY
@COMPILED_ONLY
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("who", ["another kernel", "the doctor", "nobody"])
def test_a_fork_after_threads_that_others_started(who: str) -> None:
    """The child of a process with threads has one; of a process without any, threads of its own."""
    code = f"""
import os, numba, numpy as np
import tests.kernels.test_threads as t
from gptoss_ref.kernels.runtime.doctor import bandwidth
@numba.njit(parallel=True)
def theirs(x):
    for i in numba.prange(x.size):
        x[i] = i
if {who!r} == "another kernel": theirs(np.zeros(1000))
if {who!r} == "the doctor": bandwidth(64, 0.01)
child = os.fork()
if child == 0:
    threads = t.current_threads()
    results = t.everything_threaded()
    rates = bandwidth(64, 0.01)
    os._exit(0 if (threads == 1) == ({who!r} != "nobody") and min(rates) > 0 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code) == "0"


@BUSY
@COMPILED_ONLY
def test_numbas_own_number_of_threads_is_the_callers() -> None:
    """Kernels keep to it, unless told otherwise, and leave it as it was."""
    most = numba.get_num_threads()
    try:
        for n in (1, 2):
            numba.set_num_threads(n)
            assert current_threads() == n
            everything_threaded()
            assert numba.get_num_threads() == n
            with threads(available_threads()):
                assert current_threads() == available_threads()
                everything_threaded()
            assert numba.get_num_threads() == n
    finally:
        numba.set_num_threads(most)
    with threads(1):
        everything_threaded()
    assert numba.get_num_threads() == most
