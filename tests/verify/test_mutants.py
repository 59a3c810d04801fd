"""The catalogue of mutants: each shows where and when it says, rewritings show nowhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from docs._generate import mutants_page
from gptoss_ref.config import FULL, SLIDING, ModelConfig
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import BFLOAT16, FLOAT32, FLOAT64, Policy
from gptoss_ref.verify.mutants import CATALOGUE, EQUIVALENT, TIES, Mutant, by_name
from gptoss_ref.verify.replay.evaluate import nodes, predict
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps
from gptoss_ref.weights import ModelWeights
from tests.support.agreement import Array
from tests.support.strategies import Arrays, as_weights, random_arrays, random_tokens, small_config

WINDOW, LONG = 5, 14  # the last query of 14 is older than twice the window
SHAPE: dict[str, Any] = {
    "layers": 3, "n_kv": 2, "group": 4, "head_dim": 10, "experts": 9, "n_chosen": 6,
    "d_model": 64, "d_ff": 96, "vocab": 71, "window": WINDOW,
}  # fmt: skip
CONFIG = small_config(**SHAPE)

# What the public list of bugs names, in its order.
POSITION = """
yarn-truncated yarn-skipped yarn-no-concentration yarn-concentration-in-scores
yarn-factor-in-exponent yarn-ramp-over-dims rope-interleaved rope-twice rope-base-10000
rope-skipped-on-window-layers rope-position-off-by-one
"""
ATTENTION = """
sinks-dropped sinks-counted-twice sinks-scaled sinks-wrong-head window-plus-one window-minus-one
window-odd-layers window-everywhere window-nowhere window-scores-zero gqa-axes-swapped
scale-missing scale-by-hidden causal-off-by-one
ring-boundary chunk-longer-than-ring prefill-skips-cache padding-attended
"""
EXPERTS = """
softmax-before-topk softmax-before-topk-renormalised router-bias-missing router-bf16
gate-up-concatenated gate-up-swapped clamp-missing clamp-gate-symmetric clamp-after alpha-missing
up-plus-one-missing down-bias-unweighted down-bias-missing gate-up-bias-missing
experts-summed-twice shard-lost-rows
"""
LOADING = """
nibbles-swapped nibbles-split scale-bias-128 scale-bias-126 scale-0 scale-255 scale-134
experts-transposed qkv-order norm-scale-after-cast norm-eps residual-missing embedding-scaled
unembedding-tied float16-overflow
"""
ARRIVED_OTHERWISE = """
norm-scale-missing norm-scale-plus-one norms-swapped
q-bias-missing k-bias-missing v-bias-missing out-bias-missing value-bias-folded
tensor-missing rows-reordered
"""
CONSTANTS = """
rope-theta yarn-factor yarn-original-length yarn-beta-fast yarn-beta-slow yarn-concentration
score-scale window-width swiglu-alpha swiglu-limit
"""
NO_LAYER = {
    "MXFP4 encoding rounds half away from even": "concerns who writes a checkpoint, not who reads "
    "one: test_mutations.py holds it against the encoder",
    "200018's two names": "tokenizer",
    "stopping at end, not stopping at call": "sampling loop",
    "to= before or after the channel": "Harmony rendering and parsing",
    "constrain spelt as text": "Harmony rendering",
    "analysis kept after a final answer, or dropped inside tool calls": "Harmony history",
    "a final return left in history": "Harmony history",
    "malformed headers, invalid UTF-8 mid-stream": "Harmony parsing",
    "perplexity of raw text": "an unfit oracle, not a bug",
}
"""Rows that no layer's numbers can show, and whose they are."""


def rich_arrays(config: ModelConfig) -> Arrays:
    """Weights on which every bug can show: values past the clamps, scale bytes 0 and 134."""
    arrays = random_arrays(config, 3, mxfp4=True, clamp=5.0)
    for n in range(config.num_hidden_layers):
        for name in ("mlp1_weight", "mlp2_weight"):
            blocks, scales = arrays[f"block.{n}.mlp.{name}"]
            scales[:, 0, 0] = 0
            scales[:, 1, 0], blocks[:, 1, 0] = 134, 0  # a block of zeros, whatever its scale
            blocks[:, 0, 0, 0] = 0x91  # codes ½ and −½ among those under scale 0
    return arrays


def with_255(arrays: Arrays) -> Arrays:
    """A NaN in every matrix: a scale byte of 255."""
    for value in arrays.values():
        if isinstance(value, tuple):
            value[1][:, 2, 0] = 255
    return arrays


def with_large_stream(arrays: Arrays) -> Arrays:
    """A residual stream that leaves float16's range."""
    bias = arrays["block.0.attn.out.bias"]
    return {**arrays, "block.0.attn.out.bias": bias + np.where(np.arange(len(bias)) == 7, 7e4, 0)}


