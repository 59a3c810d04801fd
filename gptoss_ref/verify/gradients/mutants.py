"""The catalogue of bugs of backward passes, each as one or several stages computed wrongly.

A bug is a function of what it replaces, the site, and the stage's own arguments; its docstring is
the summary::

    @bug("sinks-without-gradient", stages="grad.weights.attn.sinks", consequence="…", reports=…)
    def sinks_without_gradient(right, site, *arguments):
        \"\"\"The sinks get no gradient: …\"\"\"
        return np.zeros_like(right(site, *arguments))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gptoss_ref.numerics import Array, widen
from gptoss_ref.verify.gradients import stages as at
from gptoss_ref.verify.gradients.stages import Compute, Site


@dataclass(frozen=True)
class GradientMutant:
    """One small, named, wrong version of the backward pass.

    Attributes:
        name: as in a list of public bugs.
        stage: the gradient, without its block, that it changes first.
        summary: one sentence: what is wrong.
        consequence: what that does to training.
        wrong: by stage, what computes it instead.
        reports: public reports, as ``repository#number``.
        note: what hides it, or how it is modelled.
        equivalent: a convention, which is nobody's bug.
        label: which form of it, where it is not the usual one.
    """

    name: str
    stage: str
    summary: str
    consequence: str
    wrong: Mapping[str, Compute]
    reports: tuple[str, ...] = ()
    note: str = ""
    equivalent: bool = False
    label: str | None = None


CATALOGUE: list[GradientMutant] = []
CONVENTIONS: list[GradientMutant] = []

Decorator = Callable[[Compute], Compute]


def bug(
    name: str,
    *,
    stages: str,
    consequence: str,
    reports: tuple[str, ...] = (),
    note: str = "",
    equivalent: bool = False,
    label: str | None = None,
) -> Decorator:
    """Add a function to the catalogue: a bug of ``stages``, names with blanks between."""

    def decorate(function: Compute) -> Compute:
        changed = stages.split()
        mutant = GradientMutant(
            name=name,
            stage=changed[0],
            summary=" ".join((function.__doc__ or "").split()),
            consequence=consequence,
            wrong=dict.fromkeys(changed, function),
            reports=reports,
            note=note,
            equivalent=equivalent,
            label=label,
        )
        (CONVENTIONS if equivalent else CATALOGUE).append(mutant)
        return function

    return decorate


def zero(right: Compute, site: Site, *arguments: Array) -> Array:
    """No gradient arrives."""
    return np.zeros_like(right(site, *arguments))


# --- attention ---

SCORES = "grad.attn.q_rope grad.attn.k_rope"
SINKS = "grad.weights.attn.sinks"


@bug(
    "sinks-without-gradient",
    stages=SINKS,
    consequence="The sinks stay as they were released, however long one trains.",
    reports=("flash-attention#1973", "flash-attention#2102", "flash-attention#1895"),
)
def sinks_without_gradient(right: Compute, site: Site, *arguments: Array) -> Array:
    """The backward kernel returns nothing for the sinks: their gradient is zero."""
    return zero(right, site, *arguments)


@bug(
    "sinks-gradient-sign",
    stages=SINKS,
    consequence="Training moves every sink the wrong way.",
    note="The derivation's minus sign: a larger sink makes every weight smaller.",
)
def sinks_gradient_sign(right: Compute, site: Site, *arguments: Array) -> Array:
    """The gradient of the sinks has the wrong sign."""
    return -right(site, *arguments)


@bug(
    "sinks-gradient-summed-twice",
    stages=SINKS,
    consequence="Sinks move twice as fast as everything else.",
    note="A reduction over the batch by the kernel and once more by its caller.",
)
def sinks_gradient_summed_twice(right: Compute, site: Site, *arguments: Array) -> Array:
    """The gradient of the sinks is summed over the batch twice: it is twice what it should be."""
    return 2 * right(site, *arguments)


@bug(
    "softmax-without-gradient",
    stages=SCORES,
    consequence="Queries and keys do not train at all; values do, so the loss still falls.",
    reports=("candle#3591",),
)
def softmax_without_gradient(right: Compute, site: Site, *arguments: Array) -> Array:
    """The fused softmax has no backward: scores get no gradient."""
    return zero(right, site, *arguments)


@bug(
    "lse-gradient-dropped",
    stages=SCORES,
    consequence="Output, values and sinks look right and queries and keys do not; with one visible "
    "key both gradients are zero.",
    reports=("torchtitan#4796", "flash-attention#404", "flash-attention#889"),
    note="The mix is rescaled by sigmoid(lse − sink), and the kernel's log-sum-exp has no gradient.",
)
def lse_gradient_dropped(
    right: Compute, site: Site, d_w: Array, q: Array, k: Array
) -> Array:
    """The softmax is that without a sink, rescaled by a factor whose gradient is dropped."""
    w, sink = at.softmax(site, q, k)
    share = 1 - sink[..., None]
    delta = (w * d_w).sum(-1, keepdims=True) / np.where(share > 0, share, 1)
    d = at.scaled(site, site.policy.round(w * (d_w - delta)))
    return at.to_queries(site, d, k) if _is_query(right) else at.to_keys(site, d, q)


@bug(
    "softmax-delta-missing",
    stages=SCORES,
    consequence="Queries and keys learn to raise every score that is worth anything.",
    note="The row's sum of w · dw, which the kernel computes in a pass of its own, is not subtracted.",
)
def softmax_delta_missing(right: Compute, site: Site, d_w: Array, q: Array, k: Array) -> Array:
    """The softmax's second term is missing: dscore = w dw."""
    w, _ = at.softmax(site, q, k)
    d = at.scaled(site, site.policy.round(w * d_w))
    return at.to_queries(site, d, k) if _is_query(right) else at.to_keys(site, d, q)


