"""A policy by its name, and what is no policy: every layer and every kernel that takes one."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from gptoss_ref import kernels, layers
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import POLICIES
from tests.support.strategies import normal

RNG = np.random.default_rng(3)
T, D, E, A, F = 3, 6, 5, 2, 4
X = normal(RNG, T, D).astype(np.float32)
HEADS = normal(RNG, T, 2, 4).astype(np.float32)
AT = np.arange(T)
WEIGHTS = (normal(RNG, E, 2 * F, D), normal(RNG, E, 2 * F), normal(RNG, E, D, F), normal(RNG, E, D))
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "attention": (HEADS, HEADS, HEADS, np.zeros(2), AT, AT),
    "attention_weights": (HEADS, HEADS, np.zeros(2), AT, AT),
    "embedding": (AT, X),
    "experts": (X, np.array([[0, 1], [4, 2], [2, 1]]), np.full((T, A), 0.5, np.float32), *WEIGHTS),
    "linear": (X, normal(RNG, E, D), np.ones(E)),
    "rmsnorm": (X, np.ones(D)),
    "rope": (HEADS, np.ones((T, 2)), np.zeros((T, 2))),
    "rope_tables": (AT, np.array([1.0, 0.1]), 1.3),
    "router": (X, normal(RNG, E, D), np.zeros(E), A),
    "swiglu": (X,),
}
TAKERS = [
    pytest.param(room, name, id=f"{room.__name__.partition('.')[2]}.{name}")
    for room in (layers, kernels)
    for name in room.__all__
    if callable(getattr(room, name))
    and "policy" in inspect.signature(getattr(room, name)).parameters
]


def result(room: Any, name: str, policy: Any) -> list[np.ndarray]:
    found = getattr(room, name)(*ARGUMENTS[name], policy=policy)
    return [found] if isinstance(found, np.ndarray) else list(found)


def test_every_layer_but_those_without_rounding_takes_a_policy() -> None:
    taking = {param.values[1] for param in TAKERS if param.values[0] is layers}
    assert set(layers.__all__) - taking == {"mxfp4", "yarn"}


@pytest.mark.parametrize(("room", "name"), TAKERS)
def test_a_name_is_as_good_as_the_policy(room: Any, name: str) -> None:
    for policy in POLICIES.values() if room is layers else [POLICIES["float32"]]:
        by_name, by_policy = result(room, name, policy.name), result(room, name, policy)
        assert len(by_name) == len(by_policy) > 0
        for ours, expected in zip(by_name, by_policy, strict=True):
            assert ours.dtype == expected.dtype
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("bad", ["float16", "", None, np.float64, ["float64"]], ids=repr)
@pytest.mark.parametrize(("room", "name"), TAKERS)
def test_what_is_no_policy_is_named_with_those_there_are(room: Any, name: str, bad: Any) -> None:
    with pytest.raises(GptOssError, match=r"unknown policy .*: expected one of float64, float32"):
        result(room, name, bad)


@pytest.mark.parametrize("name", [p.values[1] for p in TAKERS if p.values[0] is kernels])
def test_a_kernel_refuses_another_policy_by_name_too(name: str) -> None:
    with pytest.raises(GptOssError, match="policy float64 needs the numpy backend"):
        result(kernels, name, "float64")
