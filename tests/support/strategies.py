"""Random models for the tests: configurations whose dimensions all differ, and their weights.

A model is drawn as a plain dictionary of NumPy arrays under the OpenAI checkpoint's names (q, k and
v apart). From it ``as_weights`` makes the package's containers and ``as_torch`` the twin's tensors,
each by its own way and neither through ``gptoss_ref.numerics`` or ``gptoss_ref.layers``: bfloat16
and MXFP4 are converted by ml_dtypes.

Values lie on the bfloat16 grid, so that every policy and both oracles start from the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise, product
from typing import Any

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st

from gptoss_ref.config import ModelConfig
from gptoss_ref.weights import MXFP4, AttentionWeights, BlockWeights, MLPWeights, ModelWeights

Arrays = dict[str, Any]

SEEDS = st.integers(0, 2**32 - 1)
WINDOWS = (1, 2, 3, 7, 13, 31, 64, 127, 128)
LENGTHS = (1, 2, 127, 128, 129, 130, 257)

# (K, G, A, layers) and H = K * G, all different
_COUNTS = [
    (k, g, a, layers)
    for k, g, a, layers in product((2, 3, 4), (2, 3, 5), (1, 2, 3, 4, 5), (1, 2, 3, 4))
    if len({k, g, k * g, a, layers}) == 5
]


def _unused(used: set[int], candidates: Any) -> list[int]:
    return [value for value in candidates if value not in used]


@st.composite
def model_configs(
    draw: st.DrawFn,
    *,
    max_layers: int = 4,
    mxfp4: bool = False,
    windows: tuple[int, ...] = WINDOWS,
    shuffled_layer_types: bool = False,
    yarn: bool | None = None,
) -> ModelConfig:
    """A small configuration; layers, D, F, H, K, G, C, E, A, V and the window are all different."""
    counts = [c for c in _COUNTS if c[3] <= max_layers]
    n_kv, group, n_chosen, layers = draw(st.sampled_from(counts))
    used = {n_kv, group, n_kv * group, n_chosen, layers}

    def pick(candidates: Any) -> int:
        value: int = draw(st.sampled_from(_unused(used, candidates)))
        used.add(value)
        return value

    window = pick(windows)
    head_dim = pick(range(6, 21, 2))
    experts = pick(range(n_chosen + 1, 12))
    d_model = pick((32, 64, 96) if mxfp4 else range(17, 60))
    d_ff = pick((32, 64, 96) if mxfp4 else range(15, 50))
    vocab = pick(range(61, 90))
    layer_types: tuple[str, ...] | None = None
    if shuffled_layer_types:
        kind = st.sampled_from(("sliding_attention", "full_attention"))
        layer_types = tuple(draw(st.lists(kind, min_size=layers, max_size=layers)))
    use_yarn = draw(st.booleans()) if yarn is None else yarn
    return small_config(
        layers=layers,
        n_kv=n_kv,
        group=group,
        head_dim=head_dim,
        experts=experts,
        n_chosen=n_chosen,
        d_model=d_model,
        d_ff=d_ff,
        vocab=vocab,
        window=window,
        layer_types=layer_types,
        **draw(rotary_settings(head_dim, yarn=use_yarn)),
    )


@st.composite
def rotary_settings(draw: st.DrawFn, head_dim: int, *, yarn: bool = True) -> dict[str, float]:
    """theta and YaRN's settings, with 0 < low < high < C/2 - 1 as OpenAI's code demands."""
    theta = float(draw(st.sampled_from((500, 10_000, 150_000, 1_000_000))))
    if not yarn:
        return {"rope_theta": theta, "rope_scaling_factor": 1.0, "initial_context_length": 4096}
    half = head_dim // 2
    low = draw(st.floats(0.05, 0.4)) * (half - 1)
    high = low + draw(st.floats(0.2, 0.9)) * (half - 1.05 - low)
    length = draw(st.sampled_from((16, 100, 512, 4096)))
    return {
        "rope_theta": theta,
        "rope_scaling_factor": draw(st.sampled_from((1.5, 4.0, 32.0))),
        "initial_context_length": length,
        "rope_ntk_beta": length / (2 * math.pi * theta ** (low / half)),
        "rope_ntk_alpha": length / (2 * math.pi * theta ** (high / half)),
    }


def small_config(
    *,
    layers: int = 3,
    n_kv: int = 2,
    group: int = 4,
    head_dim: int = 10,
    experts: int = 9,
    n_chosen: int = 5,
    d_model: int = 37,
    d_ff: int = 23,
    vocab: int = 71,
    window: int = 6,
    layer_types: tuple[str, ...] | None = None,
    rope_theta: float = 150000.0,
    rope_scaling_factor: float = 32.0,
    initial_context_length: int = 4096,
    rope_ntk_alpha: float = 1.0,
    rope_ntk_beta: float = 32.0,
    max_position_embeddings: int = 131072,
) -> ModelConfig:
    """A configuration by short names; the defaults are all different from one another."""
    return ModelConfig(
        num_hidden_layers=layers,
        num_experts=experts,
        experts_per_token=n_chosen,
        vocab_size=vocab,
        hidden_size=d_model,
        intermediate_size=d_ff,
        head_dim=head_dim,
        num_attention_heads=n_kv * group,
        num_key_value_heads=n_kv,
        sliding_window=window,
        layer_types=layer_types,
        initial_context_length=initial_context_length,
        rope_theta=rope_theta,
        rope_scaling_factor=rope_scaling_factor,
        rope_ntk_alpha=rope_ntk_alpha,
        rope_ntk_beta=rope_ntk_beta,
        max_position_embeddings=max_position_embeddings,
    )


def on_grid(x: Any) -> np.ndarray:
    """The nearest bfloat16 values, as float64."""
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal values on the bfloat16 grid, as float64."""
    return on_grid(rng.normal(0, scale, shape))