@bug(
    "backward-without-sink",
    stages=f"grad.attn.v {SCORES}",
    consequence="Gradients of q, k and v are too large, most where the sink is strong.",
    note="The forward kernel stored the log-sum-exp of the keys alone.",
    reports=("flash-attention#2102",),
)
def backward_without_sink(right: Compute, site: Site, *arguments: Array) -> Array:
    """The weights recomputed in the backward pass leave the sink out."""
    d, q, k = arguments
    w, sink = at.softmax(site, q, k)
    share = 1 - sink[..., None]
    w = np.where(share > 0, w / np.where(share > 0, share, 1), 0).astype(w.dtype)
    if _of(right) == "values":
        return at.to_keys(site, w, at.by_heads(site, d))
    scores = at.d_scores(site, d, w)
    return at.to_queries(site, scores, k) if _is_query(right) else at.to_keys(site, scores, q)


@bug(
    "key-gradient-of-one-head",
    stages="grad.attn.k_rope",
    consequence="Keys learn from one query head in each group.",
    reports=("levanter#449", "native-sparse-attention-triton#27"),
)
def key_gradient_of_one_head(
    right: Compute, site: Site, d_w: Array, q: Array, k: Array
) -> Array:
    """The keys' gradient is that of the last query head of each group, not the sum."""
    w, _ = at.softmax(site, q, k)
    return at.to_keys(site, _last_of_group(site, at.d_scores(site, d_w, w)), q)


@bug(
    "value-gradient-of-one-head",
    stages="grad.attn.v",
    consequence="Values learn from one query head in each group.",
    reports=("levanter#449",),
)
def value_gradient_of_one_head(
    right: Compute, site: Site, d_mix: Array, q: Array, k: Array
) -> Array:
    """The values' gradient is that of the last query head of each group, not the sum."""
    w, _ = at.softmax(site, q, k)
    return at.to_keys(site, _last_of_group(site, w), at.by_heads(site, d_mix))


def _last_of_group(site: Site, w: Array) -> Array:
    heads = np.arange(len(w))
    return np.where((heads % site.config.group_size == site.config.group_size - 1)[:, None, None],
                    w, w.dtype.type(0))


