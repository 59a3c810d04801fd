"""MXFP4 kernels: decoding and encoding give the layer's result exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import kernels, layers
from gptoss_ref.errors import CheckpointError, GptOssError
from tests.support.kernel_cases import EXAMPLES, random_mxfp4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale_255", ["nan", "exponent"])
def test_decode_every_byte_under_every_scale(dtype: type, scale_255: str) -> None:
    blocks = np.arange(256, dtype=np.uint8).reshape(16, 1, 16).repeat(256, axis=1)
    scales = np.arange(256, dtype=np.uint8)[None].repeat(16, axis=0)
    ours = kernels.mxfp4.decode(blocks, scales, scale_255=scale_255, dtype=dtype)
    theirs = layers.mxfp4.decode(blocks, scales, scale_255=scale_255, dtype=dtype)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
    numbers = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.signbit(ours[numbers]), np.signbit(theirs[numbers]))


def test_decode_strided_views() -> None:
    weight = random_mxfp4(np.random.default_rng(0), 3, 10, 96)
    blocks, scales = weight.blocks[:, ::3, 1:], weight.scales[:, ::3, 1:]
    np.testing.assert_array_equal(
        kernels.mxfp4.decode(blocks, scales), layers.mxfp4.decode(blocks, scales)
    )


@pytest.mark.parametrize("rule", ["floor", "ceil", "even", "fit"])
@EXAMPLES
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0, 3, 40, 140]))
def test_encode_equals_the_layer(rule: str, seed: int, spread: int) -> None:
    """Values on and beside the midpoints between codes, zeros of both signs, NaN and infinities."""
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array([0, 0.25, 0.5, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7]), (7, 3, 32))
    x = x * rng.choice([-1.0, 1.0], x.shape) * (1 + rng.choice([-1e-9, 0, 1e-9], x.shape))
    x = np.ldexp(x, rng.integers(-spread, spread + 1, (7, 3, 1)))
    x[0, 0, 3], x[0, 1, 30], x[1, 0, 31], x[1, 1] = np.nan, np.inf, -np.inf, -0.0
    x[2] = rng.normal(size=(3, 32))
    x = x.reshape(7, 96)
    blocks, scales = kernels.mxfp4.encode(x, rule=rule)
    expected_blocks, expected_scales = layers.mxfp4.encode(x, rule=rule)
    np.testing.assert_array_equal(scales, expected_scales)
    numbers = expected_scales < 255  # a block of scale 255 decodes to NaN, whatever its codes
    np.testing.assert_array_equal(blocks[numbers], expected_blocks[numbers])


def test_errors() -> None:
    blocks, scales = np.zeros((2, 3, 16), np.uint8), np.zeros((2, 3), np.uint8)
    with pytest.raises(GptOssError, match=r"a tensor.*do not fit"):
        kernels.mxfp4.decode(blocks[:1], scales, name="a tensor")
    with pytest.raises(GptOssError, match="scale_255"):
        kernels.mxfp4.decode(blocks, scales, scale_255="zero")  # type: ignore[arg-type]
    scales[1, 2] = 255
    with pytest.raises(CheckpointError, match=r"a tensor.*\[1, 2\]"):
        kernels.mxfp4.decode(blocks, scales, scale_255="error", name="a tensor")
    with pytest.raises(GptOssError, match="33"):
        kernels.mxfp4.encode(np.zeros((2, 33)))
    with pytest.raises(GptOssError, match="rule"):
        kernels.mxfp4.encode(np.zeros(32), rule="up")  # type: ignore[arg-type]