SPECIAL: dict[str, Callable[[Arrays], Arrays]] = {
    "scale-255": with_255,
    "float16-overflow": with_large_stream,
}


@cache
def weights_for(name: str) -> ModelWeights:
    """The random model, changed where a bug needs what it lacks."""
    return as_weights(SPECIAL.get(name, lambda arrays: arrays)(rich_arrays(CONFIG)))


TOKENS = np.array(random_tokens(CONFIG, LONG, 3))
TAPS = [node.tap for node in nodes(CONFIG)]


def taps(
    ops: ModelOps,
    weights: ModelWeights,
    length: int,
    config: ModelConfig = CONFIG,
    policy: Policy = FLOAT64,
) -> dict[str, Array]:
    """All tap points of a pass, in the order of computation."""
    names = [node.tap for node in nodes(config)]
    with np.errstate(all="ignore"):  # infinities and NaN are what some bugs are about
        return predict(weights, config, ops, TOKENS[:length], {}, names, policy)


@cache
def right_taps(name: str, length: int) -> dict[str, Array]:
    return taps(SPECIFICATION, weights_for(name), length)


def kind(tap: str) -> str:
    """A tap point's name without its block."""
    return re.sub(r"^block\.\d+\.", "", tap)


KINDS = list(dict.fromkeys(kind(tap) for tap in TAPS))


def close(ours: Array, theirs: Array) -> bool:
    """Equal except for float64's own rounding."""
    if ours.shape != theirs.shape:
        return False
    size = np.abs(theirs[np.isfinite(theirs)]).max(initial=1e-300)
    return np.allclose(ours, theirs, rtol=0, atol=1e-12 * size, equal_nan=True)


def changed(ours: dict[str, Array], theirs: dict[str, Array]) -> list[str]:
    return [tap for tap in theirs if not close(ours[tap], theirs[tap])]


def names_of(mutants: tuple[Mutant, ...]) -> list[str]:
    return [mutant.name for mutant in mutants]


@pytest.mark.parametrize("name", names_of(CATALOGUE + TIES))
def test_it_shows_at_its_stage_and_nowhere_before(name: str) -> None:
    mutant, weights = by_name(name), weights_for(name)
    assert mutant.obstacle(CONFIG, weights) is None
    length = mutant.shortest(CONFIG)
    right, wrong = right_taps(name, length), taps(mutant.apply(), weights, length)
    first = changed(wrong, right)[0]
    assert kind(first) == mutant.stage
    for tap in TAPS[: TAPS.index(first)]:
        np.testing.assert_array_equal(wrong[tap], right[tap])  # the same bits


@pytest.mark.parametrize("name", [m.name for m in CATALOGUE if m.shortest(CONFIG) > 1])
def test_it_does_not_show_with_a_token_less(name: str) -> None:
    mutant = by_name(name)
    length = mutant.shortest(CONFIG) - 1
    assert changed(taps(mutant.apply(), weights_for(name), length), right_taps(name, length)) == []


@pytest.mark.parametrize("name", names_of(CATALOGUE + TIES + EQUIVALENT))
@pytest.mark.parametrize("policy", [FLOAT32, BFLOAT16], ids=lambda policy: policy.name)
def test_it_rounds_as_the_policy_says(name: str, policy: Policy) -> None:
    """A replay in the other's own precision must land on the other's own grid."""
    for tap, values in taps(by_name(name).apply(), weights_for(name), 9, policy=policy).items():
        if not tap.endswith("indices"):
            assert values.dtype == policy.dtype
            np.testing.assert_array_equal(policy.round(values), values, err_msg=tap)


@pytest.mark.parametrize("name", names_of(EQUIVALENT))
def test_a_rewriting_changes_nothing_but_what_it_says(name: str) -> None:
    mutant, weights = by_name(name), weights_for(name)
    assert mutant.equivalent
    differing = changed(taps(mutant.apply(), weights, LONG), right_taps(name, LONG))
    assert {kind(tap) for tap in differing} == set(mutant.touches)


def test_a_tie_moves_logits_by_no_more_than_their_rounding() -> None:
    """And the chosen experts only where the margin is smaller than that."""
    wrong, right = taps(by_name("router-bf16").apply(), weights_for(""), LONG), right_taps("", LONG)
    near, exact = wrong["block.0.mlp.router_logits"], right["block.0.mlp.router_logits"]
    assert np.all(np.abs(near - exact) <= 2.0**-8 * np.abs(exact))
    ordered = -np.sort(-exact, axis=-1)
    active = CONFIG.experts_per_token
    margin = ordered[:, active - 1] - ordered[:, active]
    theirs, ours = (np.sort(t["block.0.mlp.expert_indices"], -1) for t in (wrong, right))
    flipped = (theirs != ours).any(-1)
    assert np.all(margin[flipped] <= 2.0**-7 * np.abs(exact).max())