def _window_edge(extra: int) -> Compute:
    def compute(right: Compute, site: Site, *arguments: Array) -> Array:
        d, q, k = arguments
        if site.window is None:
            return right(site, *arguments)
        w, sink = at.softmax(site, q, k)
        if extra > 0:  # weights recomputed with the forward pass's own normaliser
            wider, wider_sink = at.softmax(site, q, k, extra)
            factor = np.where(wider_sink > 0, sink / np.where(wider_sink > 0, wider_sink, 1), 0)
            w = (wider * factor[..., None]).astype(w.dtype)
        else:
            age = np.arange(len(q))[:, None] - np.arange(len(k))
            w = np.where(age < site.window + extra, w, w.dtype.type(0))
        if _of(right) == "values":
            return at.to_keys(site, w, at.by_heads(site, d))
        scores = at.d_scores(site, d, w)
        return at.to_queries(site, scores, k) if _is_query(right) else at.to_keys(site, scores, q)

    return compute


for _extra, _label in ((-1, "one key less"), (1, "one key more")):
    _function = _window_edge(_extra)
    _function.__doc__ = "The backward pass masks another window than the forward pass."
    bug(
        "window-edge-in-backward",
        stages=f"grad.attn.v {SCORES}",
        consequence="The key at the window's edge gets no gradient, or one it should not have.",
        reports=("MSLK#263", "aiter#3742"),
        label=_label,
    )(_function)


@bug(
    "score-scale-missing-in-backward",
    stages=SCORES,
    consequence="Gradients of queries and keys are √C times too large.",
)
def score_scale_missing(right: Compute, site: Site, *arguments: Array) -> Array:
    """The gradients of queries and keys lack the factor 1/√C of the scores."""
    return right(site, *arguments) * site.policy.dtype.type(site.config.head_dim**0.5)


@bug(
    "rope-turned-the-same-way",
    stages="grad.attn.q grad.attn.k",
    consequence="The gradients of early positions are nearly right, of later ones at random.",
)
def rope_turned_the_same_way(right: Compute, site: Site, d: Array) -> Array:
    """RoPE's backward turns by the same angle again instead of back."""
    cos, sin = site.tables
    return at.gradients.rope(d, cos, -sin, policy=site.policy)


@bug(
    "rope-without-gradient",
    stages="grad.attn.q grad.attn.k",
    consequence="Queries and keys do not train at all; values do, so the loss still falls.",
    reports=("candle#3568", "LongLive#61", "LoongForge#106"),
)
def rope_without_gradient(right: Compute, site: Site, *arguments: Array) -> Array:
    """The fused RoPE has no backward: queries and keys get no gradient."""
    return zero(right, site, *arguments)


@bug(
    "rope-inverse-instead-of-transpose",
    stages="grad.attn.q grad.attn.k",
    consequence="Gradients of queries and keys are too small by the square of YaRN's concentration.",
    note="With plain RoPE the two are the same.",
)
def rope_inverse(right: Compute, site: Site, d: Array) -> Array:
    """RoPE's backward is the inverse, which divides by the concentration, not the transpose."""
    cos, sin = site.tables
    return right(site, d) / (cos[:1, :1] ** 2 + sin[:1, :1] ** 2)[..., None]


# --- norms and the residual stream ---

NORMS = "grad.attn.residual grad.mlp.residual grad.embedding"


@bug(
    "norm-second-term-missing",
    stages=NORMS,
    consequence="The gradient keeps a part along x, which no change of x can use.",
    reports=("attorch#17",),
)
def norm_second_term_missing(right: Compute, site: Site, *arguments: Array) -> Array:
    """RMSNorm's backward treats the root mean square as a constant."""
    *past, d_norm, x = arguments
    scale = _scale(right, site)
    root = np.sqrt(np.mean(x * x, -1, keepdims=True) + site.config.rms_norm_eps)
    d = site.policy.round(d_norm * widen(scale, site.policy.dtype) / root.astype(x.dtype))
    return site.policy.round(past[0] + d) if past else d


@bug(
    "norm-without-gradient",
    stages=NORMS,
    consequence="Gradients reach the blocks only past them, along the residual.",
    reports=("candle#3526",),
)
def norm_without_gradient(right: Compute, site: Site, *arguments: Array) -> Array:
    """The fused RMSNorm has no backward: nothing goes through attention and experts."""
    *past, _, x = arguments
    return past[0] if past else np.zeros_like(x)


