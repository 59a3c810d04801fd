"""Low-rank factors and adapted weights, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gptoss_ref.checkpoint.adapter import Adapter, LowRank
from gptoss_ref.numerics import BFLOAT16, FLOAT64, float_to_bfloat16


def test_the_product_of_factors_in_another_precision() -> None:
    rng = np.random.default_rng(0)
    factors = LowRank(
        rng.normal(size=(2, 5)).astype("f4"), rng.normal(size=(3, 2)).astype("f4"), 0.3
    )
    a, b = factors.a.astype(np.float64), factors.b.astype(np.float64)
    assert factors.product().dtype == np.float32
    np.testing.assert_allclose(factors.product(np.float64), 0.3 * b @ a, rtol=1e-14)
    assert factors.rank == 2


@dataclass
class Weights:
    """Stands for ModelWeights."""

    matrices: dict[str, Any]

    def named(self) -> dict[str, Any]:
        return self.matrices

    def replaced(self, changed: dict[str, Any]) -> dict[str, Any]:
        return {**self.matrices, **changed}


def test_factors_are_added_and_whole_weights_replace() -> None:
    rng = np.random.default_rng(1)
    bits = {name: float_to_bfloat16(rng.normal(size=(3, 5))) for name in "wxyz"}
    single = LowRank(
        rng.normal(size=(2, 5)).astype("f4"), rng.normal(size=(3, 2)).astype("f4"), 0.3
    )
    factors = LowRank(single.a.astype(float), single.b.astype(float), 0.3)
    new = rng.normal(size=(3, 5))
    adapter = Adapter({"w": single, "x": single}, {"x": new, "y": new})
    assert (adapter.alpha, adapter.rslora, adapter.base) == (1.0, False, "")
    weights = Weights(bits)
    stored = {
        n: (x.astype(np.uint32) << 16).view(np.float32).astype(float) for n, x in bits.items()
    }
    added = 0.3 * factors.b @ factors.a
    expected = {"w": stored["w"] + added, "x": new + added, "y": new}
    changed = adapter.changed(weights, FLOAT64)  # type: ignore[arg-type]
    assert set(changed) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(changed[name], values, rtol=1e-14)
        rounded = adapter.changed(weights, BFLOAT16)[name]  # type: ignore[arg-type]
        np.testing.assert_allclose(rounded, values, rtol=2**-7, atol=2**-7)
        assert not (rounded.astype(np.float32).view(np.uint32) & 0xFFFF).any(), "bfloat16"
    applied: Any = adapter.applied(weights, FLOAT64)  # type: ignore[arg-type]
    np.testing.assert_array_equal(applied["z"], bits["z"])
    np.testing.assert_array_equal(applied["x"], changed["x"])
