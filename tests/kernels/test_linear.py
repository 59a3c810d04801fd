"""The linear kernel against the layer, for every storage, layout and number of tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import kernels, layers
from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.kernels.matmul.mxfp4_methods import AMX, FLOAT, INT16, method_of
from gptoss_ref.kernels.runtime.isa import instructions
from gptoss_ref.numerics import BFLOAT16, FLOAT64
from gptoss_ref.weights import MXFP4
from tests.support.distance import relative_l2
from tests.support.kernel_cases import (
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
    spread,
)

LAYOUTS = {
    "rows": lambda w: w,
    "columns": lambda w: np.ascontiguousarray(w.T).T,
    "spread": spread,
    "misaligned": misaligned,
}
TOKENS = st.sampled_from([1, 2, 3, 5, 13, 27])
WIDE = (6, 96) if INTERPRETED else (6, 544)
SHAPES = pytest.mark.parametrize("shape", [(1, 96), (3, 96), (7, 96), (2, 544), WIDE], ids=str)
"""Tokens and inputs; the last take the int16 way, or tiles."""


@EVERY_PATH
def test_wide_inputs_of_several_tokens_take_another_way(path: str) -> None:
    """What the tests mean by ``WIDE``."""
    if not INTERPRETED:
        with instructions(path):
            assert method_of(*WIDE) == {"amx": AMX, "plain": FLOAT}.get(path, INT16)


@EVERY_PATH
@EXAMPLES
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=TOKENS,
    inputs=st.sampled_from([1, 7, 16, 31, 70, 129]),
    outputs=st.sampled_from([1, 3, 16, 33, 65]),
    storage=st.sampled_from(["bfloat16", "float32", "float64"]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    bias=st.booleans(),
    heavy=st.booleans(),
)
def test_equals_the_layer(
    path: str,
    seed: int,
    tokens: int,
    inputs: int,
    outputs: int,
    storage: str,
    layout: str,
    bias: bool,
    heavy: bool,
) -> None:
    rng = np.random.default_rng(seed)
    x = gaussian(rng, tokens, inputs, heavy=heavy)
    w = gaussian(rng, outputs, inputs)
    weight = LAYOUTS[layout](bits(w) if storage == "bfloat16" else w.astype(storage))
    b = bits(gaussian(rng, outputs)) if bias else None
    with instructions(path):
        ours = kernels.linear(x, weight, b)
    assert ours.dtype == np.float32
    assert relative_l2(ours, layers.linear(x, weight, b, policy=FLOAT64)) <= FLOAT_BOUND


@EVERY_PATH
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 14])
def test_bound_at_the_released_width(path: str, tokens: int, heavy: bool) -> None:
    rng = np.random.default_rng(0)
    inputs = 192 if INTERPRETED else 2880
    x = gaussian(rng, tokens, inputs, heavy=heavy)
    weight = bits(gaussian(rng, 71, inputs))
    with instructions(path):
        ours = kernels.linear(x, weight)
    assert relative_l2(ours, layers.linear(x, weight, policy=FLOAT64)) <= FLOAT_BOUND


@EVERY_PATH
@EXAMPLES
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=TOKENS,
    groups=st.sampled_from([1, 2, 3, 5, 6, 8, 9, 15]),
    outputs=st.sampled_from([40, 63, 64, 65, 97]),
    heavy=st.booleans(),
    contiguous=st.booleans(),
)
def test_mxfp4_equals_the_layer(
    path: str,
    seed: int,
    tokens: int,
    groups: int,
    outputs: int,
    heavy: bool,
    contiguous: bool,
) -> None:
    """Odd and even numbers of blocks, rows that fill no tile, strided views."""
    rng = np.random.default_rng(seed)
    x = gaussian(rng, tokens, 32 * groups, heavy=heavy)
    weight = random_mxfp4(rng, outputs, 32 * groups)
    if not contiguous:
        blocks, scales = np.repeat(weight.blocks, 2, 0), np.repeat(weight.scales, 2, 0)
        weight = MXFP4(blocks[::2], scales[::2])
    b = bits(gaussian(rng, outputs))
    with instructions(path), integers_from_256():
        ours = kernels.linear(x, weight, b)
    bound = MXFP4_BOUND if groups >= 8 and path != "plain" else FLOAT_BOUND
    assert relative_l2(ours, layers.linear(x, weight, b, policy=FLOAT64)) <= bound


@EVERY_PATH
@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("inputs", [256, 288, 2880])
def test_mxfp4_of_few_tokens_refines_a_dominant_block(path: str, inputs: int, tokens: int) -> None:
    """16 bits would give up to 1.4e-4: all activations of a block share the step of the largest."""
    worst = 0.0
    for seed in range(2 if INTERPRETED else 40):
        rng = np.random.default_rng(seed)
        x = gaussian(rng, tokens, inputs, heavy=True)
        weight = random_mxfp4(rng, 70, inputs)
        with instructions(path), integers_from_256():
            ours = kernels.linear(x, weight)
        worst = max(worst, relative_l2(ours, layers.linear(x, weight, policy=FLOAT64)))
    assert worst <= 5e-6  # 2.6e-6 was seen, from the other blocks' 16 bits


@EVERY_PATH
def test_mxfp4_of_few_tokens_with_outliers_in_many_blocks(path: str) -> None:
    """None of eight dominates the row: the worst case of 16 bits."""
    rng = np.random.default_rng(3)
    x = gaussian(rng, 2, 544)
    x[:, 5 : 5 + 8 * 32 : 32] = 1000
    weight = random_mxfp4(rng, 70, 544)
    with instructions(path):
        ours = kernels.linear(x, weight)
    assert relative_l2(ours, layers.linear(x, weight, policy=FLOAT64)) <= MXFP4_BOUND


@EVERY_PATH
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 14])
def test_mxfp4_bound_at_the_released_width(path: str, tokens: int, heavy: bool) -> None:
    rng = np.random.default_rng(1)
    inputs = 256 if INTERPRETED else 2880
    x = gaussian(rng, tokens, inputs, heavy=heavy)
    weight = random_mxfp4(rng, 70, inputs)
    with instructions(path), integers_from_256():
        ours = kernels.linear(x, weight)
    assert relative_l2(ours, layers.linear(x, weight, policy=FLOAT64)) <= MXFP4_BOUND


@EVERY_PATH
@SHAPES
@pytest.mark.parametrize("scale_255", ["nan", "exponent"])
def test_mxfp4_extreme_scales(path: str, shape: tuple[int, int], scale_255: str) -> None:
    """Bytes 0, 1, 216, 254 and 255, each in a row of its own and one among ordinary ones."""
    rng = np.random.default_rng(2)
    x = gaussian(rng, *shape)
    weight = random_mxfp4(rng, 70, shape[1], scale_255=scale_255)
    for row, byte in enumerate((0, 1, 254, 255, 216)):
        weight.scales[row] = byte
        weight.scales[10 + row, 1] = byte
    with instructions(path):
        ours = kernels.linear(x, weight)
    with np.errstate(all="ignore"):
        theirs = layers.linear(x, weight)
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    for row in np.flatnonzero(np.isfinite(theirs).all(axis=0)):
        # a row's few results may cancel: of the sums of magnitudes
        decoded = layers.mxfp4.decode(weight.blocks[row], weight.scales[row]).astype(np.float64)
        size = np.linalg.norm(x) * np.linalg.norm(decoded)
        off = np.linalg.norm(ours[:, row].astype(np.float64) - theirs[:, row])
        assert off <= MXFP4_BOUND * size, row


@EVERY_PATH
@SHAPES
def test_mxfp4_scale_255_as_an_error_names_the_tensor(path: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    weight = random_mxfp4(rng, 66, shape[1], scale_255="error", name="the tensor")
    weight.scales[65, 1] = 255
    with instructions(path), pytest.raises(CheckpointError, match=r"the tensor.*\[65, 1\]"):
        kernels.linear(np.ones(shape, np.float32), weight)


@EVERY_PATH
@pytest.mark.parametrize("kind", ["bfloat16", "mxfp4"])
@SHAPES
def test_nan_and_infinity_propagate(path: str, kind: str, shape: tuple[int, int]) -> None:
    """To their own token's results only, exactly where the layer has them."""
    rng = np.random.default_rng(4)
    tokens, inputs = shape
    weight = random_mxfp4(rng, 65, inputs) if kind == "mxfp4" else bits(gaussian(rng, 65, inputs))
    for value in (np.nan, np.inf, -np.inf):
        x = gaussian(rng, tokens, inputs)
        x[tokens // 2, 41] = value
        with instructions(path):
            ours = kernels.linear(x, weight)
        with np.errstate(invalid="ignore"):
            theirs = layers.linear(x, weight, policy=FLOAT64)
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)
        finite = np.isfinite(theirs)
        assert relative_l2(ours[finite], theirs[finite]) <= MXFP4_BOUND