def random_arrays(
    config: ModelConfig, seed: int, *, mxfp4: bool = False, sink: float = 0.0, clamp: float = 1.0
) -> Arrays:
    """Weights of a realistic scale: every layer moves the residual by about its own size.

    Args:
        config: shapes.
        seed: of the generator.
        mxfp4: expert matrices as ``(blocks, scales)`` bytes instead of matrices.
        sink: mean of the sink logits; −20 and 20 make them vanish and take all.
        clamp: standard deviation of the gate and up projections; 6 puts many beyond ±7.
    """
    rng = np.random.default_rng(seed)
    d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    h, k, c = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    e = config.num_experts
    arrays: Arrays = {"embedding": normal(rng, v, d)}
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.attn."
        arrays[at + "norm.scale"] = on_grid(rng.uniform(0.5, 1.5, d))
        for name, rows in (("q", h * c), ("k", k * c), ("v", k * c)):
            arrays[at + name + ".weight"] = normal(rng, rows, d, scale=1.2 * d**-0.5)
            arrays[at + name + ".bias"] = normal(rng, rows, scale=0.4)
        arrays[at + "sinks"] = on_grid(rng.normal(sink, 1, h))
        arrays[at + "out.weight"] = normal(rng, d, h * c, scale=(h * c) ** -0.5)
        arrays[at + "out.bias"] = normal(rng, d, scale=0.2)
        at = f"block.{n}.mlp."
        arrays[at + "norm.scale"] = on_grid(rng.uniform(0.5, 1.5, d))
        arrays[at + "gate.weight"] = normal(rng, e, d, scale=1.5 * d**-0.5)
        arrays[at + "gate.bias"] = normal(rng, e, scale=0.5)
        for name, rows, inputs, size in (
            ("mlp1", 2 * f, d, clamp),
            ("mlp2", d, f, 1 / max(1.0, clamp) ** 2),
        ):
            weight = normal(rng, e, rows, inputs, scale=size * inputs**-0.5)
            arrays[at + name + "_weight"] = mxfp4_bytes(weight) if mxfp4 else weight
            arrays[at + name + "_bias"] = normal(rng, e, rows, scale=0.3 * size)
    arrays["norm.scale"] = on_grid(rng.uniform(0.5, 1.5, d))
    arrays["unembedding"] = normal(rng, v, d, scale=d**-0.5)
    return arrays


