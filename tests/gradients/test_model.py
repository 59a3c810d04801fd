"""`gr.backward` of whole models: torch autograd, transformers, finite differences, and laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import gptoss_ref as gr
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import GptOssError
from gptoss_ref.model import Model
from gptoss_ref.tracing.taps import expected_shape, gradient_names
from tests.support.distance import relative_l2
from tests.support.strategies import (
    SEEDS,
    as_weights,
    model_configs,
    random_arrays,
    random_tokens,
    small_config,
)
from tests.support.torch_backward import model_gradients, next_token

Array = NDArray[Any]


def build(config: ModelConfig, arrays: Any, policy: str = "float64") -> Model:
    return Model(config, as_weights(arrays, "float64"), policy=policy, backend="numpy")


def agree(ours: dict[str, Array], theirs: dict[str, Array], tolerance: float) -> None:
    """Relative L2; a gradient that is all cancellation is judged by the largest one's scale.

    With one visible key and a sink of −20 the weight is all but 1, and the gradients of q and k are
    differences of nearly equal numbers.
    """
    floor = 1e-6 * max(float(np.linalg.norm(value)) for value in theirs.values())
    for name, expected in theirs.items():
        assert relative_l2(ours[name], expected, floor) <= tolerance, name


@settings(max_examples=8)
@given(
    config=model_configs(shuffled_layer_types=True),
    seed=SEEDS,
    length=st.integers(2, 40),
    sink=st.sampled_from([-20.0, 0.0, 20.0]),
    clamp=st.sampled_from([1.0, 6.0]),
)
def test_every_gradient_in_float64(
    config: ModelConfig, seed: int, length: int, sink: float, clamp: float
) -> None:
    """Vanishing and dominating sinks, gates and ups beyond ±7, any pattern of windows."""
    arrays = random_arrays(config, seed, sink=sink, clamp=clamp)
    tokens = random_tokens(config, length, seed)
    ours = gr.backward(build(config, arrays), tokens, taps="*")
    theirs = model_gradients(config, arrays, tokens)
    assert abs(ours.loss - theirs.loss) <= 1e-12 * (1 + theirs.loss)
    assert list(ours.weights) == list(as_weights(arrays).named())
    assert list(ours.taps) == gradient_names(config)
    for name, d in ours.taps.items():
        assert d.shape == expected_shape(name, config, length)
    agree(ours.weights, theirs.weights, 1e-10)
    agree(ours.taps, theirs.taps, 1e-10)


@pytest.mark.parametrize("length", [1, 129, 300])
def test_short_and_long(length: int) -> None:
    config = small_config(window=128, layers=2, d_model=19, d_ff=11, vocab=61)
    arrays, tokens = random_arrays(config, length), random_tokens(config, length, 5)
    targets = random_tokens(config, length, 6)
    ours = gr.backward(build(config, arrays), tokens, targets)
    wanted = torch.as_tensor(targets)
    theirs = model_gradients(
        config, arrays, tokens, lambda out, _: torch.nn.functional.cross_entropy(out, wanted)
    )
    agree(ours.weights, theirs.weights, 1e-10)


def test_near_tied_routers() -> None:
    """Logits 1e-7 apart, and exact ties that go to the lower index."""
    config = small_config()
    arrays, tokens = random_arrays(config, 7), random_tokens(config, 12, 7)
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.mlp.gate."
        arrays[at + "weight"][:] = 0
        arrays[at + "weight"][:, 3] = 1.5
        arrays[at + "bias"] = 2.0**-16 * (1 + 2.0**-7 * (np.arange(config.num_experts) // 2))
    ours = gr.backward(build(config, arrays), tokens, taps="*")
    theirs = model_gradients(config, arrays, tokens)
    agree(ours.weights, theirs.weights, 1e-10)
    agree(ours.taps, theirs.taps, 1e-10)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_float32_and_mxfp4(backend: str) -> None:
    """MXFP4 experts: the gradient of their dequantised values."""
    config = small_config(d_model=64, d_ff=32)
    arrays, tokens = random_arrays(config, 11, mxfp4=True), random_tokens(config, 30, 2)
    model = Model(config, as_weights(arrays), backend=backend)
    ours = gr.backward(model, tokens, taps="*")
    theirs = model_gradients(config, arrays, tokens)
    assert {d.dtype for d in (*ours.weights.values(), *ours.taps.values())} == {np.dtype("f4")}
    agree(ours.weights, theirs.weights, 2e-5)
    agree(ours.taps, theirs.taps, 2e-5)


def test_bfloat16_rounds_where_autograd_does() -> None:
    """One block: further ones would amplify the few values that round otherwise."""
    config = small_config(layers=1)
    arrays, tokens = random_arrays(config, 3), random_tokens(config, 25, 3)
    ours = gr.backward(build(config, arrays, "bfloat16"), tokens, taps="*")
    theirs = model_gradients(config, arrays, tokens, policy="bfloat16")
    exact = model_gradients(config, arrays, tokens)
    for mine, torchs, true in (
        (ours.taps, theirs.taps, exact.taps),
        (ours.weights, theirs.weights, exact.weights),
    ):
        for name, expected in torchs.items():
            rounding = relative_l2(expected, true[name])
            assert relative_l2(mine[name], expected) <= 0.5 * rounding, name
    assert np.mean(ours.taps["logits"] != theirs.taps["logits"]) <= 0.02


def test_load_balancing_loss_of_transformers() -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func

    config, coefficient = small_config(), 0.9
    arrays, tokens = random_arrays(config, 5), random_tokens(config, 14, 5)

    def loss(logits: torch.Tensor, routers: list[torch.Tensor]) -> torch.Tensor:
        aux = load_balancing_loss_func(tuple(routers), config.num_experts, config.experts_per_token)
        return next_token(logits, tokens) + coefficient * aux

    ours = gr.backward(
        build(config, arrays), tokens, taps="*.router_logits", router_aux_loss_coef=coefficient
    )
    theirs = model_gradients(config, arrays, tokens, loss)
    # transformers sums the probabilities in float32
    assert abs(ours.loss - theirs.loss) <= 1e-6
    agree(ours.weights, theirs.weights, 1e-6)
    agree(ours.taps, {name: theirs.taps[name] for name in ours.taps}, 1e-6)
    assert ours.aux_loss is not None
    assert gr.backward(build(config, arrays), tokens, wrt=()).aux_loss is None


def moved(model: Model, direction: dict[str, Array], step: float) -> Model:
    """The model with every weight moved along ``direction``."""
    weights = {name: w + step * direction[name] for name, w in model.weights.named().items()}
    return with_weights(model, weights)


def with_weights(model: Model, weights: dict[str, Any]) -> Model:
    return Model(
        model.config, model.weights.replaced(weights), policy=model.policy, backend="numpy"
    )


@settings(max_examples=8)
@given(
    config=model_configs(max_layers=2),
    seed=SEEDS,
    length=st.integers(2, 24),
    sink=st.sampled_from([-20.0, 0.0, 20.0]),
)
def test_finite_differences(config: ModelConfig, seed: int, length: int, sink: float) -> None:
    """Central differences along a random direction of all weights together, in float64."""
    rng = np.random.default_rng(seed)
    model = build(config, random_arrays(config, seed, sink=sink, clamp=3.0))
    tokens = random_tokens(config, length, seed)
    found = gr.backward(model, tokens)
    direction = {n: rng.normal(size=d.shape) * 0.1 for n, d in found.weights.items()}
    slope = sum(float(np.vdot(d, direction[name])) for name, d in found.weights.items())
    step = 1e-6
    ends = []
    for sign in (1, -1):
        trace = gr.trace(there := moved(model, direction, sign * step), tokens)
        ends.append((gr.backward(there, tokens, wrt=()).loss, trace))
    for name in ends[0][1]:  # no choice of experts and no clamp between the two
        a, b = ends[0][1][name], ends[1][1][name]
        if name.endswith("expert_indices"):
            assume(np.array_equal(a, b))
        if name.endswith("gate_up"):
            assume(((np.abs(a) > 7) == (np.abs(b) > 7)).all())
    assert abs((ends[0][0] - ends[1][0]) / (2 * step) - slope) <= 1e-6 * (1 + abs(slope))


def test_transformers_in_float32(tiny: Model, tiny_transformers: Any) -> None:
    """The bundled model, whose MXFP4 experts transformers dequantises to (E, M, N)."""
    tokens = random_tokens(tiny.config, 48, 1)
    ours = gr.backward(tiny, tokens)
    with torch.enable_grad():
        ids = torch.as_tensor(tokens)[None]
        loss = tiny_transformers(ids, labels=ids).loss
        names = {name: p for name, p in tiny_transformers.named_parameters() if p.requires_grad}
        found = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
    assert abs(ours.loss - float(loss)) <= 1e-5
    theirs = {}
    for name, d in found.items():
        n = [*name.split("."), ""][2]
        own = next((o for t, o in THEIRS.items() if name.endswith(t)), None)
        assert own is not None, name
        transposed = name.endswith(("gate_up_proj", "down_proj"))
        theirs[own.format(n=n)] = (d.transpose(1, 2) if transposed else d).numpy()
    assert set(theirs) == set(ours.weights)
    agree(ours.weights, theirs, 1e-4)


THEIRS = {
    "embed_tokens.weight": "embedding",
    "lm_head.weight": "unembedding",
    "model.norm.weight": "norm_scale",
    "input_layernorm.weight": "block.{n}.attn.norm_scale",
    "post_attention_layernorm.weight": "block.{n}.mlp.norm_scale",
    "sinks": "block.{n}.attn.sinks",
    **{
        f"{theirs}_proj.{part}": f"block.{{n}}.attn.{ours}_{part}"
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
        for part in ("weight", "bias")
    },
    "router.weight": "block.{n}.mlp.gate_weight",
    "router.bias": "block.{n}.mlp.gate_bias",
    "gate_up_proj": "block.{n}.mlp.mlp1_weight",
    "gate_up_proj_bias": "block.{n}.mlp.mlp1_bias",
    "down_proj": "block.{n}.mlp.mlp2_weight",
    "down_proj_bias": "block.{n}.mlp.mlp2_bias",
}


@pytest.fixture(scope="module")
def case() -> tuple[Model, list[int], Any]:
    config = small_config(layers=2, window=4)
    model = build(config, random_arrays(config, 21))
    tokens = random_tokens(config, 17, 4)
    return model, tokens, gr.backward(model, tokens, taps="*")


def test_a_batch_is_its_rows_together(case: Any) -> None:
    """Rows of other lengths, without padding; the mean is over all positions that count."""
    model, tokens, alone = case
    rows = [tokens[:9], tokens, tokens[5:6], tokens[3:12]]
    batch = gr.backward(model, rows, taps="*.residual")
    parts = [gr.backward(model, row) for row in rows if len(row) > 1]
    assert batch.count == sum(part.count for part in parts)
    for name, d in batch.weights.items():
        mean = sum(part.count * part.weights[name] for part in parts) / batch.count
        assert relative_l2(d, mean, 1e-12) <= 1e-12, name
    own = batch.taps["block.0.mlp.residual"][9 : 9 + len(tokens)] * batch.count / alone.count
    assert relative_l2(own, alone.taps["block.0.mlp.residual"]) <= 1e-12


def test_a_mask_leaves_positions_out(case: Any) -> None:
    model, tokens, _ = case
    mask = np.arange(len(tokens)) % 3 == 0
    masked = gr.backward(model, tokens, mask=mask)
    targets = np.where(mask, [*tokens[1:], -100], -100)
    ignored = gr.backward(model, tokens, targets)
    assert masked.count == ignored.count == int(mask[:-1].sum())
    assert masked.loss == ignored.loss
    for name, d in masked.weights.items():
        assert np.array_equal(d, ignored.weights[name])


def test_a_loss_of_the_callers_own(case: Any) -> None:
    model, tokens, alone = case

    def loss(logits: Array) -> tuple[float, Array]:
        wanted, mask = np.array([*tokens[1:], 0]), np.arange(len(tokens)) < len(tokens) - 1
        value, d = gr.gradients.cross_entropy(logits, wanted, mask, policy="float64")
        return 3 * value, 3 * d

    found = gr.backward(model, tokens, loss=loss)
    assert found.loss == 3 * alone.loss
    for name, d in found.weights.items():
        assert relative_l2(d, 3 * alone.weights[name]) <= 1e-14


def test_patterns_choose_and_callbacks_stream(case: Any) -> None:
    model, tokens, alone = case
    some = gr.backward(model, tokens, wrt=["block.1.*_bias", "norm_scale"], taps="block.1.attn.?")
    assert list(some.taps) == [f"block.1.attn.{letter}" for letter in "qkv"]
    assert len(some.weights) == 8
    for name, d in (*some.weights.items(), *some.taps.items()):
        whole = alone.weights.get(name, alone.taps.get(name))
        assert whole is not None
        assert relative_l2(d, whole) <= 1e-13, name  # the head skips positions that do not count
    weights: dict[str, Array] = {}
    taps: dict[str, Array] = {}
    streamed = gr.backward(
        model, tokens, taps="*", on_weight=weights.__setitem__, on_tap=taps.__setitem__
    )
    assert not streamed.weights
    assert not streamed.taps
    assert weights.keys() == alone.weights.keys()
    assert taps.keys() == alone.taps.keys()
    assert next(iter(weights)) == "unembedding"  # from the end of the model to its beginning
    assert gr.backward(model, tokens, wrt=()).weights == {}


def test_a_token_that_nobody_sees_has_no_gradient(case: Any) -> None:
    """Keys and values at positions after the last that counts, and experts that none chose."""
    model, tokens, _ = case
    mask = np.arange(len(tokens)) < 6
    found = gr.backward(model, tokens, mask=mask, taps="*")
    for name in ("attn.k", "attn.v", "attn.q", "mlp.residual"):
        assert not found.taps[f"block.1.{name}"][6:].any()
        assert found.taps[f"block.1.{name}"][:6].any()
    once = gr.backward(model, tokens[:2])
    chosen = gr.trace(model, tokens[:2])["block.0.mlp.expert_indices"]
    never = np.setdiff1d(np.arange(model.config.num_experts), chosen)
    assert len(never)
    for part in ("mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias", "gate_bias"):
        assert not once.weights[f"block.0.mlp.{part}"][never].any()
    absent = np.setdiff1d(np.arange(model.config.vocab_size), tokens[:2])
    assert not once.weights["embedding"][absent].any()


def test_rows_of_a_softmax_sum_to_zero(case: Any) -> None:
    """Router logits and loss logits of every token; scores with their sink."""
    _, _, alone = case
    for name, d in alone.taps.items():
        if name.endswith(("router_logits", "logits")):
            assert np.abs(d.sum(-1)).max() <= 1e-15 * np.abs(d).max() * d.shape[-1], name
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(5, 1, 4)), np.zeros((5, 1, 4)), rng.normal(size=(5, 1, 4))
    d_mix, where = rng.normal(size=(5, 4)), [np.arange(5)] * 2
    k[:, 0, 0] = 2.0  # q · k / √C = q_0 for every key: d_q sums the row's d_score
    found = gr.gradients.attention(d_mix, q, k, v, np.zeros(1), *where, policy="float64")
    assert np.isclose(found.d_q[:, 0, 0].sum(), -found.d_sinks[0], rtol=1e-12)


def test_relabelled_experts_permute(case: Any) -> None:
    model, tokens, alone = case
    order = np.random.default_rng(1).permutation(model.config.num_experts)
    parts = ("gate_weight", "gate_bias", "mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias")
    named = model.weights.named()
    other = with_weights(model, {n: w[order] for n, w in named.items() if n.endswith(parts)})
    found = gr.backward(other, tokens)
    for name, d in found.weights.items():
        mine = alone.weights[name]
        permuted = mine[order] if name.endswith(parts) else mine
        assert relative_l2(d, permuted, 1e-12) <= 1e-12, name


@settings(max_examples=8)
@given(seed=SEEDS, cut=st.integers(1, 11), window=st.sampled_from([None, 3, 8]))
def test_a_pass_split_by_the_cache_gives_the_whole(seed: int, cut: int, window: int | None) -> None:
    """Later queries reach back to the keys of the first part: their gradients add up."""
    rng = np.random.default_rng(seed)
    shape = {"q": (12, 6, 4), "k": (12, 2, 4), "v": (12, 2, 4)}
    q, k, v = (rng.normal(size=s) for s in shape.values())
    sinks, d_mix, at = rng.normal(size=6), rng.normal(size=(12, 24)), np.arange(12)
    whole = gr.gradients.attention(d_mix, q, k, v, sinks, at, at, window, policy="float64")
    first, second = (
        gr.gradients.attention(
            d_mix[rows],
            q[rows],
            k[:seen],
            v[:seen],
            sinks,
            at[rows],
            at[:seen],
            window,
            policy="float64",
        )
        for rows, seen in ((slice(0, cut), cut), (slice(cut, 12), 12))
    )
    for one, two, both in zip(first, second, whole, strict=True):
        if one.shape == sinks.shape:
            total = one + two
        elif one.shape[1] == 2:
            total = two.copy()
            total[:cut] += one
        else:
            total = np.concatenate([one, two])
        assert relative_l2(total, both) <= 1e-12


def test_a_tap_that_was_not_asked_for_is_computed_when_it_is_looked_up() -> None:
    model = gr.load("tiny", backend="numpy")
    tokens = [5, 3, 8, 1, 9]
    asked = gr.backward(model, tokens, wrt=(), taps="block.3.attn.q")
    out = gr.backward(model, tokens, wrt="*.sinks")
    assert list(out.taps) == []
    np.testing.assert_array_equal(out.taps["block.3.attn.q"], asked.taps["block.3.attn.q"])
    assert list(out.taps) == ["block.3.attn.q"]
    with pytest.raises(GptOssError, match=r"block\.3\.attn\.qq"):
        out.taps["block.3.attn.qq"]
    with pytest.raises(GptOssError, match=r"is a pattern: .* such as 'block\.0\.attn\.q'"):
        out.taps["*.attn.q"]