@EVERY_PATH
@pytest.mark.parametrize("tokens", [1, 9])
def test_infinite_weights(path: str, tokens: int) -> None:
    """Infinities of either sign, as in the layer, also where activations are exact bfloat16."""
    rng = np.random.default_rng(10)
    x = gaussian(rng, tokens, 64)
    x[tokens // 2] = np.round(x[tokens // 2] * 8) / 8 + 0.0625
    w = gaussian(rng, 70, 64)
    w[3, 5], w[40, 60], w[69, 0], w[50, :2] = np.inf, -np.inf, np.inf, [np.inf, -np.inf]
    weight = bits(w)
    with instructions(path):
        ours = kernels.linear(x, weight)
    with np.errstate(invalid="ignore"):
        theirs = layers.linear(x, weight, policy=FLOAT64)
    assert np.isinf(theirs).any()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@EVERY_PATH
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30])
@SHAPES
def test_mxfp4_activations_beyond_int16s_factor(
    path: str, shape: tuple[int, int], size: float
) -> None:
    rng = np.random.default_rng(5)
    x = gaussian(rng, *shape) * np.float32(size)
    weight = random_mxfp4(rng, 64, shape[1])
    with instructions(path):
        for rows in (x, x[:1]):
            ours = kernels.linear(rows, weight)
            # 1e-38 is a subnormal: it has fewer bits than the bound asks for
            bound = 1e-3 if size == 1e-38 else MXFP4_BOUND
            assert relative_l2(ours, layers.linear(rows, weight, policy=FLOAT64)) <= bound


