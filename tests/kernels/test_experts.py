"""The experts kernel against the layer: grouping, both matrices, biases, weights, every storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import kernels, layers, numerics
from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.kernels.matmul.mxfp4_methods import AMX, FLOAT, INT16, method_of
from gptoss_ref.kernels.runtime.isa import instructions
from gptoss_ref.numerics import BFLOAT16, FLOAT64
from gptoss_ref.weights import MXFP4
from tests.support.distance import relative_l2
from tests.support.kernel_cases import (
    COMPILED_ONLY,
    EVERY_PATH,
    EXAMPLES,
    FLOAT_BOUND,
    INTERPRETED,
    MXFP4_BOUND,
    bits,
    gaussian,
    integers_from_256,
    misaligned,
    random_mxfp4,
)

WIDE = (576, 608)
"""Model and expert width at which several tokens take the int16 way, or tiles."""
SIZES = pytest.mark.parametrize("sizes", [(64, 96)] if INTERPRETED else [(64, 96), WIDE], ids=str)


def case(
    seed: int,
    tokens: int,
    count: int,
    chosen: int,
    width: int,
    inner: int,
    storage: str = "mxfp4",
    heavy: bool = False,
    **fields: Any,
) -> list[Any]:
    """Arguments of ``experts``: a token's choices are different experts, their weights sum to 1."""
    rng = np.random.default_rng(seed)
    x = gaussian(rng, tokens, width, heavy=heavy)
    indices = np.argsort(rng.random((tokens, count)), axis=-1)[:, :chosen]
    weights = rng.dirichlet(np.ones(chosen), tokens).astype(np.float32)
    if storage == "mxfp4":
        w1 = random_mxfp4(rng, count, 2 * inner, width, name="first", **fields)
        w2 = random_mxfp4(rng, count, width, inner, name="second", **fields)
    else:
        w1, w2 = gaussian(rng, count, 2 * inner, width), gaussian(rng, count, width, inner)
        w1 *= np.float32(width**-0.5)
        if storage != "float32":
            w1, w2 = bits(w1), bits(w2)
        if storage == "transposed":
            w1, w2 = (np.ascontiguousarray(w.swapaxes(1, 2)).swapaxes(1, 2) for w in (w1, w2))
    b1, b2 = bits(gaussian(rng, count, 2 * inner)), bits(gaussian(rng, count, width))
    return [x, indices, weights, w1, b1, w2, b2]


@EVERY_PATH
@EXAMPLES
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.sampled_from([1, 1, 2, 3, 5, 11, 40]),
    count=st.integers(1, 9),
    chosen=st.integers(1, 4),
    sizes=st.sampled_from([(32, 96), (160, 64), (64, 288), (288, 64), (256, 288), (288, 256)]),
)
def test_mxfp4_equals_the_layer(
    path: str,
    seed: int,
    tokens: int,
    count: int,
    chosen: int,
    sizes: tuple[int, int],
) -> None:
    if INTERPRETED:
        tokens, count, sizes = min(tokens, 2), min(count, 2), (32, 64) if seed % 2 else (256, 256)
    arguments = case(seed, tokens, count, min(chosen, count), *sizes)
    with instructions(path), integers_from_256():
        ours = kernels.experts(*arguments)
    theirs = layers.experts(*arguments, policy=FLOAT64)
    assert ours.dtype == np.float32
    floats = path == "plain" or min(sizes) < 256  # two products and SwiGLU, each within the bound
    assert relative_l2(ours, theirs) <= (3 * FLOAT_BOUND if floats else MXFP4_BOUND)


