"""Small wrong versions of the gradients."""

from __future__ import annotations

from types import SimpleNamespace as Given

import numpy as np

from gptoss_ref import gradients
from gptoss_ref.gradients.attention import weights_and_sink
from gptoss_ref.layers import rope_tables, yarn
from gptoss_ref.numerics import FLOAT64, Array
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.vectors.mistake import Mistake, mistake
from gptoss_ref.verify.vectors.operation import Values
from gptoss_ref.verify.vectors.operations_gradients import GRADIENTS

_RIGHT = {operation.name: operation.compute for operation in GRADIENTS}


def _right(operation: str, v: Given) -> Values:
    return _RIGHT[operation](SPECIFICATION, v)


@mistake("gradient-overwritten", "embedding_backward")
def overwritten(v: Given) -> Values:
    """The last position of a token replaces the others, instead of being added."""
    d_weight = np.zeros((v.vocabulary, v.d_x.shape[1]))
    d_weight[v.tokens] = v.d_x
    return {"d_weight": d_weight}


@mistake("second-term-missing", "rmsnorm_backward")
def second_term_missing(v: Given) -> Values:
    """The root mean square is treated as a constant."""
    x = v.x.astype(np.float64)
    root = np.sqrt((x * x).mean(-1, keepdims=True) + v.eps)
    return {**_right("rmsnorm_backward", v), "d_x": v.d_y * v.scale.astype(np.float64) / root}


@mistake("bias-gradient-averaged", "linear_backward")
def bias_averaged(v: Given) -> Values:
    """The bias's gradient is the mean over the tokens, not the sum."""
    found = _right("linear_backward", v)
    return {**found, "d_bias": found["d_bias"] / len(v.d_y)}


def _turned(v: Given, sign: float, power: int) -> Values:
    inv_freq, c = yarn(v.head_dim, v.theta, v.factor, v.original_length, v.beta_fast, v.beta_slow)
    cos, sin = rope_tables(v.positions.astype(np.int64), inv_freq, c, policy=FLOAT64)
    d_x = gradients.rope(v.d_y.astype(np.float64), cos, sign * sin, policy=FLOAT64)
    return {"d_x": d_x / c**power}


@mistake("turned-the-same-way", "rope_backward")
def turned_the_same_way(v: Given) -> Values:
    """Rotated by the same angle again instead of the opposite one."""
    return _turned(v, -1.0, 0)


@mistake("inverse-instead-of-transpose", "rope_backward")
def inverse(v: Given) -> Values:
    """Divided by the concentration instead of multiplied."""
    return _turned(v, 1.0, 2)


@mistake("sink-gradient-sign", "attention_backward")
def sink_sign(v: Given) -> Values:
    """The sinks' gradient has the wrong sign."""
    found = _right("attention_backward", v)
    return {**found, "d_sinks": -found["d_sinks"]}


def _by_weights(v: Given, window: int | None, *, lse: bool, heads: bool) -> Values:
    """The gradients with some bug: ``lse`` drops the rescaling's, ``heads`` sums over no group."""
    (length, count, channels), (_, kv, _) = v.q.shape, v.k.shape
    q, d = (
        a.astype(np.float64).reshape(length, kv, -1, channels).transpose(1, 2, 0, 3)
        for a in (v.q, v.d_mix)
    )
    k, values = (a.astype(np.float64).transpose(1, 0, 2)[:, None] for a in (v.k, v.v))
    age = v.q_positions[:, None] - v.k_positions
    visible = (age >= 0) & (age < (window or 1 << 30))
    w, share = weights_and_sink(q, k, v.sinks.astype(np.float64), visible, policy=FLOAT64)
    d_w = d @ values.swapaxes(-1, -2)
    delta = (w * d_w).sum(-1)
    d_sinks = -(share * delta).sum(-1).reshape(count)
    if lse:
        delta = delta / (1 - share)
    d_score = w * (d_w - delta[..., None]) / np.sqrt(channels)
    d_k, d_v = d_score.swapaxes(-1, -2) @ q, w.swapaxes(-1, -2) @ d

    def summed(x: Array) -> Array:
        total: Array = (x[:, -1] if heads else x.sum(1)).transpose(1, 0, 2)
        return total

    d_q = (d_score @ k).transpose(2, 0, 1, 3).reshape(v.q.shape)
    return {"d_q": d_q, "d_k": summed(d_k), "d_v": summed(d_v), "d_sinks": d_sinks}


