"""Compilation: nothing at import, the cache on disk, the choice of instructions."""

from __future__ import annotations

import ast
import pathlib
from pathlib import Path

import numpy as np
import pytest

from gptoss_ref import kernels
from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime import isa
from gptoss_ref.kernels.runtime import jit as _jit
from gptoss_ref.kernels.runtime.scalar import exp
from tests.support.kernel_cases import COMPILED_ONLY
from tests.support.processes import run_python

SMALL = """
import numpy as np
from gptoss_ref import kernels
from gptoss_ref.kernels.runtime import isa
from gptoss_ref.kernels.runtime import jit as _jit
x, weight = np.ones((1, 3), np.float32), np.ones((2, 3), np.float32)
"""


def test_options_are_given_in_one_place_only() -> None:
    sources = set(Path(kernels.__file__).parent.rglob("*.py")) - {Path(_jit.__file__)}
    assert len(sources) > 30
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            assert name not in ("njit", "vectorize", "guvectorize", "cfunc"), source.name


@COMPILED_ONLY
def test_importing_compiles_and_writes_nothing(tmp_path: pathlib.Path) -> None:
    code = """
import numba, sys
from numba.core import compiler
compiler.compile_extra = compiler.compile_ir = None  # compiling would now fail
import gptoss_ref.kernels
print("imported")
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path / "cache")) == "imported"
    assert not (tmp_path / "cache").exists()


@COMPILED_ONLY
def test_a_second_process_loads_what_the_first_compiled(tmp_path: pathlib.Path) -> None:
    code = (
        SMALL
        + """
from gptoss_ref.kernels.rmsnorm import normalised
kernels.rmsnorm(x, np.ones(3, np.float32))
print(sum(normalised.stats.cache_hits.values()), sum(normalised.stats.cache_misses.values()))
"""
    )
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) == "0 1"
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) == "1 0"


@COMPILED_ONLY
def test_parts_of_a_kernel_are_invisible_to_other_kernels(tmp_path: pathlib.Path) -> None:
    """Names repeat between processes, and kernels of several processes are loaded into one."""
    code = """
import numpy as np
from gptoss_ref import kernels
from gptoss_ref.kernels.flash.flash_decode import flash_decode
q, at = np.ones((1, 2, 16), np.float32), np.arange(1)
kernels.attention(q, q, q, np.ones(2, np.float32), at, at)
assembly = flash_decode.inspect_asm(flash_decode.signatures[0])
print("register_tile" in assembly, [l for l in assembly.splitlines() if l.startswith("\\t.weak")])
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) == "True []"


@COMPILED_ONLY
def test_an_unwritable_cache_folder_gives_one_warning(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code = (
        SMALL
        + """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    kernels.rmsnorm(x, np.ones(3, np.float32))
    kernels.swiglu(np.ones((1, 2), np.float32))
print(len(caught), "NUMBA_CACHE_DIR" in str(caught[0].message))
"""
    )
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path / "file" / "below")) == "1 True"


@COMPILED_ONLY
def test_the_environment_forces_a_path() -> None:
    code = SMALL + "print(isa.path_name())"
    assert run_python(code, GPTOSS_REF_KERNELS="plain") == "plain"
    code = (
        SMALL
        + """
from gptoss_ref.errors import GptOssError
try: kernels.linear(np.concatenate([x, x]), weight)
except GptOssError as error: print(error)
"""
    )
    assert "GPTOSS_REF_KERNELS=mmx: expected" in run_python(code, GPTOSS_REF_KERNELS="mmx")


@COMPILED_ONLY
def test_a_cpu_without_avx2_takes_the_plain_path() -> None:
    code = SMALL + "print(isa.available_paths(), kernels.linear(x, weight).tolist())"
    assert run_python(code, NUMBA_CPU_FEATURES="", NUMBA_CPU_NAME="generic") == (
        "('plain',) [[3.0, 3.0]]"
    )


def test_without_compilation_the_plain_path_runs_as_python() -> None:
    code = SMALL + "print(isa.path_name(), kernels.linear(x, weight).tolist())"
    assert run_python(code, NUMBA_DISABLE_JIT="1") == "plain [[3.0, 3.0]]"


def test_paths_are_chosen_by_name() -> None:
    assert isa.available_paths()[-1] == "plain"
    for path in isa.available_paths():
        with isa.instructions(path):
            assert isa.path_name() == path
    with pytest.raises(GptOssError, match="plain"), isa.instructions("mmx"):
        pass