def test_every_public_row_is_here() -> None:
    rows = " ".join((POSITION, ATTENTION, EXPERTS, LOADING, ARRIVED_OTHERWISE, CONSTANTS)).split()
    listed = set(names_of(CATALOGUE + TIES + EQUIVALENT))
    assert set(rows) <= listed
    beyond = listed - set(rows)
    assert beyond <= set(names_of(EQUIVALENT)), "a bug that no public report names"
    assert len(CATALOGUE) >= 40
    assert not set(NO_LAYER) & listed


def test_descriptions() -> None:
    everything = CATALOGUE + TIES + EQUIVALENT
    assert len(set(names_of(everything))) == len(everything)
    for mutant in everything:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", mutant.name)
        assert {mutant.stage, *mutant.touches} <= set(KINDS)
        assert mutant.equivalent == (mutant in EQUIVALENT)
        for text in (mutant.summary, mutant.consequence, *filter(None, [mutant.note])):
            assert re.fullmatch(r"[A-Z0-9].*\.", text), f"{mutant.name}: not a sentence: {text!r}"
        for report in mutant.reports:
            assert re.fullmatch(r"[\w.-]+(/[\w.-]+)?#\d+", report)
        if mutant.shortest(CONFIG) > WINDOW - 1:
            assert "Short prompts hide it" in mutant.note


def test_the_page_of_the_docs_is_up_to_date() -> None:
    assert mutants_page.PAGE.read_text(encoding="utf-8") == mutants_page.page(), (
        "run python -m docs._generate.mutants_page"
    )


def test_unknown_names_are_answered_by_the_nearest() -> None:
    with pytest.raises(GptOssError, match=r"no mutant 'window_plus_1': did you mean 'window-plus"):
        by_name("window_plus_1")


# --- models that hide some bugs ---


def dense(arrays: Arrays) -> Arrays:
    """Experts in bfloat16 rather than MXFP4."""
    return {
        name: np.zeros((*value[1].shape[:-1], 32 * value[1].shape[-1]))
        if isinstance(value, tuple)
        else value
        for name, value in arrays.items()
    }


def without(pattern: str, value: float = 0.0) -> Callable[[Arrays], Arrays]:
    """All arrays of that name constant."""
    return lambda arrays: {
        name: np.full_like(array, value) if re.search(pattern, name) else array
        for name, array in arrays.items()
    }


def without_bytes(arrays: Arrays) -> Arrays:
    """Scale bytes of 0 and 134 replaced."""
    for value in arrays.values():
        if isinstance(value, tuple):
            value[1][:] = 120
    return arrays


def same(arrays: Arrays) -> Arrays:
    return arrays


POOR: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Arrays], Arrays], str]] = {
    # the configuration's shape, its constants, the weights, and what they hide
    "plain RoPE": (
        {"rope_scaling_factor": 1.0}, {}, same,
        "yarn-truncated yarn-skipped yarn-no-concentration yarn-factor-in-exponent "
        "yarn-ramp-over-dims"
        " yarn-beta-fast yarn-beta-slow yarn-original-length",
    ),
    "theta 10000": ({"rope_theta": 1e4, "rope_ntk_beta": 16.0}, {}, same, "rope-base-10000"),
    "one pair": (
        {"head_dim": 2, "rope_scaling_factor": 1.0}, {}, same,
        "rope-interleaved yarn-truncated yarn-skipped yarn-no-concentration "
        "yarn-factor-in-exponent yarn-ramp-over-dims"
        " rows-reordered yarn-beta-fast yarn-beta-slow"
        " yarn-original-length",
    ),
    "full layers": (
        {"layer_types": (FULL,) * 3}, {}, same,
        "rope-skipped-on-window-layers window-plus-one window-minus-one window-nowhere "
        "window-scores-zero ring-boundary chunk-longer-than-ring"
        " window-width",
    ),
    "windowed layers": ({"layer_types": (SLIDING,) * 3}, {}, same, "window-everywhere"),
    "a window of one": ({"window": 1}, {}, same, "ring-boundary"),
    "equal norms": ({}, {}, without("norm.scale", 0.5), "norms-swapped"),
    "equal sinks": ({}, {}, without("sinks", 0.5), "sinks-wrong-head"),
    "sinks of zero": ({}, {}, without("sinks"), "sinks-wrong-head sinks-scaled"),
    "one key head": ({"n_kv": 1}, {}, same, "gqa-axes-swapped"),
    "no groups": ({"group": 1}, {}, same, "gqa-axes-swapped"),
    "D = C": ({"head_dim": 64}, {}, same, "scale-by-hidden"),
    "all experts": ({"n_chosen": 9}, {}, same, "softmax-before-topk"),
    "no router bias": ({}, {}, without("gate.bias"), "router-bias-missing"),
    "no first bias": ({}, {}, without("mlp1_bias"), "gate-up-bias-missing"),
    "no second bias": ({}, {}, without("mlp2_bias"), "down-bias-missing down-bias-unweighted"),
    "alpha 1": ({}, {"swiglu_alpha": 1.0}, same, "alpha-missing"),
    "epsilon 1e-6": ({}, {"rms_norm_eps": 1e-6}, same, "norm-eps"),
    "tied": ({}, {}, lambda a: {**a, "unembedding": a["embedding"]}, "unembedding-tied"),
    "dense experts": (
        {}, {}, dense,
        "nibbles-swapped nibbles-split scale-bias-128 scale-bias-126 scale-0 scale-134",
    ),
    "usual scales": ({}, {}, without_bytes, "scale-0 scale-134"),
}  # fmt: skip