@bug(
    "residual-gradient-dropped",
    stages="grad.attn.residual grad.embedding grad.mlp.residual",
    consequence="Gradients vanish within a few blocks; only the last ones train.",
    reports=("entrenar#313",),
)
def residual_gradient_dropped(right: Compute, site: Site, *arguments: Array) -> Array:
    """The gradient that passes a block by, along the residual, is not added."""
    if len(arguments) == 2:  # the last norm, which nothing passes by
        return right(site, *arguments)
    return right(site, np.zeros_like(arguments[0]), *arguments[1:])


NORM_SCALES = "grad.weights.attn.norm_scale grad.weights.mlp.norm_scale grad.weights.norm_scale"


@bug(
    "norm-scale-without-gradient",
    stages=NORM_SCALES,
    consequence="The norms' scales do not train.",
    reports=("unsloth#4533", "unsloth#4550"),
)
def norm_scale_without_gradient(right: Compute, site: Site, *arguments: Array) -> Array:
    """RMSNorm's backward returns nothing for the scale."""
    return zero(right, site, *arguments)


@bug(
    "norm-scale-gradient-unnormalised",
    stages=NORM_SCALES,
    consequence="The scales' gradients grow with the residual stream.",
)
def norm_scale_gradient_unnormalised(right: Compute, site: Site, d_y: Array, x: Array) -> Array:
    """The gradient of the scale multiplies dy with x instead of with the normalised x."""
    return (d_y * x).sum(0)


# --- experts ---


def _derivative(
    site: Site, d: Array, x: Array, *, alpha: float | None = None, plus: float = 1.0
) -> tuple[Array, Array, Array, Array]:
    """dgate, dup, gate and up, without the clamps' zeros, in the given arithmetic."""
    c, limit = site.config, site.config.swiglu_limit
    gate, up = x[..., 0::2], x[..., 1::2]
    g, u = np.minimum(gate, limit), np.clip(up, -limit, limit)
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-c.swiglu_alpha * g))
    inner = c.swiglu_alpha if alpha is None else alpha
    return d * (u + plus) * (s + inner * g * s * (1 - s)), d * g * s, gate, up


def _interleaved(site: Site, d_gate: Array, d_up: Array) -> Array:
    return site.policy.round(np.stack([d_gate, d_up], -1).reshape(*d_gate.shape[:-1], -1))


GATE_UP = "grad.mlp.gate_up"


@bug(
    "clamp-gradient-passed",
    stages=GATE_UP,
    consequence="Gates and ups beyond the clamp keep moving, though nothing follows them.",
)
def clamp_gradient_passed(right: Compute, site: Site, d: Array, x: Array) -> Array:
    """The gradient passes the clamps as if they were not there."""
    d_gate, d_up, _, _ = _derivative(site, d, x)
    return _interleaved(site, d_gate, d_up)


@bug(
    "clamp-gradient-of-both-sides",
    stages=GATE_UP,
    consequence="Gates below −7 get no gradient, and never come back.",
)
def clamp_gradient_of_both_sides(right: Compute, site: Site, d: Array, x: Array) -> Array:
    """The gate's gradient is stopped below −7 too, where the gate is not clamped."""
    found = right(site, d, x).copy()
    found[..., 0::2][x[..., 0::2] < -site.config.swiglu_limit] = 0
    return found


@bug(
    "clamp-gradient-on-the-wrong-side",
    stages=GATE_UP,
    consequence="Only what is clamped trains.",
)
def clamp_gradient_on_the_wrong_side(right: Compute, site: Site, d: Array, x: Array) -> Array:
    """The gradient is stopped within the clamps and passes beyond them."""
    d_gate, d_up, gate, up = _derivative(site, d, x)
    limit = site.config.swiglu_limit
    return _interleaved(
        site, np.where(gate <= limit, 0, d_gate), np.where(np.abs(up) <= limit, 0, d_up)
    )


