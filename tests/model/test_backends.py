"""Whole models on the numba backend: every instruction path, threads, forks, and odd machines.

What holds for any backend is tested with the model, the cache and the laws; here is what only
compiled kernels can get wrong.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptoss_ref
from gptoss_ref.backend import get_backend
from gptoss_ref.config import ModelConfig
from gptoss_ref.kernels.runtime.isa import instructions
from tests.support.checks_model import LongCase, build_model, check_logits, check_taps, in_chunks
from tests.support.distance import relative_l2
from tests.support.kernel_cases import BUSY, COMPILED_ONLY, EVERY_PATH, INTERPRETED
from tests.support.processes import run_python
from tests.support.strategies import (
    SEEDS,
    chunkings,
    model_configs,
    random_arrays,
    random_tokens,
    small_config,
)

build = partial(build_model, backend=get_backend("numba"))

SOME = settings(max_examples=1 if INTERPRETED else 8)

MXFP4_MODEL = 3e-4
"""Relative L2 distance of models of up to 4 layers; each of their MXFP4 products is within 1e-4."""

LOGITS = 1e-3
"""Largest distance of tiny's logits (up to 25) to those of the float64 policy."""


@EVERY_PATH
@SOME
@given(
    config=model_configs(shuffled_layer_types=True),
    seed=SEEDS,
    length=st.integers(1, 40),
    sink=st.sampled_from([-20.0, 0.0, 10.0]),
    clamp=st.sampled_from([1.0, 6.0]),
)
def test_every_tap_point(
    path: str, config: ModelConfig, seed: int, length: int, sink: float, clamp: float
) -> None:
    arrays = random_arrays(config, seed, sink=sink, clamp=clamp)
    with instructions(path):
        check_taps(build, config, arrays, random_tokens(config, length, seed), "float32")


@EVERY_PATH
@SOME
@given(config=model_configs(mxfp4=True), seed=SEEDS, data=st.data())
def test_mxfp4_experts_and_chunked_prefill(
    path: str, config: ModelConfig, seed: int, data: st.DataObject
) -> None:
    length = data.draw(st.integers(1, 40))
    arrays = random_arrays(config, seed, mxfp4=True)
    tokens = random_tokens(config, length, seed)
    with instructions(path):
        for chunks in (None, data.draw(chunkings(length))):
            check_logits(build, config, arrays, tokens, "float32", chunks, MXFP4_MODEL)


@COMPILED_ONLY
@pytest.mark.parametrize("window", [1, 7, 128])
def test_decoding_token_by_token(window: int) -> None:
    config = small_config(window=window)
    arrays, tokens = random_arrays(config, window), random_tokens(config, 140, window)
    check_logits(build, config, arrays, tokens, "float32", chunks=[1] * 140)


@COMPILED_ONLY
def test_positions_past_4096(long_case: LongCase) -> None:
    """In one pass, which goes through the blocks in chunks, and in passes of all sizes."""
    model = build(long_case.config, long_case.arrays, "float32")
    assert relative_l2(model(long_case.tokens), long_case.logits) <= 1e-5
    chunks = [1000, 129, 1, 1966, 874, 128, 127, 2]
    assert relative_l2(in_chunks(model, long_case.tokens, chunks), long_case.logits) <= 1e-5


@pytest.fixture(scope="module")
def texts(tiny: gptoss_ref.Model) -> list[tuple[list[int], np.ndarray]]:
    """Token rows for tiny, and the float64 logits: prompts that it knows, and noise."""
    exact = gptoss_ref.load("tiny", policy="float64")
    known = "What is 27 + 58? 7+8+0=15,2+5+1=8 What is the capital of France?"
    rows = [tiny.tokenizer.encode(known)]
    rows += [random_tokens(tiny.config, 150, seed) for seed in range(4)]
    return [(row, exact(row)) for row in rows]


@COMPILED_ONLY
@EVERY_PATH
@pytest.mark.parametrize("step", [1, 7, 150])
def test_tiny_is_close_to_float64(
    tiny: gptoss_ref.Model, texts: list[tuple[list[int], np.ndarray]], path: str, step: int
) -> None:
    """In passes of one token, of some, and of all."""
    worst = 0.0
    with instructions(path):
        for tokens, exact in texts:
            chunks = [len(tokens[at : at + step]) for at in range(0, len(tokens), step)]
            ours = in_chunks(tiny, tokens, chunks)
            worst = max(worst, float(np.abs(ours - exact).max()))
    assert worst <= LOGITS, f"off by {worst:.2e} on the path {path}, {step} tokens a pass"


@COMPILED_ONLY
@EVERY_PATH
def test_every_path_says_the_same(tiny: gptoss_ref.Model, path: str) -> None:
    prompt = tiny.tokenizer.encode("What is 27 + 58?")
    numpy = gptoss_ref.load("tiny", backend="numpy")
    with instructions(path):
        ours = list(gptoss_ref.generate(tiny, prompt, 20))
    theirs = list(gptoss_ref.generate(numpy, prompt, 20))
    assert ours == theirs
    assert np.allclose([t.logprob for t in ours], [t.logprob for t in theirs], atol=2 * LOGITS)


@COMPILED_ONLY
def test_sampling_draws_the_same_tokens(tiny: gptoss_ref.Model) -> None:
    """Both backends, from equal seeds."""
    prompt = tiny.tokenizer.encode("What is 27 + 58?")
    numpy = gptoss_ref.load("tiny", backend="numpy")
    for options in ({"temperature": 1.0}, {"temperature": 1.5, "top_k": 9, "top_p": 0.9}):
        ours, theirs = (
            list(gptoss_ref.generate(model, prompt, 20, seed=3, **options))
            for model in (tiny, numpy)
        )
        assert ours == theirs


