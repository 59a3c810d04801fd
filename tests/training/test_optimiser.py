"""AdamW, clipping and schedules against torch and transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers

from gptoss_ref.errors import GptOssError
from gptoss_ref.training import SCHEDULES, AdamW, Moments, Recipe, clip, share

SHAPES = {
    "block.0.attn.q_weight": (5, 3),
    "block.0.attn.sinks": (4,),
    "block.0.mlp.mlp1_bias": (2, 6),
}


def drawn(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: scale * rng.standard_normal(shape) for name, shape in SHAPES.items()}


def test_adamw_is_torchs() -> None:
    """Twenty steps at changing rates, float64; torch is told which arrays do not decay."""
    optimizer = AdamW(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    ours, moments = drawn(0), Moments.zeros(drawn(0))
    theirs = {name: torch.tensor(w, requires_grad=True) for name, w in drawn(0).items()}
    groups = [
        {"params": [w], "weight_decay": 0.1 if name.endswith("weight") else 0.0}
        for name, w in theirs.items()
    ]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    for step in range(20):
        rate = 0.1 / (step + 1)
        gradients = drawn(step + 1, 10.0 ** (step % 5 - 3))
        ours, moments = optimizer.step(ours, gradients, moments, rate)
        for name, w in theirs.items():
            w.grad = torch.tensor(gradients[name])
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for name, w in theirs.items():
        np.testing.assert_allclose(ours[name], w.detach().numpy(), rtol=1e-13, atol=1e-15)
    assert moments.steps == 20


def test_a_step_changes_nothing_in_place() -> None:
    parameters, gradients = drawn(0), drawn(1)
    kept = {name: w.copy() for name, w in parameters.items()}
    AdamW().step(parameters, gradients, Moments.zeros(parameters), 0.1)
    assert all((parameters[name] == kept[name]).all() for name in kept)


def test_float32_stays_float32() -> None:
    parameters = {name: w.astype(np.float32) for name, w in drawn(0).items()}
    moved, moments = AdamW(weight_decay=0.1).step(
        parameters, parameters, Moments.zeros(parameters), 0.1
    )
    every = [*moved.values(), *moments.first.values(), *moments.second.values()]
    assert {w.dtype for w in every} == {np.dtype(np.float32)}


@pytest.mark.parametrize("limit", [0.5, 3.0, 1e3])
def test_clipping_is_torchs(limit: float) -> None:
    """Torch divides by the length plus 1e-6."""
    gradients = drawn(3)
    parameters = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES.values()]
    for parameter, name in zip(parameters, SHAPES, strict=True):
        parameter.grad = torch.tensor(gradients[name])
    length = torch.nn.utils.clip_grad_norm_(parameters, limit)
    ours, before = clip(gradients, limit)
    assert before == pytest.approx(float(length), rel=1e-14)
    for parameter, name in zip(parameters, SHAPES, strict=True):
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_length_that_is_not_finite_is_told(value: float) -> None:
    _, length = clip({"a": np.array([1.0, value])}, 1.0)
    assert not math.isfinite(length)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_are_those_of_transformers(schedule: str) -> None:
    """Theirs takes a rate of zero in the first step of the warm-up: ours is one step further."""
    warmup, steps = 5, 23
    name = {"constant": "constant_with_warmup"}.get(schedule, schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = transformers.get_scheduler(name, optimizer, warmup, steps)
    for step in range(steps):
        theirs = optimizer.param_groups[0]["lr"]
        if step < warmup:
            assert share(schedule, step, steps, warmup=warmup) == pytest.approx(theirs + 1 / warmup)
        else:
            assert share(schedule, step, steps, warmup=warmup) == pytest.approx(theirs, abs=1e-12)
        optimizer.step()
        reference.step()


def test_warmup_stable_decay() -> None:
    rates = [share("wsd", step, 105, warmup=5, floor=0.1) for step in range(105)]
    assert rates[5:85] == [1.0] * 80
    np.testing.assert_allclose(np.diff(rates[85:]), -0.9 / 20)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_never_leaves_its_range(schedule: str) -> None:
    for steps in (1, 2, 7, 50):
        for warmup in (0, 1, 7, 60):
            rates = [share(schedule, s, steps, warmup=warmup, floor=0.25) for s in range(steps)]
            assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("steps", 0, "steps is 0: expected an integer of 1 or more"),
        ("batch_size", 2.0, "batch_size is 2.0: expected an integer of 1 or more"),
        ("accumulation", True, "accumulation is True"),
        ("learning_rate", math.nan, "learning_rate is nan: expected a number above 0"),
        ("clip", 0.0, "clip is 0.0"),
        ("learning_rate", "1e-3", "learning_rate is '1e-3': expected a number above 0"),
        ("floor", -1.0, "floor is -1.0: expected a number of 0 or more"),
        ("schedule", "cosinus", "unknown schedule 'cosinus': expected one of constant, linear"),
    ],
)
def test_a_recipe_that_cannot_be(setting: str, value: object, message: str) -> None:
    with pytest.raises(GptOssError, match=message):
        Recipe(**{setting: value})


def test_constants_of_adamw_that_cannot_be() -> None:
    with pytest.raises(GptOssError, match=r"betas of AdamW are \(0.9, 1.0\): expected two from 0"):
        AdamW(betas=(0.9, 1.0))
    with pytest.raises(GptOssError, match=r"betas of AdamW are \(0.9,\): expected two from 0"):
        AdamW(betas=(0.9,))  # type: ignore[arg-type]
    with pytest.raises(GptOssError, match="weight_decay -1 of AdamW"):
        AdamW(weight_decay=-1)


def test_every_epoch_sees_every_example_once_in_another_order() -> None:
    recipe = Recipe(batch_size=3, seed=7)
    drawn = np.concatenate([recipe.batch(step, 10) for step in range(10)])
    epochs = drawn.reshape(3, 10)
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert Recipe(batch_size=3, epochs=3).length(10) == 10
    assert (recipe.batch(4, 10) == recipe.batch(4, 10)).all()
    assert (recipe.batch(0, 10) != Recipe(batch_size=3, seed=8).batch(0, 10)).any()
