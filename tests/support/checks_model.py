"""Assertions on whole models, as functions of how the model is built.

``build(config, arrays, policy)`` returns the model under test; ``build_model`` is the package's
own, and test_mutations.py passes builders with one layer made wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch

from gptoss_ref.backend import NUMPY, Backend
from gptoss_ref.config import ModelConfig
from gptoss_ref.model import Model
from tests.support import torch_twin
from tests.support.agreement import TORCH, Array, as_array
from tests.support.distance import relative_l2
from tests.support.strategies import (
    Arrays,
    as_torch,
    as_weights,
    random_arrays,
    random_tokens,
    small_config,
)
from tests.support.transformers_model import transformers_model

Builder = Callable[[ModelConfig, Arrays, str], Any]

# Relative L2 distance of whole models, and of each tap point, to the float64 twin.
MODEL_TOLERANCE = {"float64": 1e-11, "float32": 1e-5}


def build_model(
    config: ModelConfig, arrays: Arrays, policy: str, backend: Backend = NUMPY
) -> Model:
    """The package's model with weights as a checkpoint stores them: bfloat16 bits and MXFP4."""
    return Model(config, as_weights(arrays), policy=policy, backend=backend)


@dataclass(frozen=True)
class Subject:
    """What a law is held to: a backend under a policy, and the rounding that is its own.

    ``same`` is the relative L2 distance of two computations that are equal in real numbers.
    """

    backend: str
    policy: str
    same: float

    def build(self, config: ModelConfig, arrays: Arrays) -> Model:
        """The package's model."""
        return Model(config, as_weights(arrays), policy=self.policy, backend=self.backend)


SUBJECTS = pytest.mark.parametrize(
    "subject",
    [Subject("numpy", "float64", 1e-12), Subject("numba", "float32", 1e-5)],
    ids=["numpy", "numba"],
)


def twin_logits(config: ModelConfig, arrays: Arrays, tokens: Sequence[int], policy: str) -> Array:
    """The twin's logits (T, V) as float64."""
    return as_array(torch_twin.forward(config, as_torch(arrays, TORCH[policy]), tokens))


def in_chunks(model: Any, tokens: Sequence[int], chunks: Sequence[int], cache: Any = None) -> Array:
    """Logits (T, V) of consecutive passes on one cache."""
    assert sum(chunks) == len(tokens)
    cache = model.new_cache() if cache is None else cache
    ends = list(accumulate(chunks))
    return np.concatenate(
        [model(tokens[end - n : end], cache=cache) for n, end in zip(chunks, ends, strict=True)]
    )


@dataclass(frozen=True)
class LongCase:
    """A model, a context past YaRN's original 4096 positions, and the twin's logits for it."""

    config: ModelConfig
    arrays: Arrays
    tokens: list[int]
    logits: Array


def long_context_case() -> LongCase:
    """4,227 tokens: 131 more than 4096, and more than a window of 128 more."""
    config = small_config(layers=2, n_kv=1, group=3, head_dim=8, window=128, d_model=18, d_ff=20)
    arrays, tokens = random_arrays(config, 5), random_tokens(config, 4227, 5)
    return LongCase(config, arrays, tokens, twin_logits(config, arrays, tokens, "float64"))


def router_margin(config: ModelConfig, arrays: Arrays, tokens: Sequence[int]) -> float:
    """The smallest gap, over tokens and layers, between the last logit chosen and the first not.

    Two correct runs may route differently once this is within their rounding.
    """
    n = config.experts_per_token
    if n == config.num_experts:
        return np.inf
    taps = taps_of(partial(torch_twin.forward, config, as_torch(arrays, torch.float64), tokens))
    ordered = [-np.sort(-x, -1) for name, x in taps.items() if name.endswith("router_logits")]
    return min(float((x[:, n - 1] - x[:, n]).min()) for x in ordered)


def check_logits(
    build: Builder,
    config: ModelConfig,
    arrays: Arrays,
    tokens: Sequence[int],
    policy: str = "float64",
    chunks: Sequence[int] | None = None,
    tolerance: float | None = None,
) -> None:
    """Logits against the float64 twin, of one pass or of several passes on a cache."""
    model = build(config, arrays, policy)
    ours = model(tokens) if chunks is None else in_chunks(model, tokens, chunks)
    assert ours.shape == (len(tokens), config.vocab_size)
    assert ours.dtype == policy
    distance = relative_l2(ours, twin_logits(config, arrays, tokens, "float64"))
    assert distance <= (tolerance or MODEL_TOLERANCE[policy]), (
        f"relative L2 {distance:.3g} under {policy}"
    )