def _clamped(site: Site, d_gate: Array, d_up: Array, gate: Array, up: Array) -> Array:
    limit = site.config.swiglu_limit
    return _interleaved(
        site, np.where(gate <= limit, d_gate, 0), np.where(np.abs(up) <= limit, d_up, 0)
    )


@bug(
    "alpha-missing-in-derivative",
    stages=GATE_UP,
    consequence="Gates get the derivative of SiLU's second term: too small around zero.",
)
def alpha_missing(right: Compute, site: Site, d: Array, x: Array) -> Array:
    """The sigmoid's derivative lacks the factor α = 1.702."""
    return _clamped(site, *_derivative(site, d, x, alpha=1.0))


@bug(
    "up-without-one-in-derivative",
    stages=GATE_UP,
    consequence="Gates whose up is near zero do not train.",
)
def up_without_one(right: Compute, site: Site, d: Array, x: Array) -> Array:
    """The gate's gradient is multiplied by up instead of up + 1."""
    return _clamped(site, *_derivative(site, d, x, plus=0.0))


@bug(
    "gate-and-up-gradients-swapped",
    stages=GATE_UP,
    consequence="Each trains on the other's gradient.",
    note="The backward kernel takes halves for interleaved rows, or the reverse, once more.",
)
def gate_and_up_swapped(right: Compute, site: Site, d: Array, x: Array) -> Array:
    """The gradients of gate and up are written to each other's place."""
    found = right(site, d, x)
    return np.stack([found[..., 1::2], found[..., 0::2]], -1).reshape(found.shape)


@bug(
    "router-weight-missing-in-backward",
    stages="grad.mlp.expert_out",
    consequence="Every chosen expert trains as if it alone had answered.",
)
def router_weight_missing(right: Compute, site: Site, d_out: Array, weights: Array) -> Array:
    """The gradient of an expert's answer is not multiplied by its router weight."""
    return right(site, d_out, np.ones_like(weights))


@bug(
    "expert-bias-missing-in-router-gradient",
    stages="grad.mlp.expert_weights",
    consequence="The router does not learn what the experts' output biases are worth.",
)
def expert_bias_missing(
    right: Compute, site: Site, d_out: Array, answers: Array, indices: Array
) -> Array:
    """The router weight's gradient takes the answer without the bias of the down projection."""
    bias = widen(site.mlp.mlp2_bias, site.policy.dtype)[indices]  # (T, A, D)
    return right(site, d_out, answers - bias, indices)


