"""Assertions on rotary embedding and attention, as functions of the layer that is being tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from gptoss_ref.numerics import get_policy
from tests.support import torch_twin
from tests.support.agreement import NUMPY, STRAYS, Array, Layer, as_array, as_tensor, assert_agrees
from tests.support.strategies import normal, on_grid, stored


def check_yarn(layer: Layer, head_dim: int, settings: dict[str, float]) -> None:
    """Inverse frequencies and concentration; ``settings`` are the fields of ModelConfig."""
    arguments = (
        head_dim,
        settings["rope_theta"],
        settings["rope_scaling_factor"],
        settings["initial_context_length"],
        settings.get("rope_ntk_beta", 32.0),
        settings.get("rope_ntk_alpha", 1.0),
    )
    inv_freq, concentration = layer(*arguments)
    expected, factor = torch_twin.yarn(*arguments)
    assert inv_freq.dtype == np.float64
    np.testing.assert_allclose(inv_freq, as_array(expected), rtol=1e-13)
    assert abs(concentration - factor) <= 1e-15 * factor


def check_rope_tables(
    layer: Layer, positions: Array, head_dim: int, settings: dict[str, float], policy: str
) -> None:
    """cos and sin at absolute positions.

    The float32 policy takes its angles in float64, so it is held to float32's own rounding at any
    position. The bfloat16 policy takes float32 angles from float32 frequencies like OpenAI's
    reference, which at position p puts them off by about p·2⁻²⁴ radians.
    """
    names = ("rope_scaling_factor", "initial_context_length", "rope_ntk_beta", "rope_ntk_alpha")
    rest = [settings[n] for n in names if n in settings]
    inv_freq, concentration = torch_twin.yarn(head_dim, settings["rope_theta"], *rest)
    cos, sin = layer(positions, as_array(inv_freq), concentration, policy=get_policy(policy))
    narrow, _ = torch_twin.yarn(head_dim, settings["rope_theta"], *rest, dtype=torch.float32)
    at = as_tensor(positions)
    if policy == "bfloat16":
        pair = torch_twin.rope_tables(at, narrow, concentration, torch.bfloat16)
        for ours, theirs in zip((cos, sin), pair, strict=True):
            assert np.array_equal(ours, on_grid(ours))
            # float32 frequencies may differ in their last bit: a step of bfloat16, plus the angle's
            allowed = 2.0**-7 + positions[:, None] * as_array(inv_freq) * 2.0**-22
            assert np.all(np.abs(ours - as_array(theirs)) <= allowed)
            if positions.max() < 200:
                assert np.mean(ours != as_array(theirs)) <= STRAYS + 1 / ours.size
        return
    pair = torch_twin.rope_tables(at, inv_freq, concentration, torch.float64)
    # float64 angles are themselves off by p·2⁻⁵³
    step = {"float64": 4e-16 * (2 + float(positions.max())), "float32": 1.3e-7}[policy]
    for ours, theirs in zip((cos, sin), pair, strict=True):
        assert ours.dtype == NUMPY[policy]
        assert ours.shape == (len(positions), head_dim // 2)
        assert np.all(np.abs(ours - as_array(theirs)) <= step * concentration)


def check_rope(
    layer: Layer, seed: int, policy: str, n_tokens: int = 7, heads: int = 3, head_dim: int = 10
) -> None:
    """The rotation itself, with tables that are given."""
    rng = np.random.default_rng(seed)
    x = normal(rng, n_tokens, heads, head_dim)
    angle = rng.uniform(-3, 3, (n_tokens, head_dim // 2))
    cos, sin = on_grid(1.3 * np.cos(angle)), on_grid(1.3 * np.sin(angle))
    dtype = NUMPY[policy]
    ours = layer(x.astype(dtype), cos.astype(dtype), sin.astype(dtype), policy=get_policy(policy))
    assert_agrees(
        ours,
        lambda p: torch_twin.rope(as_tensor(x, p), as_tensor(cos, p), as_tensor(sin, p)),
        policy,
    )


def attention_case(
    seed: int, sizes: tuple[int, int, int, int, int], sink: float = 0.0, size: float = 1.0
) -> tuple[Array, Array, Array, Array]:
    """q (T, H, C), k (S, K, C), v (S, K, C), sinks (H,) for sizes (T, S, K, G, C)."""
    n_q, n_k, n_kv, group, c = sizes
    rng = np.random.default_rng(seed)
    q = normal(rng, n_q, n_kv * group, c, scale=size)
    k = normal(rng, n_k, n_kv, c, scale=size)
    v = normal(rng, n_k, n_kv, c)
    return q, k, v, on_grid(rng.normal(sink, 1, n_kv * group))


def attention_positions(
    seed: int, sizes: tuple[int, int, int, int, int], offset: int, shuffle: bool
) -> tuple[Array, Array, Array]:
    """Positions of queries and keys, and the keys' order (a ring cache holds them rotated)."""
    n_q, n_k = sizes[:2]
    k_positions = np.arange(n_k) + offset
    q_positions = k_positions[n_k - n_q :]
    order = np.roll(np.arange(n_k), seed % n_k) if shuffle else np.arange(n_k)
    return q_positions, k_positions[order], order