def check_transformers(
    build: Builder, config: ModelConfig, arrays: Arrays, tokens: list[int]
) -> None:
    """Relative L2 distance of all logits, at most 1e-5."""
    with torch.no_grad():
        theirs = transformers_model(config, arrays)(torch.tensor([tokens])).logits[0].numpy()
    distance = relative_l2(build(config, arrays, "float32")(tokens), theirs)
    assert distance <= MODEL_TOLERANCE["float32"], f"relative L2 {distance:.3g}"


def check_taps(
    build: Builder,
    config: ModelConfig,
    arrays: Arrays,
    tokens: Sequence[int],
    policy: str = "float64",
) -> None:
    """Every tap point, by name, shape and value; the message names the first that differs."""
    theirs = taps_of(partial(torch_twin.forward, config, as_torch(arrays, torch.float64), tokens))
    ours = taps_of(partial(build(config, arrays, policy), tokens))
    assert list(ours) == tap_names(config)
    for name in ours:
        if name.endswith("expert_indices"):
            assert np.array_equal(ours[name], theirs[name]), f"{name} differs"
        else:
            distance = relative_l2(ours[name], theirs[name])
            assert distance <= MODEL_TOLERANCE[policy], f"{name} is off by {distance:.3g}"


def tap_names(config: ModelConfig) -> list[str]:
    """The published tap points in the order in which a pass meets them."""
    attention = "norm q k v q_rope k_rope weights mix out residual"
    experts = (
        "norm router_logits expert_indices expert_weights gate_up swiglu expert_out out residual"
    )
    blocks = [
        f"block.{n}.{part}.{name}"
        for n in range(config.num_hidden_layers)
        for part, names in (("attn", attention), ("mlp", experts))
        for name in names.split()
    ]
    return ["embedding", *blocks, "norm", "logits"]


def taps_of(run: Callable[..., Any]) -> dict[str, Array]:
    """What a run reports at its tap points; ``run`` takes ``tap`` and may be ours or the twin."""
    taps: dict[str, Array] = {}

    def tap(name: str, value: Any) -> None:
        taps[name] = as_array(value) if isinstance(value, torch.Tensor) else np.array(value)

    run(tap=tap)
    return taps


def routes(run: Callable[..., Any]) -> list[list[list[int]]]:
    """The experts of every layer and token, each set in ascending order."""
    taps = taps_of(run)
    return [np.sort(x, -1).tolist() for name, x in taps.items() if name.endswith("expert_indices")]


@cache
def flip_free_cases(count: int = 10) -> tuple[tuple[ModelConfig, Arrays, list[int]], ...]:
    """Models and prompts that the twin's bfloat16 and float64 runs route alike.

    Chosen by the twin alone, without regard to what is being tested. About half of all seeds
    qualify on this size; the others hold a router margin within bfloat16's rounding.
    """
    config = small_config()
    cases = []
    for seed in range(100):
        arrays, tokens = random_arrays(config, seed), random_tokens(config, 20, seed)
        narrow, wide = (
            routes(partial(torch_twin.forward, config, as_torch(arrays, dtype), tokens))
            for dtype in (torch.bfloat16, torch.float64)
        )
        if narrow == wide:
            cases.append((config, arrays, tokens))
        if len(cases) == count:
            break
    return tuple(cases)


def rounding_distances(
    build: Builder, config: ModelConfig, arrays: Arrays, tokens: Sequence[int]
) -> tuple[float, float]:
    """Relative L2 distances of the policies bfloat16 and float32 to the twin's bfloat16 run."""
    theirs = twin_logits(config, arrays, tokens, "bfloat16")
    ours = (build(config, arrays, policy)(tokens) for policy in ("bfloat16", "float32"))
    near, far = (relative_l2(logits, theirs) for logits in ours)
    return near, far


def check_rounding_points(build: Builder, cases: Sequence[tuple[ModelConfig, Arrays, Any]]) -> None:
    """Policy bfloat16 is at least five times closer to the twin's bfloat16 run than float32 is.

    Root mean squares over the cases, which should be free of routing flips: a flip is a distance of
    its own, and where only the float32 run flips it would make this look better than it is.
    """
    near, far = np.array([rounding_distances(build, *case) for case in cases]).T
    near, far = (float(np.sqrt(np.mean(x**2))) for x in (near, far))
    assert 5 * near <= far, f"bfloat16 policy {near:.3g}, float32 policy {far:.3g} from the twin"
