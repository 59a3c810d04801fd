"""The names: bugs, further ways of having one of them, rewritings that compute the same function,
and what cannot show where."""

from __future__ import annotations

POSITION = (
    "yarn-truncated",
    "yarn-skipped",
    "yarn-no-concentration",
    "yarn-factor-in-exponent",
    "yarn-ramp-over-dims",
    "rope-interleaved",
    "rope-twice",
    "rope-base-10000",
    "rope-skipped-on-window-layers",
    "rope-position-off-by-one",
)
ATTENTION = (
    "sinks-dropped",
    "sinks-counted-twice",
    "sinks-scaled",
    "sinks-wrong-head",
    "window-plus-one",
    "window-minus-one",
    "window-odd-layers",
    "window-everywhere",
    "window-nowhere",
    "window-scores-zero",
    "gqa-axes-swapped",
    "scale-missing",
    "scale-by-hidden",
    "causal-off-by-one",
)
CACHES = (
    "ring-boundary",
    "chunk-longer-than-ring",
    "prefill-skips-cache",
    "padding-attended",
)
EXPERTS = (
    "softmax-before-topk",
    "router-bias-missing",
    "gate-up-concatenated",
    "gate-up-swapped",
    "clamp-missing",
    "clamp-gate-symmetric",
    "clamp-after",
    "alpha-missing",
    "up-plus-one-missing",
    "down-bias-unweighted",
    "down-bias-missing",
    "gate-up-bias-missing",
    "experts-summed-twice",
    "shard-lost-rows",
)
LOADING = (
    "nibbles-swapped",
    "nibbles-split",
    "scale-bias-128",
    "scale-bias-126",
    "scale-0",
    "scale-134",
    "scale-255",
    "experts-transposed",
    "qkv-order",
)
ARRIVED_OTHERWISE = (
    "norm-scale-missing",
    "norm-scale-plus-one",
    "norms-swapped",
    "q-bias-missing",
    "k-bias-missing",
    "v-bias-missing",
    "out-bias-missing",
    "value-bias-folded",
    "tensor-missing",
    "rows-reordered",
)
# Constants with a value that is on no list of the catalogue.
CONSTANTS = (
    "rope-theta",
    "yarn-factor",
    "yarn-original-length",
    "yarn-beta-fast",
    "yarn-beta-slow",
    "yarn-concentration",
    "score-scale",
    "window-width",
    "swiglu-alpha",
    "swiglu-limit",
)
REST = (
    "norm-scale-after-cast",
    "norm-eps",
    "residual-missing",
    "embedding-scaled",
    "unembedding-tied",
)
BUGS = POSITION + ATTENTION + CACHES + EXPERTS + LOADING + ARRIVED_OTHERWISE + CONSTANTS + REST

# The same mistake made another way; what comes before the slash is its name.
VARIANTS = (
    "rope-position-off-by-one/half",
    "sinks-wrong-head/ranks",
    "window-scores-zero/denominator",
    "chunk-longer-than-ring/chunks",
    "shard-lost-rows/remainder",
    "qkv-order/groups",
    "norm-scale-missing/one",
    "tensor-missing/sinks",
    "tensor-missing/router",
    "rows-reordered/q",
    "rows-reordered/v",
    "norm-eps/0.0123",
    "prefill-skips-cache/19",
    "chunk-longer-than-ring/13",
    "yarn-original-length/released",
)

# Same function, other numbers inside rounding; "softmax-renormalised" is softmax before top-k with
# renormalisation.
REWRITINGS = (
    "softmax-renormalised",
    "yarn-concentration-in-scores",
    "qkv-fused",
    "sums-in-chunks",
    "sinks-by-lse",
    "experts-in-id-order",
    "experts-accumulated",
    "rope-rounded-once",
    "positions-from-one",
    "rope-pairs-adjacent",
    "scale-in-query",
    "gate-up-deinterleaved",
    "norm-scale-folded",
    "norm-scale-folded/attention",
    "norm-scale-folded/experts",
    "norm-scale-folded/head",
    "heads-permuted",
    "experts-permuted",
    "qk-basis",
    "values-scaled",
    "down-bias-after-sum",
)
# Rounded at other points than usual: near ties may flip, which is no error.
ROUNDINGS = ("router-bf16",)


# What a checkpoint may lack is planted in a copy of it: a scale byte for each of these.
PLANTED = {"scale-0": 0, "scale-134": 134, "scale-255": 255}


def why_unseen(bug: str, dtype: str) -> str | None:
    """Why a bug changes no number in this dtype, its scale byte planted; None if it does."""
    if bug == "norm-scale-after-cast" and dtype == "float32":
        return "a cast to float32 changes nothing"
    if bug == "router-bf16" and dtype == "bfloat16":
        return "the logits are bfloat16 as they should be"
    return None
