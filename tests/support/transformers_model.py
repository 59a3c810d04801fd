"""The other oracle: transformers' GptOssForCausalLM with the weights of a drawn model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from gptoss_ref.config import ModelConfig
from tests.support.strategies import Arrays, as_torch


def transformers_config(config: ModelConfig) -> GptOssConfig:
    """The same architecture as transformers spells it; no YaRN is ``rope_type`` default."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling_factor > 1:
        rope |= {
            "rope_type": "yarn",
            "factor": config.rope_scaling_factor,
            "beta_fast": config.rope_ntk_beta,
            "beta_slow": config.rope_ntk_alpha,
            "truncate": False,
            "original_max_position_embeddings": config.initial_context_length,
        }
    return GptOssConfig(
        num_hidden_layers=config.num_hidden_layers,
        num_local_experts=config.num_experts,
        num_experts_per_tok=config.experts_per_token,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        head_dim=config.head_dim,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        sliding_window=config.sliding_window,
        layer_types=None if config.layer_types is None else list(config.layer_types),
        rope_parameters=rope,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        swiglu_limit=config.swiglu_limit,
        swiglu_alpha=config.swiglu_alpha,
        attn_implementation="eager",
        experts_implementation="eager",  # the default needs strides of 16 bytes
    )


def transformers_model(config: ModelConfig, arrays: Arrays) -> GptOssForCausalLM:
    """In float32, with eager attention and every weight copied from ``arrays``."""
    model = GptOssForCausalLM(transformers_config(config)).float().eval()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in as_torch(arrays, torch.float32).items():
        # experts are stored transposed there
        value = tensor.transpose(1, 2) if name.endswith(("mlp1_weight", "mlp2_weight")) else tensor
        state[transformers_name(name)] = value
    model.load_state_dict(state)
    return model


def transformers_name(name: str) -> str:
    """``block.0.attn.q.weight`` -> ``model.layers.0.self_attn.q_proj.weight`` and so on."""
    top = {
        "embedding": "model.embed_tokens.weight",
        "norm.scale": "model.norm.weight",
        "unembedding": "lm_head.weight",
    }
    if name in top:
        return top[name]
    _, layer, part, rest = name.split(".", 3)
    renamed = {
        ("attn", "norm.scale"): "input_layernorm.weight",
        ("attn", "sinks"): "self_attn.sinks",
        ("attn", "out.weight"): "self_attn.o_proj.weight",
        ("attn", "out.bias"): "self_attn.o_proj.bias",
        ("mlp", "norm.scale"): "post_attention_layernorm.weight",
        ("mlp", "gate.weight"): "mlp.router.weight",
        ("mlp", "gate.bias"): "mlp.router.bias",
        ("mlp", "mlp1_weight"): "mlp.experts.gate_up_proj",
        ("mlp", "mlp1_bias"): "mlp.experts.gate_up_proj_bias",
        ("mlp", "mlp2_weight"): "mlp.experts.down_proj",
        ("mlp", "mlp2_bias"): "mlp.experts.down_proj_bias",
    }
    letter, _, kind = rest.partition(".")
    inner = renamed.get((part, rest), f"self_attn.{letter}_proj.{kind}")
    return f"model.layers.{layer}.{inner}"
