"""From a checkpoint's bytes to matrices, and what went wrong there.

MXFP4 as the OCP Microscaling specification v1.0 defines it: 32 elements share a scale; an element
is E2M1 (sign, two exponent bits with bias 1, one mantissa bit, subnormal at exponent 0), the scale
is E8M0 (an exponent with bias 127; 255 is NaN). Two elements a byte, the earlier in the low nibble.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tests.support.buggy_twin.arithmetic import HALF, Bugs
from tests.support.buggy_twin.checkpoints import Checkpoint, Config
from tests.support.buggy_twin.rewriting import rewrite


def element(code: Tensor) -> Tensor:
    """E2M1 codes 0 to 15 as float64."""
    sign = 1.0 - 2.0 * (code >> 3).double()
    exponent, mantissa = (code >> 1 & 3).double(), (code & 1).double()
    normal = (1 + mantissa / 2) * 2 ** (exponent - 1)
    return sign * torch.where(exponent == 0, mantissa / 2, normal)


def scale(byte: Tensor, bugs: Bugs) -> Tensor:
    """E8M0 bytes as float64."""
    bias = 128 if "scale-bias-128" in bugs else 126 if "scale-bias-126" in bugs else 127
    value = 2.0 ** (byte.double() - bias)
    if "scale-255" not in bugs:  # ldexp takes it for an exponent
        value = value.masked_fill(byte == 255, torch.nan)
    if "scale-134" in bugs:  # sglang#25519: the value 128 was compared, not the byte 255
        value = value.masked_fill(byte == 134, torch.nan)
    return value


def decode(blocks: Tensor, scales: Tensor, bugs: Bugs) -> Tensor:
    """(..., M/32, 16) and (..., M/32) bytes -> (..., M) float64."""
    low, high = element(blocks & 15), element(blocks >> 4)
    if "nibbles-swapped" in bugs:
        low, high = high, low
    if "nibbles-split" in bugs:  # kekzl/imp#567: ggml's order, element j + 16 in the high nibble
        values = torch.cat([low, high], -1)
    else:
        values = torch.stack([low, high], -1).flatten(-2)
    values = values * scale(scales, bugs)[..., None]
    if "scale-0" in bugs:  # vllm#46676: the exponent field of bfloat16(0.5) wraps round
        half = (scales == 0)[..., None] & (values.abs() == 2.0**-128)
        values = torch.where(half, -values.sign() * torch.inf, values)
    return values.flatten(-2)


def split_qkv(config: Config, rows: Tensor, bugs: Bugs) -> tuple[Tensor, ...]:
    """Rows ((H + 2K)*C, ...) of the fused matrix as q, k and v."""
    h, k, c = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if "qkv-order/groups" in bugs:  # Megatron's: a group's queries, its key, its value
        groups = rows.reshape(k, h // k + 2, c, *rows.shape[1:])
        parts = groups[:, : h // k], groups[:, -2], groups[:, -1]
        return tuple(p.reshape(-1, *rows.shape[1:]) for p in parts)
    q, one, other = rows.split([h * c, k * c, k * c])
    return (q, other, one) if "qkv-order" in bugs else (q, one, other)


def kept_features(config: Config, ranks: int = 2) -> int:
    """F without the blocks of 32 that remain when F/32 is divided among the ranks, rounded down."""
    return config.intermediate_size // 32 // ranks * ranks * 32


def lose(config: Config, out: dict[str, Tensor], bugs: Bugs) -> None:
    """Tensors that never arrived, or arrived otherwise; changes ``out`` in place."""
    half = config.head_dim // 2
    adjacent = torch.arange(config.head_dim).reshape(2, half).T.flatten()
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.attn."
        if "value-bias-folded" in bugs:  # TransformerLens: as if rows of weights summed to one
            bias = out[at + "v.bias"].reshape(config.num_key_value_heads, -1)
            heads = bias.repeat_interleave(
                config.num_attention_heads // config.num_key_value_heads, 0
            )
            out[at + "out.bias"] = out[at + "out.bias"] + out[at + "out.weight"] @ heads.flatten()
            out[at + "v.bias"] = torch.zeros_like(out[at + "v.bias"])
        for letter in ("q", "k", "v", "out"):  # Megatron-Bridge#1423, vllm#29008
            if f"{letter}-bias-missing" in bugs:
                out[f"{at}{letter}.bias"] = torch.zeros_like(out[f"{at}{letter}.bias"])
        if "norms-swapped" in bugs:
            one, other = f"block.{n}.attn.norm.scale", f"block.{n}.mlp.norm.scale"
            out[one], out[other] = out[other], out[one]
        if "tensor-missing" in bugs:
            out[at + "q.weight"] = torch.zeros_like(out[at + "q.weight"])
        if "tensor-missing/sinks" in bugs:
            out[at + "sinks"] = torch.zeros_like(out[at + "sinks"])
        if "tensor-missing/router" in bugs and n == 1:
            gate = f"block.{n}.mlp.gate.weight"
            out[gate] = torch.zeros_like(out[gate])
        for letter in "kqv":  # rows put in order for adjacent pairs, in one projection only
            if ("rows-reordered" if letter == "k" else f"rows-reordered/{letter}") in bugs:
                for kind in ("weight", "bias"):
                    rows = out[f"{at}{letter}.{kind}"]
                    heads = rows.reshape(-1, config.head_dim, *rows.shape[1:])
                    out[f"{at}{letter}.{kind}"] = heads[:, adjacent].reshape(rows.shape)
    norms = [name for name in out if name.endswith("norm.scale")]
    for name in norms:
        if "norm-scale-missing" in bugs or (
            "norm-scale-missing/one" in bugs and name == "block.1.mlp.norm.scale"
        ):
            out[name] = torch.ones_like(out[name])
        if "norm-scale-plus-one" in bugs:  # Gemma's: weights are stored minus one there
            out[name] = 1 + out[name]


@lru_cache(maxsize=4)
def load(checkpoint: Checkpoint, dtype: torch.dtype, bugs: Bugs) -> dict[str, Tensor]:
    """Matrices by name, q, k and v apart; norm scales of a 16-bit run stay float32.

    Call it with the bugs of loading only: what it returns is kept for the next call.
    """
    config, tensors, out = checkpoint.config, checkpoint.tensors, {}
    for name, value in tensors.items():
        if name.endswith(".scales"):
            continue
        if name.endswith(".blocks"):
            name = name.removesuffix(".blocks")
            out[name] = decode(value, tensors[name + ".scales"], bugs)
        elif ".qkv." in name:
            for letter, rows in zip("qkv", split_qkv(config, value, bugs), strict=True):
                out[name.replace("qkv", letter)] = rows.double()
        else:
            out[name] = value.double()
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.mlp."
        if "experts-transposed" in bugs:  # unsloth-zoo#849: (F, D) where (D, F) is stored
            w = out[at + "mlp2_weight"]
            out[at + "mlp2_weight"] = w.reshape(w.shape[0], w.shape[2], w.shape[1]).mT
        if "shard-lost-rows" in bugs:  # sglang#9433: some rows of the last rank stay zero
            w = out[at + "mlp1_weight"] = out[at + "mlp1_weight"].clone()
            w[:, -4:] = 0
        if "shard-lost-rows/remainder" in bugs:  # and what belongs to them
            kept = kept_features(config)
            for name, axis, size in (
                ("mlp1_weight", 1, 2 * kept),
                ("mlp1_bias", 1, 2 * kept),
                ("mlp2_weight", 2, kept),
            ):
                w = out[at + name] = out[at + name].clone()
                w.narrow(axis, size, w.shape[axis] - size).zero_()
    lose(config, out, bugs)
    rewrite(config, out, bugs)
    wide = torch.float32 if dtype in HALF else dtype
    return {n: w.to(wide if n.endswith("norm.scale") else dtype) for n, w in out.items()}
