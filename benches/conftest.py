"""What the pytest-benchmark files share: a figure beside the ceiling measured between its rounds.

    python -m pytest benches                        # every kernel
    GPTOSS_REF_KERNELS=plain python -m pytest benches/bench_linear.py

Between two rounds of a kernel its ceiling is sampled, so that both see the same noise: a streaming
read of memory for a kernel that moves bytes, NumPy's float32 matrix product for one that computes.
The table at the end shows the ratios. A goal that is missed is shown and fails nothing: one run on
a busy machine proves little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from rates import NumpyProduct, Reading

from gptoss_ref.kernels.runtime.isa import path_name
from gptoss_ref.kernels.runtime.threads import current_threads

ROUNDS = 9
SECONDS = 0.05
"""A round repeats its kernel for at least so long."""


@dataclass(frozen=True)
class Line:
    """A row of the table: rates are units of work a second."""

    name: str
    milliseconds: float
    rate: float
    ceiling: float
    unit: str
    goal: float | None


LINES: list[Line] = []

Beside = Callable[..., None]


@pytest.fixture(scope="session")
def reading() -> Reading:
    """Ceiling of what moves bytes."""
    return Reading()


@pytest.fixture(scope="session")
def numpy_product() -> NumpyProduct:
    """Ceiling of what multiplies."""
    return NumpyProduct()


@pytest.fixture
def beside(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Beside:
    """``beside(ceiling, function, work, goal=None)``: time ``function``, which does ``work``.

    ``work`` is bytes for a :class:`Reading`, operations for a :class:`NumpyProduct`.
    """

    def measure(
        ceiling: Reading | NumpyProduct,
        function: Callable[[], object],
        work: float,
        goal: float | None = None,
    ) -> None:
        function()  # compiled, and its memory touched
        start = perf_counter()
        function()
        calls = max(1, round(SECONDS / (perf_counter() - start)))
        ceiling.restart()

        def repeated() -> None:
            for _ in range(calls):
                function()

        benchmark.pedantic(repeated, setup=ceiling.sample, rounds=ROUNDS, warmup_rounds=1)
        seconds = median(benchmark.stats.stats.data) / calls
        name = f"{request.path.stem.removeprefix('bench_')}: {request.node.name[5:]}"
        line = Line(name, 1e3 * seconds, work / seconds, ceiling.rate(), ceiling.unit, goal)
        benchmark.extra_info |= vars(line) | {"calls_a_round": calls}
        LINES.append(line)

    return measure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of ratios."""
    if not LINES:
        return
    terminalreporter.section(f"beside the ceiling: {current_threads()} threads, {path_name()}")
    width = max(len(line.name) for line in LINES)
    for line in LINES:
        goal = "" if line.goal is None else f"  (goal {line.goal:.2f})"
        terminalreporter.write_line(
            f"{line.name:<{width}} {line.milliseconds:10.3f} ms {line.rate / 1e9:8.1f} of "
            f"{line.ceiling / 1e9:6.1f} {line.unit:<8} {line.rate / line.ceiling:6.2f}{goal}"
        )