@COMPILED_ONLY
def test_exponential() -> None:
    """The bound that its docstring states, and its limits."""

    @_jit.jit
    def each(x, y):  # type: ignore[no-untyped-def]
        for i in range(x.size):
            y[i] = exp(x[i])

    x = np.linspace(-87.3, 88.7, 400_001).astype(np.float32)
    y = np.empty_like(x)
    each(x, y)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(y / exact - 1).max() <= 2e-7
    x = np.array([-np.inf, -200, -87.5, -0.0, 0, 89, np.inf, np.nan], np.float32)
    y = np.empty_like(x)
    each(x, y)
    np.testing.assert_array_equal(y, np.array([0, 0, 0, 1, 1, np.inf, np.inf, np.nan], np.float32))


LAYERS = """
import numpy as np
from tests.support.kernel_cases import bits, gaussian, random_mxfp4
from tests.support.distance import relative_l2
from gptoss_ref import kernels, layers
from gptoss_ref.numerics import FLOAT64
rng = np.random.default_rng(0)
def equal(kernel, layer, bound, *arguments):
    distance = relative_l2(kernel(*arguments), layer(*arguments, policy=FLOAT64))
    assert distance <= bound, (kernel, distance)
for tokens in TOKENS:
    x = gaussian(rng, tokens, WIDTH)
    equal(kernels.linear, layers.linear, 5e-6, x, bits(gaussian(rng, 33, WIDTH)))
    equal(kernels.linear, layers.linear, 1e-4, x, random_mxfp4(rng, 65, WIDTH))
    q, k, v = (gaussian(rng, n, h, 48) for n, h in ((tokens, 6), (70, 2), (70, 2)))
    where = (gaussian(rng, 6), np.arange(70 - tokens, 70), np.arange(70), 66)
    equal(kernels.attention, layers.attention, 1e-5, q, k, v, *where)
    first, second = random_mxfp4(rng, 3, 128, WIDTH), random_mxfp4(rng, 3, WIDTH, 64)
    indices = np.stack([rng.permutation(3)[:2] for _ in range(tokens)])
    weights = rng.random((tokens, 2), np.float32)
    biases = (bits(gaussian(rng, 3, 128)), bits(gaussian(rng, 3, WIDTH)))
    each = (x, indices, weights, first, biases[0], second, biases[1])
    equal(kernels.experts, layers.experts, 1e-4, *each)
print("equal")
"""


@pytest.mark.parametrize("path", [path for path in isa.PATHS if path != "plain"])
def test_every_path_runs_as_python(path: str) -> None:
    """Also those whose instructions this CPU lacks: their layouts, lookups and fallbacks."""
    code = LAYERS.replace("TOKENS", "(1, 5)").replace("WIDTH", "512")
    environment = {"NUMBA_DISABLE_JIT": "1", "GPTOSS_REF_KERNELS": path}
    assert run_python(code, **environment) == "equal"


@COMPILED_ONLY
def test_the_bound_of_float_sums_without_avx2() -> None:
    """The plain path has few partial sums there; at the released widths."""
    code = """
import numpy as np
from tests.support.kernel_cases import bits, gaussian
from tests.support.distance import relative_l2
from gptoss_ref import kernels, layers
from gptoss_ref.numerics import FLOAT64
for inputs in (2880, 4096):
    for heavy in (False, True):
        rng = np.random.default_rng(0)
        x, weight = gaussian(rng, 1, inputs, heavy=heavy), bits(gaussian(rng, 71, inputs))
        exact = layers.linear(x, weight, policy=FLOAT64)
        distance = relative_l2(kernels.linear(x, weight), exact)
        assert distance <= 1e-6, (inputs, heavy, distance)
print("close")
"""
    generic = {"NUMBA_CPU_FEATURES": "", "NUMBA_CPU_NAME": "generic"}
    assert run_python(code, **generic) == "close"


def test_a_path_that_cannot_run_is_refused_when_the_backend_is_chosen() -> None:
    code = """
from gptoss_ref.backend import get_backend
from gptoss_ref.errors import GptOssError
try: get_backend("numba")
except GptOssError as error: print(error)
"""
    assert "GPTOSS_REF_KERNELS=mmx: expected" in run_python(code, GPTOSS_REF_KERNELS="mmx")