@bug(
    "expert-parallel-gradient-not-summed",
    stages="grad.mlp.norm",
    consequence="Everything below the experts trains on a part of its gradient.",
    reports=("transformers#48205",),
    note="Modelled as two ranks, of which the first one's experts count.",
)
def expert_parallel_not_summed(
    right: Compute, site: Site, d_gate_up: Array, d_router: Array, indices: Array
) -> Array:
    """Each rank's gradient covers its own experts, and the ranks' are not summed."""
    own = (indices < site.config.num_experts // 2)[..., None]
    return right(site, np.where(own, d_gate_up, d_gate_up.dtype.type(0)), d_router, indices)


@bug(
    "unchosen-experts-uninitialised",
    stages="grad.weights.mlp.mlp1_weight grad.weights.mlp.mlp2_weight",
    consequence="NaN from the second step on, or garbage in experts that saw no token.",
    reports=("MSLK#158",),
)
def unchosen_uninitialised(right: Compute, site: Site, *arguments: Array) -> Array:
    """A grouped product leaves the gradients of experts without tokens uninitialised."""
    found = right(site, *arguments).copy()
    found[np.setdiff1d(np.arange(len(found)), arguments[-1])] = np.nan
    return found


@bug(
    "experts-frozen",
    stages="grad.weights.mlp.mlp1_weight grad.weights.mlp.mlp2_weight",
    consequence="Nine tenths of the parameters do not train, and the loss still falls.",
    reports=("unsloth#6936", "unsloth#3405", "unsloth#4193"),
)
def experts_frozen(right: Compute, site: Site, *arguments: Array) -> Array:
    """The experts' matrices get no gradient."""
    return zero(right, site, *arguments)


@bug(
    "biases-of-unchosen-experts-touched",
    stages="grad.weights.mlp.mlp2_bias grad.weights.mlp.mlp1_bias",
    consequence="Every expert's bias drifts with tokens that it never saw.",
    note="Rows of padding, or of other experts, are not masked in the bias's sum.",
    reports=("maxtext#3699",),
)
def unchosen_biases_touched(right: Compute, site: Site, d: Array, indices: Array) -> Array:
    """The bias gradient of an expert sums over all tokens, not over those that chose it."""
    total = d.astype(site.policy.dtype).sum((0, 1))
    return site.policy.round(np.repeat(total[None], site.config.num_experts, 0))


# --- router ---


@bug(
    "router-weights-detached",
    stages="grad.mlp.expert_weights grad.mlp.router_logits",
    consequence="The router trains on the load-balancing loss alone, or not at all.",
    reports=("Robust-MoE-Dual-Model#2",),
)
def router_weights_detached(right: Compute, site: Site, *arguments: Array) -> Array:
    """The router's weights are detached: the experts' answers give the router no gradient."""
    return zero(right, site, *arguments)


@bug(
    "router-softmax-over-all-in-backward",
    stages="grad.mlp.router_logits",
    consequence="Experts that were not chosen get a gradient, and the chosen ones a smaller one.",
)
def router_softmax_over_all(
    right: Compute, site: Site, d_weights: Array, weights: Array, indices: Array, router: Array
) -> Array:
    """The backward pass is that of a softmax over all experts."""
    exp = np.exp(router - router.max(-1, keepdims=True))
    p = exp / exp.sum(-1, keepdims=True)
    d = np.zeros_like(p)
    np.put_along_axis(d, indices, d_weights.astype(p.dtype), axis=-1)
    return at.with_aux(site, site.policy.round(p * (d - (p * d).sum(-1, keepdims=True))))


@bug(
    "router-bias-without-gradient",
    stages="grad.weights.mlp.gate_bias",
    consequence="The router's bias does not train.",
)
def router_bias_without_gradient(right: Compute, site: Site, *arguments: Array) -> Array:
    """The router's bias gets no gradient."""
    return zero(right, site, *arguments)


def _aux(times: float | None) -> Compute:
    def compute(
        right: Compute, site: Site, d_w: Array, weights: Array, indices: Array, router: Array
    ) -> Array:
        found = right(site, d_w, weights, indices, router)
        if site.aux is None or site.layer is None:
            return found
        factor = (1 / site.coefficient if times is None else times) - 1
        return site.policy.round(found + factor * site.aux(site.layer, False))

    return compute


for _times, _name, _summary, _consequence, _reports in (
    (
        2.0,
        "auxiliary-loss-twice",
        "The load-balancing loss is added twice.",
        "Experts are balanced at the cost of the answers.",
        ("Megatron-LM#3768",),
    ),
    (
        None,
        "auxiliary-loss-unscaled",
        "The load-balancing loss is added without its coefficient.",
        "Balance outweighs everything else.",
        ("Automodel#1408",),
    ),
    (
        0.0,
        "auxiliary-loss-without-gradient",
        "The load-balancing loss is in the loss, and its gradient never arrives.",
        "The loss that is printed has a part that nothing follows.",
        ("Automodel#1408", "Automodel#1412"),
    ),
):
    _function = _aux(_times)
    _function.__doc__ = _summary
    bug(
        _name, stages="grad.mlp.router_logits", consequence=_consequence, reports=_reports
    )(_function)


@bug(
    "auxiliary-loss-of-softmaxed-logits",
    stages="grad.mlp.router_logits",
    consequence="The probabilities are nearly uniform: the loss balances nothing.",
    reports=("transformers#45120", "transformers#45315"),
)
def auxiliary_of_softmaxed(right: Compute, site: Site, *arguments: Array) -> Array:
    """The load-balancing loss takes a softmax of what has been through one."""
    found = right(site, *arguments)
    if site.aux is None or site.layer is None:
        return found
    return site.policy.round(found - site.aux(site.layer, False) + site.aux(site.layer, True))


# --- loss, embedding, unembedding ---


@bug(
    "loss-averaged-over-padding",
    stages="grad.logits",
    consequence="Every gradient is smaller by the share of tokens that count.",
    reports=("transformers#24725", "torchtune#1875"),
)
def loss_averaged_over_padding(right: Compute, site: Site, logits: Array) -> Array:
    """The loss is divided by all positions, not by those that count."""
    return right(site, logits) * site.policy.dtype.type(site.counted.mask.mean())


def _divided(steps: int) -> Compute:
    def compute(right: Compute, site: Site, logits: Array) -> Array:
        return right(site, logits) / site.policy.dtype.type(steps)

    return compute


for _steps in (2, 4, 8, 16, 32):
    _function = _divided(_steps)
    _function.__doc__ = "The loss is divided by the accumulation steps a second time."
    bug(
        "accumulation-divided-twice",
        stages="grad.logits",
        consequence="The learning rate is smaller by the number of accumulation steps.",
        reports=("transformers#35210", "transformers#34191"),
        label=f"{_steps} steps",
    )(_function)


@bug(
    "targets-not-shifted",
    stages="grad.logits",
    consequence="The model learns to repeat its input.",
)
def targets_not_shifted(right: Compute, site: Site, logits: Array) -> Array:
    """Every position is trained to predict its own token instead of the next."""
    _, d = at.gradients.cross_entropy(
        logits, site.tokens, site.counted.mask, policy=site.policy
    )
    return d


@bug(
    "unembedding-gradient-added-to-embedding",
    stages="grad.weights.embedding",
    consequence="The embedding is trained as if it were tied to the unembedding.",
    note="gpt-oss does not tie the two.",
)
def unembedding_added(right: Compute, site: Site, d_x: Array) -> Array:
    """The unembedding's gradient is added to the embedding's."""
    if site.unembedding is None:
        return right(site, d_x)
    return site.policy.round(right(site, d_x) + site.unembedding())


@bug(
    "embedding-gradient-overwritten",
    stages="grad.weights.embedding",
    consequence="A token that occurs often learns from one of its positions only.",
    reports=("tt-metal#6232", "pytorch#1631", "AiDotNet.Tensors#894"),
)
def embedding_overwritten(right: Compute, site: Site, d_x: Array) -> Array:
    """Where a token occurs several times, the last position's gradient replaces the others."""
    found = np.zeros_like(right(site, d_x))
    found[site.tokens] = d_x
    return found


@bug(
    "embedding-frozen",
    stages="grad.weights.embedding grad.weights.unembedding",
    consequence="New tokens are never learnt.",
    reports=("unsloth#9326",),
)
def embedding_frozen(right: Compute, site: Site, *arguments: Array) -> Array:
    """Embedding or unembedding get no gradient."""
    return zero(right, site, *arguments)


@bug(
    "clamp-boundary-stops",
    stages=GATE_UP,
    consequence="A convention: both are subgradients.",
    reports=("pytorch#195931", "TransformerEngine#3424"),
    note="torch from 2.14 on; torch up to 2.13 passes the gradient there, as this package does.",
    equivalent=True,
)
def clamp_boundary_stops(right: Compute, site: Site, d: Array, x: Array) -> Array:
    """The gradient is stopped at exactly 7 and −7, too."""
    limit = site.config.swiglu_limit
    found = right(site, d, x).copy()
    found[..., 0::2][x[..., 0::2] == limit] = 0
    found[..., 1::2][np.abs(x[..., 1::2]) == limit] = 0
    return found


def _of(right: Compute) -> str:
    """Name of the stage function under any bugs."""
    return getattr(right, "__name__", "")


def _is_query(right: Compute) -> bool:
    return _of(right) == "queries"


def _scale(right: Compute, site: Site) -> Array:
    if _of(right) == "last_residual":
        return site.weights.norm_scale
    return (site.mlp if _of(right) == "into_mlp" else site.attn).norm_scale
