"""Policy bfloat16 against the twin's bfloat16 run, which rounds where OpenAI's reference does.

Rounding makes runs chaotic: a value that float32 sums of another order put on the other side of a
rounding is off by 2^-8, and what follows from it may be, too. So the claim is comparative: at least
five times closer than the float32 policy. On these sizes most runs agree in every bit.

Routing flips (a router margin within bfloat16's rounding) are a discrete difference and no measure
of rounding points. The cases are those that the twin routes alike in bfloat16 and float64; the
routes of both policies must then equal the twin's.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.support import torch_twin
from tests.support.agreement import STRAYS
from tests.support.checks_model import (
    build_model,
    check_rounding_points,
    flip_free_cases,
    in_chunks,
    rounding_distances,
    routes,
    tap_names,
    taps_of,
    twin_logits,
)
from tests.support.distance import relative_l2
from tests.support.strategies import as_torch, random_arrays, random_tokens, small_config

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_five_times_closer_than_float32() -> None:
    cases = flip_free_cases()
    assert len(cases) == 10
    check_rounding_points(build_model, cases)


def test_closer_in_every_single_case() -> None:
    for case in flip_free_cases():
        near, far = rounding_distances(build_model, *case)
        assert 2 * near <= far


def test_routes_are_the_twins() -> None:
    for config, arrays, tokens in flip_free_cases():
        weights = as_torch(arrays, torch.bfloat16)
        expected = routes(partial(torch_twin.forward, config, weights, tokens))
        for policy in ("bfloat16", "float32"):
            model = build_model(config, arrays, policy)
            assert routes(partial(model, tokens)) == expected


def test_near_ties_mostly_fall_the_same_way() -> None:
    """Over all seeds, near ties included: equal rounding makes equal routes, float32 does not."""
    config = small_config()
    alike = {"bfloat16": 0, "float32": 0}
    for seed in range(30):
        arrays, tokens = random_arrays(config, seed), random_tokens(config, 20, seed)
        weights = as_torch(arrays, torch.bfloat16)
        expected = routes(partial(torch_twin.forward, config, weights, tokens))
        for policy in alike:
            model = build_model(config, arrays, policy)
            alike[policy] += routes(partial(model, tokens)) == expected
    assert alike["bfloat16"] >= 27
    assert alike["float32"] <= 20


def test_every_tap_point_of_the_first_block() -> None:
    """Nearly all values equal, bit for bit, at every place where the reference stores bfloat16."""
    config = small_config(layers=1)
    for seed in range(3):
        arrays, tokens = random_arrays(config, seed), random_tokens(config, 20, seed)
        weights = as_torch(arrays, torch.bfloat16)
        theirs = taps_of(partial(torch_twin.forward, config, weights, tokens))
        ours = taps_of(partial(build_model(config, arrays, "bfloat16"), tokens))
        for name in tap_names(config):
            different = int((ours[name] != theirs[name]).sum())
            assert different <= 1 + STRAYS * ours[name].size, f"{different} differ at {name}"


def test_the_cache_rounds_alike() -> None:
    for config, arrays, tokens in flip_free_cases()[:4]:
        theirs = twin_logits(config, arrays, tokens, "bfloat16")
        model = build_model(config, arrays, "bfloat16")
        _, far = rounding_distances(build_model, config, arrays, tokens)
        assert 2 * relative_l2(in_chunks(model, tokens, [7, 1, 12]), theirs) <= far


def test_mxfp4_is_exact_in_bfloat16() -> None:
    config = small_config(d_model=32, d_ff=64)
    arrays, tokens = random_arrays(config, 2, mxfp4=True), random_tokens(config, 9, 2)
    near, far = rounding_distances(build_model, config, arrays, tokens)
    assert 5 * near <= far