@EVERY_PATH
def test_leading_axes_and_no_tokens(path: str) -> None:
    rng = np.random.default_rng(6)
    weight = bits(gaussian(rng, 5, 8))
    with instructions(path):
        for shape in ((8,), (2, 3, 8), (0, 8)):
            x = gaussian(rng, *shape)
            ours = kernels.linear(x, weight)
            assert relative_l2(ours, layers.linear(x, weight, policy=FLOAT64)) <= FLOAT_BOUND
        x = gaussian(rng, 3, 8)
        for same in (x[:, ::-1][:, ::-1], spread(x), misaligned(x), x.astype(np.float64)):
            np.testing.assert_array_equal(kernels.linear(same, weight), kernels.linear(x, weight))


def test_errors_name_what_was_expected() -> None:
    x, weight = np.ones((2, 8), np.float32), np.ones((5, 8), np.float32)
    with pytest.raises(GptOssError, match=r"\(2, 7\).*\(5, 8\)"):
        kernels.linear(x[:, :7], weight)
    with pytest.raises(GptOssError, match=r"\(4,\).*\(5,\)"):
        kernels.linear(x, weight, np.zeros(4, np.float32))
    for policy in (FLOAT64, BFLOAT16):
        with pytest.raises(GptOssError, match=policy.name):
            kernels.linear(x, weight, policy=policy)


def test_mxfp4_blocks_that_do_not_fit_their_scales() -> None:
    """Never read beyond their end, wherever they are used."""
    x, one = np.ones((1, 32), np.float32), np.ones((1, 1))
    blocks, scales = np.zeros((3, 1, 16), np.uint8), np.full((64, 1), 127, np.uint8)
    fitting = MXFP4(np.zeros((64, 1, 16), np.uint8), scales)
    for wrong, message in (
        (MXFP4(blocks, scales, "mine"), r"mine.*\(3, 1, 16\).*\(64, 1\)"),
        (MXFP4(blocks[::2], scales, "mine"), r"mine.*\(2, 1, 16\).*\(64, 1\)"),
        (MXFP4(fitting.blocks.astype(np.int64), scales, "mine"), "mine.*int64.*uint8"),
        (MXFP4(fitting.blocks, scales.astype(np.int16), "mine"), "mine.*int16.*uint8"),
    ):
        with pytest.raises(GptOssError, match=message):
            kernels.linear(x, wrong)
        w1, w2 = (MXFP4(w.blocks[None], w.scales[None], w.name) for w in (wrong, fitting))
        with pytest.raises(GptOssError, match="mine"):
            kernels.experts(
                x, np.zeros((1, 1), np.int64), one, w1, np.zeros((1, 64)), w2[:, :32],
                np.zeros((1, 32)),
            )  # fmt: skip


@EVERY_PATH
def test_few_and_many_tokens_round_activations_alike(path: str) -> None:
    """Each row of the matrix shows one activation: ``diagnose`` relies on one rule for both."""
    inputs = 256 if INTERPRETED else 544
    x = gaussian(np.random.default_rng(8), 5, inputs)
    codes = np.zeros((inputs, inputs), np.uint8)
    np.fill_diagonal(codes, 2)  # 1.0
    blocks = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(inputs, -1, 16)
    weight = MXFP4(blocks, np.full(blocks.shape[:-1], 127, np.uint8))
    with instructions(path), integers_from_256():
        many, few = kernels.linear(x, weight), kernels.linear(x[:1], weight)
    assert relative_l2(many, x) <= MXFP4_BOUND
    if path != "amx":
        np.testing.assert_allclose(few[0], many[0], rtol=1e-6, atol=1e-6)  # a step: 1e-4
