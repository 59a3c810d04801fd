"""Warm-up and the doctor's data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kernel_cases import COMPILED_ONLY
from test_kernel_threads import run_python

from gptoss_ref.cli.parser import build_parser
from gptoss_ref.config import GPT_OSS_20B, GPT_OSS_120B
from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels._jit import available_paths
from gptoss_ref.kernels.doctor import LEAST_MEGABYTES, bandwidth, bytes_per_token, doctor
from gptoss_ref.kernels.threads import available_threads, current_threads


def test_bytes_of_one_token() -> None:
    """llama.cpp's figure for gpt-oss-20b in bfloat16 and MXFP4 is 3.7 GB a token."""
    assert bytes_per_token(GPT_OSS_20B) == pytest.approx(3.7e9, rel=0.01)
    extra_layers = 36 / 24 * (bytes_per_token(GPT_OSS_20B) - 2 * 201088 * 2880)
    without_router = bytes_per_token(GPT_OSS_120B) - 2 * 201088 * 2880
    assert without_router == pytest.approx(extra_layers, rel=0.01)


@COMPILED_ONLY
def test_doctor_gives_plain_values() -> None:
    report = doctor({"20b": GPT_OSS_20B}, megabytes=64, seconds=0.01)
    assert json.loads(json.dumps(report)) == report
    assert report["instruction_path"] == available_paths()[0]
    assert report["threads"] == current_threads()
    assert report["threading_layer"] in ("omp", "tbb", "workqueue")
    rates = report["read_gigabytes_per_second"]
    assert min(rates.values()) > 0
    tokens = report["predicted_tokens_per_second"]["20b"]
    assert tokens == pytest.approx(1e9 * max(rates.values()) / bytes_per_token(GPT_OSS_20B))


@COMPILED_ONLY
def test_warmup_leaves_nothing_to_compile() -> None:
    """After it, passes of one token and of several, with a checkpoint's types, compile nothing."""
    code = """
import numpy as np
from numba.core import compiler
from gptoss_ref import kernels
from gptoss_ref.kernels.warmup import STEPS, warmup
seen = []
warmup(lambda name, done, steps: seen.append((done, steps)))
compiler.compile_extra = None  # compiling would now fail
rng = np.random.default_rng(0)
bits = lambda *shape: np.full(shape, 0x3F80, np.uint16)
for tokens in (1, 5):
    x = rng.standard_normal((tokens, 96), np.float32)
    kernels.linear(x, bits(40, 96), bits(40))
    kernels.linear(x, bits(40, 96))
    kernels.rmsnorm(x, bits(96))
print(seen == [(i, len(STEPS)) for i in range(len(STEPS) + 1)])
"""
    assert run_python(code) == "True"


@COMPILED_ONLY
def test_what_one_thread_compiled_is_not_warm_for_several(tmp_path: Path) -> None:
    """On one core the kernels that start threads are left out."""
    code = """
from gptoss_ref.kernels import warmup
warmup.STEPS = warmup.STEPS[:1]
warmup.warmup()
print(warmup.is_warm())
"""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run_python(code, NUMBA_NUM_THREADS="1", **cache) == "True"
    code = "from gptoss_ref.kernels import warmup; print(warmup.is_warm())"
    assert run_python(code, NUMBA_NUM_THREADS="1", **cache) == "True"
    if available_threads() > 1:
        assert run_python(code, **cache) == "False"


def test_doctor_needs_compiled_kernels() -> None:
    code = """
from gptoss_ref.cli import main
print(main(["doctor", "--megabytes", "64"]))
"""
    assert run_python(code, NUMBA_DISABLE_JIT="1") == "2"


@COMPILED_ONLY
def test_doctor_does_not_measure_the_caches() -> None:
    """The command line refuses the same, before anything compiles."""
    for megabytes in (-1, 0, LEAST_MEGABYTES - 1):
        with pytest.raises(GptOssError, match=f"expected {LEAST_MEGABYTES} or more"):
            doctor({}, megabytes=megabytes)
        with pytest.raises(GptOssError, match=f"expected an integer of {LEAST_MEGABYTES} or more"):
            build_parser().parse_args(["doctor", "--megabytes", str(megabytes)])
    least = str(LEAST_MEGABYTES)
    assert build_parser().parse_args(["doctor", "--megabytes", least]).megabytes == LEAST_MEGABYTES


@COMPILED_ONLY
def test_doctor_without_the_memory() -> None:
    for megabytes in (100_000_000_000, 1 << 60):
        with pytest.raises(GptOssError, match="no memory"):
            bandwidth(megabytes)