def mxfp4_bytes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., M) as blocks (..., M/32, 16) and scales (..., M/32): one encoding, by ml_dtypes."""
    groups = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(groups).max(-1)
    exponent = np.floor(np.log2(np.where(largest > 0, largest, 1.0))) - 2
    codes = (groups * 2.0 ** -exponent[..., None]).astype(np.float32)
    nibbles = codes.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4, (exponent + 127).astype(np.uint8)


def mxfp4_values(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The values of MXFP4 bytes as float64, by ml_dtypes; scale 255 is NaN."""
    nibbles = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)
    codes = nibbles.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    scale = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    return (codes * scale[..., None]).reshape(*blocks.shape[:-2], -1)


def stored(value: Any, storage: str) -> Any:
    """One array as a checkpoint (bfloat16 bits) or a float array would hold it."""
    if isinstance(value, tuple):
        return MXFP4(*value, name="test tensor (test file)")
    if storage == "bfloat16":
        return value.astype(ml_dtypes.bfloat16).view(np.uint16)
    return value.astype(storage)


def as_weights(arrays: Mapping[str, Any], storage: str = "bfloat16") -> ModelWeights:
    """The package's containers; ``storage`` is bfloat16 (bits), float32 or float64."""
    s = {name: stored(value, storage) for name, value in arrays.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in arrays if name.startswith("block."))
    blocks = []
    for n in range(layers):
        at, mlp = f"block.{n}.attn.", f"block.{n}.mlp."
        blocks.append(
            BlockWeights(
                attn=AttentionWeights(
                    norm_scale=s[at + "norm.scale"],
                    q_weight=s[at + "q.weight"],
                    q_bias=s[at + "q.bias"],
                    k_weight=s[at + "k.weight"],
                    k_bias=s[at + "k.bias"],
                    v_weight=s[at + "v.weight"],
                    v_bias=s[at + "v.bias"],
                    sinks=s[at + "sinks"],
                    out_weight=s[at + "out.weight"],
                    out_bias=s[at + "out.bias"],
                ),
                mlp=MLPWeights(
                    norm_scale=s[mlp + "norm.scale"],
                    gate_weight=s[mlp + "gate.weight"],
                    gate_bias=s[mlp + "gate.bias"],
                    mlp1_weight=s[mlp + "mlp1_weight"],
                    mlp1_bias=s[mlp + "mlp1_bias"],
                    mlp2_weight=s[mlp + "mlp2_weight"],
                    mlp2_bias=s[mlp + "mlp2_bias"],
                ),
            )
        )
    return ModelWeights(
        embedding=s["embedding"],
        blocks=tuple(blocks),
        norm_scale=s["norm.scale"],
        unembedding=s["unembedding"],
    )


def as_torch(arrays: Mapping[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The twin's tensors. Norm scales stay float32 in a bfloat16 run, as in OpenAI's reference."""
    out = {}
    for name, value in arrays.items():
        values = mxfp4_values(*value) if isinstance(value, tuple) else value
        keep_wide = dtype == torch.bfloat16 and name.endswith("norm.scale")
        out[name] = torch.from_numpy(values).to(torch.float32 if keep_wide else dtype)
    return out


def random_tokens(config: ModelConfig, length: int, seed: int) -> list[int]:
    """Uniform token ids."""
    rng = np.random.default_rng([seed, 1])
    return [int(t) for t in rng.integers(0, config.vocab_size, length)]


@st.composite
def chunkings(draw: st.DrawFn, length: int) -> list[int]:
    """Chunk sizes that sum to ``length``."""
    cuts = draw(st.lists(st.integers(1, length - 1), max_size=6, unique=True)) if length > 1 else []
    edges = [0, *sorted(cuts), length]
    return [b - a for a, b in pairwise(edges)]
