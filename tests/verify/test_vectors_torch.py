"""The suite's expected values against PyTorch in float64, which shares no line with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from gptoss_ref.checkpoint import load_checkpoint
from gptoss_ref.numerics import Array
from gptoss_ref.verify.vectors import Case, all_cases
from gptoss_ref.verify.vectors.suite import expected
from tests.support import torch_twin as twin
from tests.support.buggy_twin import tiny
from tests.support.buggy_twin.loading import decode, load

OURS_ALONE = {"mxfp4_encode"}  # no torch counterpart: test_mxfp4.py holds encode to ml_dtypes


def embedding(v: dict[str, Any]) -> dict[str, Any]:
    return {"x": v["weight"][v["tokens"]]}


def rmsnorm(v: dict[str, Any]) -> dict[str, Any]:
    return {"y": twin.rmsnorm(v["x"], v["scale"], v["eps"])}


def linear(v: dict[str, Any]) -> dict[str, Any]:
    return {"y": twin.linear(v["x"], v["weight"], v["bias"])}


def yarn(v: dict[str, Any]) -> dict[str, Any]:
    inv_freq, concentration = twin.yarn(**v)
    return {"inv_freq": inv_freq, "concentration": torch.tensor([concentration])}


def rope(v: dict[str, Any]) -> dict[str, Any]:
    x, positions = v.pop("x"), v.pop("positions")
    tables = twin.rope_tables(positions, *twin.yarn(**v), torch.float64)
    return {"y": twin.rope(x, *tables)}


def attention(v: dict[str, Any]) -> dict[str, Any]:
    where = v["sinks"], v["q_positions"], v["k_positions"], v["window"]
    weights = twin.attention_weights(v["q"], v["k"], *where)
    return {"weights": weights, "mix": twin.attention_mix(weights, v["v"])}


def router(v: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(("logits", "indices", "weights"), twin.router(*v.values()), strict=True))


def swiglu(v: dict[str, Any]) -> dict[str, Any]:
    return {"y": twin.swiglu(*v.values())}


def experts(v: dict[str, Any]) -> dict[str, Any]:
    mlp1, mlp2 = (
        decode(v[f"{name}_blocks"], v[f"{name}_scales"], frozenset()).double()
        for name in ("mlp1", "mlp2")
    )
    return {
        "y": twin.experts(
            *(v["x"], v["indices"], v["weights"], mlp1, v["mlp1_bias"], mlp2, v["mlp2_bias"]),
            alpha=v["alpha"],
            limit=v["limit"],
        )
    }


def mxfp4_decode(v: dict[str, Any]) -> dict[str, Any]:
    return {"values": decode(v["blocks"], v["scales"], frozenset())}


def sampling(v: dict[str, Any]) -> dict[str, Any]:
    """By masks of the logits, as samplers on a GPU do it."""
    logits = v["logits"] / v["temperature"]
    if 0 < v["top_k"] < len(logits):
        logits = logits.masked_fill(logits < torch.topk(logits, v["top_k"]).values[-1], -torch.inf)
    largest, order = torch.softmax(logits, -1).sort(descending=True)
    before = largest.cumsum(-1) - largest  # the mass ahead of each
    gone = torch.zeros_like(before, dtype=torch.bool).scatter(0, order, before >= v["top_p"])
    return {"probabilities": torch.softmax(logits.masked_fill(gone, -torch.inf), -1)}


def model(v: dict[str, Any]) -> dict[str, Any]:
    config, taps = load_checkpoint("tiny").config, dict[str, Any]()
    weights = load(tiny(), torch.float64, frozenset())
    logits = twin.forward(config, weights, v["tokens"], taps.__setitem__)
    layers = range(config.num_hidden_layers)
    residual = torch.stack([taps[f"block.{n}.mlp.residual"] for n in layers])
    return {"residual": residual, "logits": logits}


def grads(value: Any, given: Any, *inputs: Any) -> tuple[Any, ...]:
    """Gradients of ``value`` for ``inputs``, by torch; ``given`` is the gradient for ``value``."""
    return torch.autograd.grad(value, inputs, given)


def watched(v: dict[str, Any], *names: str) -> list[Any]:
    """These inputs, to be differentiated for."""
    for name in names:
        v[name] = v[name].clone().requires_grad_()
    return [v[name] for name in names]


def embedding_backward(v: dict[str, Any]) -> dict[str, Any]:
    table = torch.zeros(v["vocabulary"], v["d_x"].shape[1], dtype=torch.float64).requires_grad_()
    return {"d_weight": grads(table[v["tokens"]], v["d_x"], table)[0]}


def rmsnorm_backward(v: dict[str, Any]) -> dict[str, Any]:
    inputs = watched(v, "x", "scale")
    found = grads(twin.rmsnorm(v["x"], v["scale"], v["eps"]), v["d_y"], *inputs)
    return dict(zip(("d_x", "d_scale"), found, strict=True))


def linear_backward(v: dict[str, Any]) -> dict[str, Any]:
    x, weight = watched(v, "x", "weight")
    bias = torch.zeros(len(weight), dtype=torch.float64).requires_grad_()
    found = grads(twin.linear(x, weight, bias), v["d_y"], x, weight, bias)
    return dict(zip(("d_x", "d_weight", "d_bias"), found, strict=True))


def rope_backward(v: dict[str, Any]) -> dict[str, Any]:
    d_y = v.pop("d_y")
    x = torch.zeros_like(d_y).requires_grad_()
    return {"d_x": grads(rope({"x": x, **v})["y"], d_y, x)[0]}


def attention_backward(v: dict[str, Any]) -> dict[str, Any]:
    inputs = watched(v, "q", "k", "v", "sinks")
    found = grads(attention(v)["mix"], v["d_mix"], *inputs)
    return dict(zip(("d_q", "d_k", "d_v", "d_sinks"), found, strict=True))


def router_backward(v: dict[str, Any]) -> dict[str, Any]:
    (logits,) = watched(v, "logits")
    weights = torch.softmax(logits.gather(1, v["indices"]), -1)
    return {"d_logits": grads(weights, v["d_weights"], logits)[0]}


def swiglu_backward(v: dict[str, Any]) -> dict[str, Any]:
    (x,) = watched(v, "x")
    return {"d_x": grads(twin.swiglu(x, v["alpha"], v["limit"]), v["d_y"], x)[0]}


def experts_backward(v: dict[str, Any]) -> dict[str, Any]:
    names = ("x", "weights", "mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias")
    x, weights, *matrices = inputs = watched(v, *names)
    given = {"alpha": v["alpha"], "limit": v["limit"]}
    y = twin.experts(x, v["indices"], weights, *matrices, **given)
    return {f"d_{n}": d for n, d in zip(names, grads(y, v["d_y"], *inputs), strict=True)}


def cross_entropy(v: dict[str, Any]) -> dict[str, Any]:
    (logits,) = watched(v, "logits")
    each = torch.nn.functional.cross_entropy(logits, v["targets"].clamp(min=0), reduction="none")
    counts = v["mask"].bool()
    loss = each[counts].mean()
    return {"loss": loss.detach().reshape(1), "d_logits": torch.autograd.grad(loss, logits)[0]}


def given(case: Case) -> dict[str, Any]:
    """Inputs as tensors, floats in float64, and parameters as numbers."""
    arrays = {
        name: torch.from_numpy(
            values.astype({"f": np.float64, "i": np.int64, "u": np.uint8}[values.dtype.kind])
        )
        for name, values in case.inputs.items()
    }
    return {**arrays, **case.parameters}


def close(values: Array, right: Array) -> None:
    """Equal except for the rounding to float32, in which the suite stores them."""
    values = np.asarray(values)
    if right.dtype.kind != "f":
        np.testing.assert_array_equal(values, right)
        return
    scale = float(np.abs(right[np.isfinite(right)]).max(initial=0))
    np.testing.assert_allclose(values, right, rtol=2**-23, atol=2**-40 * scale)


@pytest.mark.parametrize(
    "case",
    [case for case in all_cases() if case.operation.name not in OURS_ALONE],
    ids=lambda case: case.id,
)
def test_torch_agrees(case: Case) -> None:
    with torch.enable_grad():
        answer = globals()[case.operation.name](given(case))
    right = expected(case)
    assert set(answer) == set(right)
    for name, values in answer.items():
        close(values, right[name])