@COMPILED_ONLY
def test_after_warmup_a_model_needs_no_other_kernel() -> None:
    """Nothing is compiled or read from the cache folder: prompts long and short, all ways to draw.

    Tiny's tensors have the dtypes and layout of the released checkpoints.
    """
    code = """
import gptoss_ref as gr
from gptoss_ref.kernels.runtime import jit as _jit
from gptoss_ref.kernels.runtime.warmup import warmup
warmup(width=96)
def refuse(self, signature, context):
    raise SystemExit(f"{self._function.__name__}{signature} is not warm")
_jit._LazyCache.load_overload = refuse
model = gr.load("tiny")
for prompt in ([5], [5, 6, 7], [5] * 40, [5] * 700):
    for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5, "top_p": 0.5}):
        list(gr.generate(model, prompt, 3, **options))
    model(prompt)
print("warm")
"""
    assert run_python(code) == "warm"


def large_model() -> tuple[Any, list[int]]:
    """Large enough for its kernels to start threads, and a prompt."""
    config = small_config(
        layers=2, d_model=640, d_ff=608, n_kv=4, group=5, head_dim=32, window=50, vocab=700
    )
    arrays = random_arrays(config, 0, mxfp4=True)
    return build(config, arrays, "float32"), random_tokens(config, 90, 0)


@COMPILED_ONLY
def test_after_warmup_a_larger_model_needs_no_other_kernel() -> None:
    """One whose products are worth threads."""
    code = """
import gptoss_ref as gr
from gptoss_ref.kernels.runtime import jit as _jit
from gptoss_ref.kernels.runtime.warmup import warmup
from tests.model.test_backends import large_model
warmup(width=608)
def refuse(self, signature, context):
    raise SystemExit(f"{self._function.__name__}{signature} is not warm")
_jit._LazyCache.load_overload = refuse
model, tokens = large_model()
for length in (1, 2, 5, 90, 700):
    list(gr.generate(model, (8 * tokens)[:length], 3))
    model(tokens[:length])
print("warm")
"""
    assert run_python(code) == "warm"


@BUSY
@COMPILED_ONLY
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    model, tokens = large_model()
    results = []
    for n in (1, 2):
        with gptoss_ref.threads(n):
            cache = model.new_cache()
            results.append([model(tokens, cache=cache), model([1], cache=cache)])
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@COMPILED_ONLY
def test_two_python_threads_generate_at_once() -> None:
    model, tokens = large_model()
    prompts = [tokens[:40], tokens[40:]]
    alone = [list(gptoss_ref.generate(model, prompt, 20)) for prompt in prompts]
    together: list[list[int]] = [[], []]

    def run(n: int) -> None:
        for _ in range(3):
            together[n] += gptoss_ref.generate(model, prompts[n], 20)

    callers = [threading.Thread(target=run, args=(n,)) for n in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert together == [3 * tokens for tokens in alone]


GENERATE = """
import gptoss_ref as gr
model = gr.load("tiny")
prompt = model.tokenizer.encode("What is 27 + 58?")
text = lambda: model.tokenizer.decode(list(gr.generate(model, prompt, 12)))
"""
SUM = GENERATE + "print(repr(text()))"


@pytest.fixture(scope="module")
def expected(tiny: gptoss_ref.Model) -> str:
    """What the NumPy layers say."""
    numpy = gptoss_ref.load("tiny", backend="numpy")
    prompt = tiny.tokenizer.encode("What is 27 + 58?")
    return repr(tiny.tokenizer.decode(list(gptoss_ref.generate(numpy, prompt, 12))))


@COMPILED_ONLY
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_generates(expected: str) -> None:
    """Parent and child both go on, also when a kernel had started threads before."""
    code = (
        GENERATE
        + """
import os, sys
import numpy as np
gr.kernels.linear(np.ones((9, 640), np.float32), np.ones((640, 640), np.float32))
before = text()
child = os.fork()
after = text()
if child == 0:
    os._exit(0 if after == before else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(repr(after))
"""
    )
    assert run_python(code) == expected


@COMPILED_ONLY
@pytest.mark.parametrize("number", ["1", "64"])
def test_more_threads_than_cores_or_one(expected: str, number: str) -> None:
    """Numba may be told of more threads than there are cores: the kernels use the cores."""
    assert run_python(SUM, NUMBA_NUM_THREADS=number) == expected


def test_asking_for_more_threads_than_cores_is_an_error() -> None:
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with (
        pytest.raises(gptoss_ref.GptOssError, match=f"expected 1 to {most}"),
        gptoss_ref.threads(1000),
    ):
        pass


@COMPILED_ONLY
def test_the_plain_path_by_force(expected: str) -> None:
    assert run_python(SUM, GPTOSS_REF_KERNELS="plain") == expected


@COMPILED_ONLY
def test_a_cpu_without_avx2(expected: str) -> None:
    """Compiled for the least CPU that there is; the layers' results are the same."""
    assert run_python(SUM, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == expected


@COMPILED_ONLY
def test_an_unwritable_cache_folder(expected: str, tmp_path: Path) -> None:
    """Kernels compile in memory, and generate what they should."""
    (tmp_path / "file").write_text("in the way")
    folder = str(tmp_path / "file" / "below")
    code = "import warnings; warnings.simplefilter('ignore')" + SUM
    assert run_python(code, NUMBA_CACHE_DIR=folder, GPTOSS_REF_KERNELS="plain") == expected