@COMPILED_ONLY
@EVERY_PATH
@pytest.mark.parametrize("tokens", [5, 23])
def test_wide_experts_equal_the_layer(path: str, tokens: int) -> None:
    """So wide that several tokens take the int16 way, or tiles, as in the released models."""
    arguments = case(11, tokens, 4, 3, *WIDE)
    with instructions(path):
        assert method_of(tokens, WIDE[0]) == {"amx": AMX, "plain": FLOAT}.get(path, INT16)
        ours = kernels.experts(*arguments)
    theirs = layers.experts(*arguments, policy=FLOAT64)
    for t in range(tokens):
        assert relative_l2(ours[t], theirs[t]) <= 2 * MXFP4_BOUND, t


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">u2"])
@pytest.mark.parametrize("which", [(4,), (6,), (4, 6)])
def test_biases_of_any_type_beside_mxfp4(which: tuple[int, ...], dtype: str) -> None:
    arguments = case(12, 3, 4, 2, 64, 96)
    for n in which:
        values = numerics.widen(arguments[n], np.float32)
        arguments[n] = arguments[n].astype(dtype) if dtype == ">u2" else values.astype(dtype)
    ours = kernels.experts(*arguments)
    for n in which:
        arguments[n] = np.asarray(arguments[n], np.uint16 if dtype == ">u2" else np.float64)
    assert relative_l2(ours, layers.experts(*arguments, policy=FLOAT64)) <= MXFP4_BOUND


@EVERY_PATH
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("tokens", [1, 7])
def test_each_product_on_heavy_tailed_activations(path: str, tokens: int, wide: bool) -> None:
    """Each matrix product is held to the bound, given its own input.

    Not the whole: SwiGLU clamps the rows that the outlier drives, so that its result no longer
    dwarfs the error of the others.
    """
    sizes = ((256, 256) if INTERPRETED else WIDE) if wide else (32, 64)
    arguments = case(8, min(tokens, 5) if INTERPRETED else tokens, 5, 2, *sizes, heavy=True)
    x, indices, _, w1, b1, w2, b2 = arguments
    stages: dict[str, Any] = {}
    with instructions(path), integers_from_256():
        kernels.experts(*arguments, tap=stages.__setitem__)
    first, second = np.empty(stages["gate_up"].shape), np.empty(stages["expert_out"].shape)
    for t, a in np.ndindex(*indices.shape):
        e, activated = int(indices[t, a]), stages["swiglu"][t, a]
        first[t, a] = layers.linear(x[t], w1[e], b1[e], policy=FLOAT64)
        second[t, a] = layers.linear(activated, w2[e], b2[e], policy=FLOAT64)
    assert relative_l2(stages["gate_up"], first) <= MXFP4_BOUND
    assert relative_l2(stages["expert_out"], second) <= MXFP4_BOUND


@EVERY_PATH
@pytest.mark.parametrize("storage", ["bfloat16", "float32", "transposed"])
@pytest.mark.parametrize("tokens", [1, 6])
def test_dense_experts_equal_the_layer(path: str, storage: str, tokens: int) -> None:
    arguments = case(1, tokens, 5, 3, 37, 23, storage)
    with instructions(path):
        ours = kernels.experts(*arguments)
    assert relative_l2(ours, layers.experts(*arguments, policy=FLOAT64)) <= 1e-6


@EVERY_PATH
@pytest.mark.parametrize("tokens", [1, 9])
def test_stages_shown_to_a_tap(path: str, tokens: int) -> None:
    for storage in ("mxfp4", "float32"):
        sizes = (32, 64) if INTERPRETED else (64, 96)
        arguments = case(2, min(tokens, 3) if INTERPRETED else tokens, 7, 3, *sizes, storage)
        ours: dict[str, Any] = {}
        theirs: dict[str, Any] = {}
        with instructions(path):
            kernels.experts(*arguments, tap=ours.__setitem__)
        layers.experts(*arguments, policy=FLOAT64, tap=theirs.__setitem__)
        assert list(ours) == list(theirs)
        for name in theirs:
            assert relative_l2(ours[name], theirs[name]) <= MXFP4_BOUND, name


@EVERY_PATH
def test_everyone_to_one_expert_nobody_to_others_and_no_token(path: str) -> None:
    for tokens in (1, 2 if INTERPRETED else 17, 0):
        arguments = case(3, tokens, 6, 1, 96, 64)
        arguments[1][:] = 4
        with instructions(path):
            ours = kernels.experts(*arguments)
        assert ours.shape == (tokens, 96)
        assert relative_l2(ours, layers.experts(*arguments, policy=FLOAT64)) <= MXFP4_BOUND


@EVERY_PATH
@SIZES
@pytest.mark.parametrize("tokens", [1, 8])
def test_nan_and_infinity_stay_with_their_token(
    path: str, tokens: int, sizes: tuple[int, int]
) -> None:
    for value in (np.nan, np.inf, -np.inf):
        arguments = case(4, tokens, 6, 2, *sizes)
        arguments[0][tokens // 2, 5] = value
        with instructions(path):
            ours = kernels.experts(*arguments)
        with np.errstate(all="ignore"):
            theirs = layers.experts(*arguments, policy=FLOAT64)
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
        finite = np.isfinite(theirs)
        assert relative_l2(ours[finite], theirs[finite]) <= MXFP4_BOUND
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))