def attended(
    layer: Layer,
    twin: Callable[..., torch.Tensor],
    arrays: Sequence[Array],
    sinks: Array,
    positions: Sequence[Array],
    window: int | None,
    policy: str,
) -> tuple[Array, Callable[[str], torch.Tensor]]:
    """What the layer makes of q, k (and v), and the twin under any policy."""
    ours = layer(
        *(x.astype(NUMPY[policy]) for x in arrays),
        stored(sinks, "bfloat16"),
        *positions,
        window,
        policy=get_policy(policy),
    )
    return ours, lambda p: twin(
        *(as_tensor(x, p) for x in (*arrays, sinks)), *(as_tensor(x) for x in positions), window
    )


def check_attention_weights(
    layer: Layer,
    seed: int,
    policy: str,
    sizes: tuple[int, int, int, int, int],
    window: int | None,
    sink: float = 0.0,
    offset: int = 0,
    shuffle: bool = False,
) -> None:
    """Weights (H, T, S) for queries that end where the keys end, keys in any order."""
    q, k, _, sinks = attention_case(seed, sizes, sink)
    q_positions, k_positions, order = attention_positions(seed, sizes, offset, shuffle)
    ours, twin = attended(
        layer, torch_twin.attention_weights,
        (q, k[order]), sinks, (q_positions, k_positions), window, policy,
    )  # fmt: skip
    assert_agrees(ours, twin, policy, rows=True)
    age = q_positions[:, None] - k_positions[None, :]
    seen = (age >= 0) & (age < window) if window is not None else age >= 0
    assert not ours[:, ~seen].any(), "a masked key has weight"
    # mathematically below 1; a rounded sum may reach it when the sink's share is below rounding
    assert np.all(ours.sum(-1) <= 1 + {"float64": 1e-14, "float32": 1e-6, "bfloat16": 1e-2}[policy])


def check_attention(
    layer: Layer,
    seed: int,
    policy: str,
    sizes: tuple[int, int, int, int, int],
    window: int | None,
    sink: float = 0.0,
    offset: int = 0,
    shuffle: bool = False,
) -> None:
    """The mix (T, H*C) of the values."""
    q, k, v, sinks = attention_case(seed, sizes, sink)
    *positions, order = attention_positions(seed, sizes, offset, shuffle)
    ours, twin = attended(
        layer, torch_twin.attention, (q, k[order], v[order]), sinks, positions, window, policy
    )
    assert ours.shape == (sizes[0], sizes[2] * sizes[3] * sizes[4])
    a_row_a_head = (sizes[0], -1, sizes[4])
    assert_agrees(
        ours.reshape(a_row_a_head), lambda p: twin(p).reshape(a_row_a_head), policy, rows=True
    )


def check_sink_probe(layer: Layer, policy: str = "float64") -> None:
    """q·k = 0 and v = 1: with n keys in sight the mix is n / (n + e^sink), known exactly."""
    n, n_kv, group, c, window = 9, 2, 3, 4, 5
    sinks = np.array([-3.0, 0.0, 0.5, 1.0, 2.0, 20.0])
    dtype = NUMPY[policy]
    at = np.arange(n)
    zeros, ones = np.zeros((n, n_kv * group, c), dtype), np.ones((n, n_kv, c), dtype)
    ours = layer(zeros, ones, ones, sinks, at, at, window, policy=get_policy(policy))
    keys = np.minimum(at + 1, window)[:, None, None]
    expected = np.broadcast_to(keys / (keys + np.exp(sinks)[:, None]), (n, n_kv * group, c))
    np.testing.assert_allclose(ours, expected.reshape(n, -1), rtol=1e-13)