@mistake("log-sum-exp-without-gradient", "attention_backward")
def lse_dropped(v: Given) -> Values:
    """The softmax without sink is rescaled by a factor whose gradient is dropped."""
    return _by_weights(v, v.window, lse=True, heads=False)


@mistake("gradient-of-one-head", "attention_backward")
def one_head(v: Given) -> Values:
    """Gradients of keys and values are those of the group's last head."""
    return _by_weights(v, v.window, lse=False, heads=True)


@mistake("window-other-in-backward", "attention_backward")
def other_window(v: Given) -> Values:
    """The backward pass sees one key more than the forward pass."""
    window = None if v.window is None else v.window + 1
    return _by_weights(v, window, lse=False, heads=False)


@mistake("softmax-over-all-in-backward", "router_backward")
def softmax_over_all(v: Given) -> Values:
    """The derivative is that of a softmax over all experts."""
    exp = np.exp(v.logits.astype(np.float64) - v.logits.max(-1, keepdims=True))
    p = exp / exp.sum(-1, keepdims=True)
    d = np.zeros_like(p)
    np.put_along_axis(d, v.indices.astype(np.int64), v.d_weights.astype(np.float64), -1)
    return {"d_logits": p * (d - (p * d).sum(-1, keepdims=True))}


def _swiglu(v: Given, inner: float, plus: float) -> tuple[Array, Array]:
    x = v.x.astype(np.float64)
    gate, up = np.minimum(x[:, 0::2], v.limit), np.clip(x[:, 1::2], -v.limit, v.limit)
    s = 1 / (1 + np.exp(-v.alpha * gate))
    return v.d_y * (up + plus) * (s + inner * gate * s * (1 - s)), v.d_y * gate * s


def _pairs(d_gate: Array, d_up: Array) -> Array:
    return np.stack([d_gate, d_up], -1).reshape(len(d_gate), -1)


@mistake("clamps-without-effect", "swiglu_backward")
def clamps_passed(v: Given) -> Values:
    """The gradient passes beyond the clamps."""
    return {"d_x": _pairs(*_swiglu(v, v.alpha, 1.0))}


@mistake("gate-stopped-below", "swiglu_backward")
def stopped_below(v: Given) -> Values:
    """The gate's gradient is stopped below −7, where the gate is not clamped."""
    found = _right("swiglu_backward", v)["d_x"].copy()
    found[:, 0::2][v.x[:, 0::2] < -v.limit] = 0
    return {"d_x": found}


@mistake("alpha-not-in-derivative", "swiglu_backward")
def alpha_missing(v: Given) -> Values:
    """The sigmoid's derivative lacks the factor alpha."""
    right = _right("swiglu_backward", v)["d_x"]
    wrong = _pairs(*_swiglu(v, 1.0, 1.0))
    return {"d_x": np.where(right == 0, 0, wrong)}


@mistake("bias-gradients-of-all", "experts_backward")
def biases_of_all(v: Given) -> Values:
    """The output biases of all experts get the sum over all tokens."""
    found = _right("experts_backward", v)
    total = found["d_mlp2_bias"].sum(0, keepdims=True)
    return {**found, "d_mlp2_bias": np.repeat(total, len(v.mlp2_bias), 0)}


@mistake("averaged-over-padding", "cross_entropy")
def averaged_over_padding(v: Given) -> Values:
    """Loss and gradient are divided by the number of all positions, not of those in the mask."""
    share = v.mask.mean()
    return {name: values * share for name, values in _right("cross_entropy", v).items()}


@mistake("logits-not-shifted", "cross_entropy")
def not_shifted(v: Given) -> Values:
    """exp is computed without subtracting the largest logit: it overflows."""
    exp = np.exp(v.logits.astype(np.float64))
    p = exp / exp.sum(-1, keepdims=True)
    rows, mask = np.arange(len(p)), v.mask.astype(bool)
    loss = -np.log(p[rows, v.targets])[mask].mean()
    p[rows, v.targets] -= 1
    return {"loss": np.array([loss]), "d_logits": p * mask[:, None] / mask.sum()}


GRADIENT_MISTAKES: tuple[Mistake, ...] = (
    *(overwritten, second_term_missing, bias_averaged, turned_the_same_way, inverse),
    *(sink_sign, lse_dropped, one_head, other_window, softmax_over_all),
    *(clamps_passed, stopped_below, alpha_missing, biases_of_all),
    *(averaged_over_padding, not_shifted),
)
"""Every mistake of a gradient."""