@EVERY_PATH
@SIZES
@pytest.mark.parametrize("tokens", [1, 8])
def test_scale_255(path: str, tokens: int, sizes: tuple[int, int]) -> None:
    """An error that names tensor, expert and place; only if the expert is chosen; or NaN."""
    arguments = case(5, tokens, 6, 2, *sizes, scale_255="error")
    chosen = int(arguments[1][0, 0])
    idle = next((e for e in range(6) if not (arguments[1] == e).any()), None)
    for place, name in ((3, "first"), (5, "second")):
        weight = arguments[place]
        if idle is not None:
            weight.scales[idle, 3, 1] = 255
            with instructions(path):
                kernels.experts(*arguments)
        before = weight.scales[chosen, 40, 1]
        weight.scales[chosen, 40, 1] = 255
        with (
            instructions(path),
            pytest.raises(CheckpointError, match=rf"{name}\[{chosen}\].*\[40, 1\]"),
        ):
            kernels.experts(*arguments)
        as_nan = list(arguments)
        as_nan[place] = MXFP4(weight.blocks, weight.scales, name, "nan")
        with instructions(path):
            ours = kernels.experts(*as_nan)
        with np.errstate(all="ignore"):
            theirs = layers.experts(*as_nan, policy=FLOAT64)
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
        weight.scales[chosen, 40, 1] = before


@EVERY_PATH
def test_awkward_arrays_give_the_same(path: str) -> None:
    for tokens in (1, 5):
        x, indices, weights, w1, b1, w2, b2 = case(6, tokens, 6, 2, 64, 96)
        with instructions(path):
            plain = kernels.experts(x, indices, weights, w1, b1, w2, b2)
            for same in (misaligned(x), np.asfortranarray(x), x.astype(np.float64)):
                again = kernels.experts(same, indices, weights, w1, b1, w2, b2)
                np.testing.assert_array_equal(again, plain)
            again = kernels.experts(
                x, indices.astype(np.int32), np.asfortranarray(weights), w1, misaligned(b1), w2,
                np.asfortranarray(b2),
            )  # fmt: skip
            np.testing.assert_array_equal(again, plain)
            doubled = np.repeat(w1.blocks, 2, 0), np.repeat(w1.scales, 2, 0)
            strided = MXFP4(doubled[0][::2], doubled[1][::2])
            again = kernels.experts(x, indices, weights, strided, b1, w2, b2)
            assert relative_l2(again, plain) <= MXFP4_BOUND  # few tokens an expert: another way


@EVERY_PATH
@pytest.mark.parametrize("storage", ["mxfp4", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_an_expert_twice_is_refused(path: str, storage: str, tokens: int) -> None:
    """No router chooses so. Where it is several tokens' expert, once each, it is fine."""
    arguments = case(9, tokens, 6, 3, 64, 96, storage)
    arguments[1][:] = [4, 0, 2]
    with instructions(path):
        kernels.experts(*arguments)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            arguments[1][:] = [4, 0, 2]
            arguments[1][-1, a] = arguments[1][-1, b]
            message = f"token {tokens - 1} chooses expert {arguments[1][-1, b]} twice"
            with pytest.raises(GptOssError, match=message):
                kernels.experts(*arguments)


def test_errors() -> None:
    arguments = case(7, 3, 6, 2, 64, 96)
    for wrong in (-1, 6):
        arguments[1][1, 1] = wrong
        with pytest.raises(GptOssError, match="expected 0 to 5"):
            kernels.experts(*arguments)
    arguments[1][1, 1] = 0
    with pytest.raises(GptOssError, match="expected integers"):
        kernels.experts(arguments[0], arguments[1] + 0.5, *arguments[2:])
    with pytest.raises(GptOssError, match="do not fit"):
        kernels.experts(arguments[0][:, :32], *arguments[1:])
    with pytest.raises(GptOssError, match="bfloat16"):
        kernels.experts(*arguments, policy=BFLOAT16)
