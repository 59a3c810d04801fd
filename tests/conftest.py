"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.slow import is_slow

if "PYTEST_XDIST_WORKER" in os.environ:
    # One of several processes, one for each core: NumPy's and torch's threads would wait for one
    # another. Kernels keep theirs, which tests ask for. This is read when NumPy is imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# "default" tries the same examples on every run and every machine. "search" looks for new ones:
#     HYPOTHESIS_PROFILE=search python -m pytest tests
settings.register_profile(
    "default",
    max_examples=25,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "search", settings.get_profile("default"), max_examples=300, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


NEEDED = {
    "amx": "products on tiles (matmul/amx.py, matmul/mxfp4_gemm_amx.py)",
    "avx512": "vectors of 64 bytes, VNNI (register_tile, mxfp4_gemv_int8, mxfp4_gemm_int16)",
    "avx2": "vectors of 32 bytes (mxfp4_gemv_int8, mxfp4_gemm_int16)",
}
"""What of the kernels runs on each instruction path only."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Names the kernels that this machine cannot run; ``.ci/run`` repeats these lines."""
    from gptoss_ref.kernels.runtime.isa import available_paths
    from gptoss_ref.kernels.runtime.jit import INTERPRETED

    missing = NEEDED if INTERPRETED else [path for path in NEEDED if path not in available_paths()]
    for path in missing:
        how = "only as Python" if INTERPRETED else "only as Python, in a part of the tests"
        line = f"instructions not run: {path}: {NEEDED[path]}: {how}"
        terminalreporter.write_line(line, yellow=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The marker `slow`: see tests/support/slow.py."""
    for item in items:
        if is_slow(item.nodeid):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`-n 2` runs two files at a time, for the tests of a file share what takes long to make."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def one_torch_thread() -> Iterator[None]:
    """Torch on one thread: its operations here are too small to gain from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def long_case() -> Any:
    """A context past 4096 positions with the twin's logits, which take some seconds."""
    from tests.support.checks_model import long_context_case

    return long_context_case()


@pytest.fixture(scope="session")
def warm_kernels() -> None:
    """No command is the first to use the kernels, which it would say on standard error."""
    from gptoss_ref.kernels.runtime.warmup import is_warm, warmup

    if not is_warm():
        warmup()


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The bundled model, float32."""
    import gptoss_ref

    return gptoss_ref.load("tiny", backend="numba")


@pytest.fixture(scope="session")
def tiny_transformers(tiny: Any, one_torch_thread: None) -> Any:
    """The bundled model in transformers, experts dequantised, float32, eager attention."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        tiny.path, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()