@pytest.mark.parametrize("model", POOR)
def test_what_cannot_show_says_why_and_does_not(model: str) -> None:
    shape, constants, change, hidden = POOR[model]
    base = small_config(**{**SHAPE, **shape})
    config = ModelConfig(**{**vars(base), **constants})
    weights = as_weights(change(rich_arrays(config)))
    obstacles = {m: m.obstacle(config, weights) for m in CATALOGUE}
    usual = {m.name for m in CATALOGUE if not m.applies(CONFIG, weights_for(""))}
    assert {m.name for m, reason in obstacles.items() if reason} - usual == set(hidden.split())
    right = taps(SPECIFICATION, weights, LONG, config)
    for mutant, reason in obstacles.items():
        if reason:
            assert changed(taps(mutant.apply(), weights, LONG, config), right) == []


# --- several at once, and other forms of one ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("scale-missing", "sinks-dropped"),
        ("window-plus-one", "padding-attended"),
        ("clamp-missing", "alpha-missing"),
        ("down-bias-missing", "gate-up-bias-missing"),
        ("yarn-truncated", "yarn-no-concentration"),
        ("nibbles-swapped", "scale-bias-128"),
        ("rope-twice", "rope-interleaved"),
        ("gqa-axes-swapped", "sinks-counted-twice"),
        ("norm-eps", "residual-missing"),
    ],
)
def test_two_bugs_at_once(one: str, other: str) -> None:
    """Also of the same operation: neither hides the other, in either order."""
    weights, first, second = weights_for(""), by_name(one), by_name(other)
    both = taps(second.apply(first.apply()), weights, LONG)["logits"]
    swapped = taps(first.apply(second.apply()), weights, LONG)["logits"]
    for alone in (first, second):
        assert not close(both, taps(alone.apply(), weights, LONG)["logits"])
    assert close(both, swapped)


@pytest.mark.parametrize("name", [m.name for m in CATALOGUE if list(m.variants(CONFIG, LONG))])
def test_variants_are_other_forms_of_the_bug(name: str) -> None:
    mutant, weights = by_name(name), weights_for(name)
    variants = list(mutant.variants(CONFIG, LONG))
    labels = [variant.label for variant in variants]
    assert len(set(labels)) == len(labels)
    seen = [right_taps(name, LONG), taps(mutant.apply(), weights, LONG)]
    for variant in variants:
        found = taps(variant.apply(SPECIFICATION), weights, LONG)
        for other in seen:
            assert changed(found, other), f"{variant.label} is nothing new"
        seen.append(found)


def test_an_unmasked_old_key_of_a_zeroed_slot_mixes_nothing() -> None:
    """Of five keys that score 0 with a sink of 0, window 2: one old key weighs 1 in 1 + 1 + 2."""
    config = small_config(**{**SHAPE, "window": 2})
    weights = as_weights(without(r"attn\.[qk]\.|sinks")(rich_arrays(config)))
    mutant = by_name("window-scores-zero")
    (slots,) = mutant.variants(config, 3)
    own = taps(mutant.apply(), weights, 3, config)["block.0.attn.weights"][0, 2]
    zeroed = taps(slots.apply(SPECIFICATION), weights, 3, config)["block.0.attn.weights"][0, 2]
    np.testing.assert_allclose(own, [1 / 4, 1 / 4, 1 / 4], rtol=1e-14)
    np.testing.assert_allclose(zeroed, [0, 1 / 4, 1 / 4], rtol=1e-14)
