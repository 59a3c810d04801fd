"""Writes small random checkpoints in every layout, with none of the package's own names or code.

Tensors are made once, under OpenAI's names, and renamed, split, decoded and transposed here with
torch and ml_dtypes; safetensors' own writer puts them on disk.
"""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

# Every axis differs: D 64, F 96, H 6, K 2, G 3, C 12, HC 72, KC 24, E 5, A 2, V 131, layers 4.
SIZES = {
    "num_hidden_layers": 4,
    "num_experts": 5,
    "experts_per_token": 2,
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "swiglu_limit": 7.0,
    "head_dim": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "sliding_window": 7,
    "initial_context_length": 32,
    "rope_theta": 150000.0,
    "rope_scaling_factor": 8.0,
    "rope_ntk_alpha": 1.0,
    "rope_ntk_beta": 4.0,
}


def hf_config(experts: str = "mxfp4", **changes: object) -> dict:
    """SIZES in the Hugging Face dialect, keyed as the released files are."""
    s = SIZES
    config = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 102,
        "experts_per_token": s["experts_per_token"],
        "head_dim": s["head_dim"],
        "hidden_act": "silu",
        "hidden_size": s["hidden_size"],
        "initial_context_length": s["initial_context_length"],
        "initializer_range": 0.02,
        "intermediate_size": s["intermediate_size"],
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 256,
        "model_type": "gpt_oss",
        "num_attention_heads": s["num_attention_heads"],
        "num_experts_per_tok": s["experts_per_token"],
        "num_hidden_layers": s["num_hidden_layers"],
        "num_key_value_heads": s["num_key_value_heads"],
        "num_local_experts": s["num_experts"],
        "output_router_logits": False,
        "pad_token_id": 99,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": s["rope_ntk_beta"],
            "beta_slow": s["rope_ntk_alpha"],
            "factor": s["rope_scaling_factor"],
            "original_max_position_embeddings": s["initial_context_length"],
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": s["rope_theta"],
        "router_aux_loss_coef": 0.9,
        "sliding_window": s["sliding_window"],
        "swiglu_limit": s["swiglu_limit"],
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": s["vocab_size"],
    }
    if experts == "mxfp4":
        config["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        }
    return config | changes


def openai_tensors(seed: int = 0, canonical: bool = False) -> Tensors:
    """Random tensors of SIZES in the OpenAI layout.

    `canonical` makes every MXFP4 block hold a code of magnitude 4 or 6, so that encoding its values
    by the floor rule gives back the same bytes.
    """
    rng = np.random.default_rng(seed)
    s = SIZES
    d, f, v, e = s["hidden_size"], s["intermediate_size"], s["vocab_size"], s["num_experts"]
    h, k, c = s["num_attention_heads"], s["num_key_value_heads"], s["head_dim"]

    def normal(*shape: int, std: float = 0.3) -> torch.Tensor:
        return torch.from_numpy(rng.normal(0, std, shape)).to(torch.bfloat16)

    def blocks(*shape: int) -> torch.Tensor:
        values = rng.integers(0, 256, shape, dtype=np.uint8)
        if canonical:
            values[..., 0] = values[..., 0] & 0x88 | 0x06 | 0x70  # low nibble 4, high nibble 6
        return torch.from_numpy(values)

    def scales(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(118, 125, shape, dtype=np.uint8))

    tensors = {
        "embedding.weight": normal(v, d, std=1),
        "unembedding.weight": normal(v, d),
        "norm.scale": 1 + normal(d),
    }
    for n in range(s["num_hidden_layers"]):
        b = f"block.{n}."
        tensors |= {
            b + "attn.norm.scale": 1 + normal(d),
            b + "attn.qkv.weight": normal((h + 2 * k) * c, d),
            b + "attn.qkv.bias": normal((h + 2 * k) * c),
            b + "attn.sinks": normal(h, std=1),
            b + "attn.out.weight": normal(d, h * c),
            b + "attn.out.bias": normal(d),
            b + "mlp.norm.scale": 1 + normal(d),
            b + "mlp.gate.weight": normal(e, d),
            b + "mlp.gate.bias": normal(e),
            b + "mlp.mlp1_weight.blocks": blocks(e, 2 * f, d // 32, 16),
            b + "mlp.mlp1_weight.scales": scales(e, 2 * f, d // 32),
            b + "mlp.mlp1_bias": normal(e, 2 * f),
            b + "mlp.mlp2_weight.blocks": blocks(e, d, f // 32, 16),
            b + "mlp.mlp2_weight.scales": scales(e, d, f // 32),
            b + "mlp.mlp2_bias": normal(e, d),
        }
    return tensors


def hf_tensors(openai: Tensors) -> Tensors:
    """The same tensors under Hugging Face's names, q, k and v apart."""
    s = SIZES
    c = s["head_dim"]
    q, k = s["num_attention_heads"] * c, s["num_key_value_heads"] * c
    renamed = {
        "embedding.weight": "model.embed_tokens.weight",
        "unembedding.weight": "lm_head.weight",
        "norm.scale": "model.norm.weight",
    }
    result = {new: openai[old] for old, new in renamed.items()}
    for n in range(s["num_hidden_layers"]):
        b, p = f"block.{n}.", f"model.layers.{n}."
        for kind in ("weight", "bias"):
            qkv = openai[b + f"attn.qkv.{kind}"]
            result[p + f"self_attn.q_proj.{kind}"] = qkv[:q].clone()
            result[p + f"self_attn.k_proj.{kind}"] = qkv[q : q + k].clone()
            result[p + f"self_attn.v_proj.{kind}"] = qkv[q + k :].clone()
            result[p + f"self_attn.o_proj.{kind}"] = openai[b + f"attn.out.{kind}"]
            result[p + f"mlp.router.{kind}"] = openai[b + f"mlp.gate.{kind}"]
        result[p + "self_attn.sinks"] = openai[b + "attn.sinks"]
        result[p + "input_layernorm.weight"] = openai[b + "attn.norm.scale"]
        result[p + "post_attention_layernorm.weight"] = openai[b + "mlp.norm.scale"]
        for ours, theirs in (("mlp1", "gate_up_proj"), ("mlp2", "down_proj")):
            e = p + f"mlp.experts.{theirs}"
            result[e + "_blocks"] = openai[b + f"mlp.{ours}_weight.blocks"]
            result[e + "_scales"] = openai[b + f"mlp.{ours}_weight.scales"]
            result[e + "_bias"] = openai[b + f"mlp.{ours}_bias"]
    return result


def dequantise(blocks: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    """MXFP4 (..., M/32, 16) and (..., M/32) to float64 (..., M), through ml_dtypes' own types."""
    raw = blocks.numpy()
    codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], 32)
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    scale = scales.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    return (values * scale[..., None]).reshape(*raw.shape[:-2], -1)


def hf_bfloat16_tensors(openai: Tensors) -> Tensors:
    """The Hugging Face tensors with dequantised, transposed experts."""
    result = hf_tensors(openai)
    for name in [n for n in result if n.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        dense = dequantise(result.pop(name), result.pop(stem + "_scales"))
        result[stem] = torch.from_numpy(dense).to(torch.bfloat16).swapaxes(1, 2).contiguous()
    return result


def write(folder: Path, tensors: Tensors, config: dict, shards: int = 1) -> Path:
    """Puts a checkpoint on disk: one file, or several with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_openai(folder: Path, seed: int = 0, shards: int = 1, canonical: bool = False) -> Path:
    return write(folder, openai_tensors(seed, canonical), SIZES, shards)


def write_hf(folder: Path, seed: int = 0, shards: int = 1, canonical: bool = False) -> Path:
    return write(folder, hf_tensors(openai_tensors(seed, canonical)), hf_config(), shards)


def write_hf_bfloat16(
    folder: Path, seed: int = 0, shards: int = 1, canonical: bool = False
) -> Path:
    tensors = hf_bfloat16_tensors(openai_tensors(seed, canonical))
    return write(folder, tensors, hf_config("bfloat16"), shards)
