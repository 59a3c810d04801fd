"""Flags of cases: a note on what each flag tests, and the known bugs that it catches.

The names in ``catches`` are those of :mod:`gptoss_ref.verify.mutants` and of
:mod:`~gptoss_ref.verify.vectors.mistakes`. The tests check that for each of these bugs, at least
one case with the flag has another answer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """The purpose of a flag.

    Attributes:
        note: what to check if such a case fails.
        catches: names of known bugs, at least one.
    """

    note: str
    catches: tuple[str, ...]


FLAGS: dict[str, Flag] = {
    "Ordinary": Flag(
        "Random numbers, all dimensions different. A failure here is in the formula or in the "
        "order of the axes.",
        (
            "embedding-scaled",
            "norm-scale-after-cast",
            "experts-transposed",
            "shard-lost-rows",
            "norm-scale-missing",
            "norm-scale-plus-one",
            "out-bias-missing",
        ),
    ),
    "UnequalDimensions": Flag(
        "Released models have D = F and G = K, which hide transposed matrices and swapped axes; "
        "here all dimensions differ.",
        ("gqa-axes-swapped",),
    ),
    "Epsilon": Flag(
        "The values are small, so that the result depends on epsilon: 1e-5, inside the root.",
        ("norm-eps", "eps-missing"),
    ),
    "ZeroInput": Flag(
        "Every input is zero: the answer is finite and consists of biases.", ("eps-missing",)
    ),
    "HeavyTail": Flag(
        "One element is a thousand times the rest, as in real activations: eight-bit activations "
        "lose the others, and squares of 45,000 overflow float16.",
        ("activations-in-8-bits", "squares-in-float16"),
    ),
    "YarnRamp": Flag(
        "The ends of YaRN's ramp are not integers and must not be floored and ceiled; below "
        "factor 1 there is no ramp at all.",
        (
            "yarn-truncated",
            "yarn-skipped",
            "yarn-ramp-over-dims",
            "yarn-factor-in-exponent",
            "yarn-beta-fast",
            "yarn-beta-slow",
            "yarn-factor",
            "yarn-original-length",
        ),
    ),
    "Concentration": Flag(
        "cos and sin are multiplied by 0.1 ln(factor) + 1, queries' and keys' alike.",
        (
            "yarn-no-concentration",
            "yarn-concentration",
        ),
    ),
    "RotaryPairs": Flag(
        "Channel i turns with channel i + C/2, not with its neighbour.",
        (
            "rope-interleaved",
            "rope-twice",
            "rope-base-10000",
            "rope-theta",
        ),
    ),
    "LongPosition": Flag(
        "Positions far beyond the original context: the angle is position times frequency in "
        "double precision, or at least with its integer turns taken off first.",
        ("yarn-truncated", "yarn-skipped"),
    ),
    "SinkDominates": Flag(
        "The sink's logit is far above every score: nearly all attention goes to it, and the other "
        "weights must not be rescaled to one.",
        ("sinks-dropped", "sinks-counted-twice", "sinks-scaled", "sinks-wrong-head"),
    ),
    "SinkNegligible": Flag(
        "The sink's logit is far below every score: rows sum to nearly one.", ("sinks-scaled",)
    ),
    "SinkEqual": Flag(
        "q·k = 0 and v = 1: the mix is n / (n + e^sink) for n visible keys. Try this case first.",
        ("sinks-dropped", "sinks-counted-twice"),
    ),
    "WindowEdge": Flag(
        "The context reaches one key beyond the window: a window of W shows W keys, the query's "
        "own included.",
        (
            *("window-plus-one", "window-minus-one", "window-nowhere", "window-scores-zero"),
            *("ring-boundary", "chunk-longer-than-ring", "window-width"),
        ),
    ),
    "FullLayer": Flag(
        "No window: the first key is visible at any distance.",
        ("window-everywhere", "window-odd-layers"),
    ),
    "Causal": Flag("A query sees its own key and no later one.", ("causal-off-by-one",)),
    "GroupedQueries": Flag("Head h reads key/value head h // (H / K).", ("gqa-axes-swapped",)),
    "ScoreScale": Flag(
        "Scores are divided by the root of the head size.",
        (
            "scale-missing",
            "scale-by-hidden",
            "score-scale",
        ),
    ),
    "CacheBoundary": Flag(
        "Queries of a later chunk on keys of earlier ones, and keys in the order of a ring buffer: "
        "visibility depends on the absolute position, not on the place in memory.",
        ("prefill-skips-cache", "padding-attended"),
    ),
    "RouterNearTie": Flag(
        "Two logits differ by a few millionths: float32 must get the order right, and a bfloat16 "
        "router may not. Judge a flip by its margin.",
        ("router-bf16",),
    ),
    "RouterTie": Flag(
        "Equal logits. This project puts the lower index first; torch leaves the order open, so "
        "any choice among equal logits is accepted, but not the same expert twice, nor a smaller "
        "logit before one of them.",
        ("tie-chosen-twice", "tie-struck-out"),
    ),
    "RouterSoftmax": Flag(
        "Weights are a softmax over the chosen logits only and sum to one.",
        ("softmax-before-topk", "router-bias-missing"),
    ),
    "Interleaved": Flag(
        "Gate and up entries alternate, gate first.", ("gate-up-concatenated", "gate-up-swapped")
    ),
    "ClampBoundary": Flag(
        "Values at the limit, next to it, and far beyond: the gate is clamped from above only, the "
        "up projection on both sides, and both before the product.",
        (
            "clamp-missing",
            "clamp-gate-symmetric",
            "clamp-after",
            "swiglu-limit",
        ),
    ),
    "SigmoidAlpha": Flag(
        "The sigmoid's argument is 1.702 times the gate.",
        (
            "alpha-missing",
            "swiglu-alpha",
        ),
    ),
    "UpPlusOne": Flag("The gated value is multiplied by up + 1.", ("up-plus-one-missing",)),
    "ExpertBiases": Flag(
        "Both biases are present, and the router's weight also multiplies the second one.",
        ("down-bias-unweighted", "down-bias-missing", "gate-up-bias-missing"),
    ),
    "UnusedExpert": Flag(
        "An expert that nobody chose, with weights that decode to NaN.", ("unchosen-times-zero",)
    ),
    "OneExpert": Flag("Every token chooses the same experts.", ("experts-summed-twice",)),
    "NibbleOrder": Flag(
        "The low nibble is the earlier value, and values 2j and 2j + 1 share byte j.",
        ("nibbles-swapped", "nibbles-split"),
    ),
    "AllCodes": Flag("Every one of the sixteen codes.", ("subnormal-codes-missing",)),
    "NegativeZero": Flag(
        "Code 8 is −0, and keeps its sign.", ("negative-zero-decoded", "negative-zero-encoded")
    ),
    "ScaleBias": Flag("The scale is 2^(byte − 127).", ("scale-bias-126", "scale-bias-128")),
    "Scale0": Flag(
        "Scale byte 0 is 2^−127, a float32 subnormal: not 0, not −infinity. Flush-to-zero "
        "arithmetic fails here.",
        ("scale-0", "subnormals-flushed"),
    ),
    "Scale254": Flag(
        "The largest scale, 2^127, with codes whose values float32 can represent.",
        ("scales-in-float16", "scales-signed"),
    ),
    "Scale255": Flag(
        "NaN by the MX specification. OpenAI's loader and llama.cpp read it as an exponent, which "
        "is accepted: codes times 2^128, infinite in float32 for values of 1 and more.",
        ("scale-255-saturated", "scale-255-infinite", "scales-signed"),
    ),
    "Scale134": Flag(
        "An ordinary byte with the scale 128: a check for NaN compares the byte with 255, not the "
        "decoded scale with 128.",
        ("scale-134",),
    ),
    "RoundHalfEven": Flag(
        "Values half-way between two codes go to the even code.", ("half-away-from-zero",)
    ),
    "Saturates": Flag(
        "Under the floor rule values above 6 · scale saturate at 6.", ("scale-fitted",)
    ),
    "TopKTie": Flag(
        "Logits equal to the k-th: all of them are kept, as in transformers, so that the order of "
        "the vocabulary has no effect.",
        ("top-k-cuts-ties",),
    ),
    "TopPCrossing": Flag(
        "The token that crosses top_p is kept: the smallest set of tokens whose probabilities sum "
        "to at least top_p, and always at least one token.",
        ("top-p-stops-short",),
    ),
    "SamplingOrder": Flag(
        "Temperature, then top-k, then top-p, each on the renormalised result of the one before.",
        ("top-p-before-the-rest",),
    ),
    "LargeLogits": Flag(
        "exp overflows unless the largest logit is subtracted first.",
        ("exp-overflows", "logits-not-shifted"),
    ),
    "ModelShort": Flag(
        "The tiny model on a prompt shorter than its window: tests how its parts are connected.",
        (
            *("qkv-order", "residual-missing", "unembedding-tied", "norm-eps"),
            *("rope-skipped-on-window-layers", "rope-position-off-by-one"),
            *("k-bias-missing", "q-bias-missing", "v-bias-missing", "value-bias-folded"),
            *("rows-reordered", "tensor-missing", "norms-swapped"),
        ),
    ),
    "ModelWindow": Flag(
        "The tiny model on a prompt longer than its window of 24.",
        ("window-plus-one", "window-minus-one", "window-everywhere", "window-nowhere"),
    ),
    "ModelYarn": Flag(
        "The tiny model beyond its original context of 256 positions.", ("yarn-truncated",)
    ),
    "SinkGradient": Flag(
        "The sink's gradient is minus its weight times Σ w dw, summed over the queries; and the "
        "scores' gradient subtracts Σ w dw over the keys, whose weights sum to less than one.",
        ("sink-gradient-sign", "log-sum-exp-without-gradient"),
    ),
    "GroupGradient": Flag(
        "Gradients of keys and values sum over the query heads of their group.",
        ("gradient-of-one-head",),
    ),
    "WindowGradient": Flag(
        "The backward pass uses the mask of the forward pass.", ("window-other-in-backward",)
    ),
    "TurnedBack": Flag(
        "The gradient is rotated by the opposite angle, times the concentration.",
        ("turned-the-same-way", "inverse-instead-of-transpose"),
    ),
    "NormSecondTerm": Flag(
        "The root mean square depends on x: the part of the gradient along x is subtracted.",
        ("second-term-missing",),
    ),
    "SumOverTokens": Flag(
        "Gradients of weights and biases are sums over the tokens.", ("bias-gradient-averaged",)
    ),
    "RepeatedToken": Flag(
        "A token that occurs several times sums the gradients of all its positions.",
        ("gradient-overwritten",),
    ),
    "ChosenOnly": Flag(
        "Only the chosen logits have a gradient, and those of a token sum to zero.",
        ("softmax-over-all-in-backward",),
    ),
    "GateDerivative": Flag(
        "The derivative of gate · sigmoid(alpha · gate) has the factor alpha in its second term.",
        ("alpha-not-in-derivative",),
    ),
    "ClampGradient": Flag(
        "The gradient is zero beyond a clamp; the gate has no clamp from below.",
        ("clamps-without-effect", "gate-stopped-below"),
    ),
    "ClampConvention": Flag(
        "At the bound itself the gradient passes (torch up to 2.13, and this package) or is "
        "zero (torch from 2.14 on): both are accepted.",
        ("alpha-not-in-derivative",),
    ),
    "ExpertGradient": Flag(
        "Every expert's gradients are sums over the tokens that chose it, and zero if none did.",
        ("bias-gradients-of-all",),
    ),
    "LossMask": Flag(
        "Loss and gradient are averages over the positions in the mask.",
        ("averaged-over-padding",),
    ),
}
"""Flags of cases by name."""
