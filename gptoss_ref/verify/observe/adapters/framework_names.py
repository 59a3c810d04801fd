"""Names of the tap points in frameworks without hooks: paths of the objects that are called.

A path such as ``model.layers.0.self_attn.q_proj`` leads from the model through attributes and
indices to an object, and means the result of its call. With a suffix it means: ``.input`` the first
argument, ``.input.2`` the second one, ``.0`` one of several results, ``#2`` the second call within
a pass.

Sources: mlx_lm/models/gpt_oss.py 0.32.2; keras_hub/src/models/gpt_oss/{gpt_oss_backbone,
gpt_oss_decoder, gpt_oss_attention}.py 0.32.0; torchtitan/models/gpt_oss/model.py 0.3.0.
"""

from __future__ import annotations

from collections.abc import Mapping

from gptoss_ref.config import ModelConfig

# framework -> (prefix of a block's names, stage -> name and layout, tap point -> name)
_NAMES: Mapping[str, tuple[str, Mapping[str, str], Mapping[str, str]]] = {
    "mlx": (
        "model.layers.{n}",
        {
            "attn.norm": ".input_layernorm",
            "attn.q": ".self_attn.q_proj",
            "attn.k": ".self_attn.k_proj",
            "attn.v": ".self_attn.v_proj",
            "attn.q_rope": ".self_attn.rope KG T C",
            "attn.k_rope": ".self_attn.rope#2 K T C",
            "attn.mix": ".self_attn.o_proj.input",
            "attn.out": ".self_attn",
            "attn.residual": ".post_attention_layernorm.input",
            "mlp.norm": ".post_attention_layernorm",
            "mlp.router_logits": ".mlp.router",
            "mlp.expert_indices": ".mlp.experts.input.2",
            "mlp.expert_out": ".mlp.experts",
            "mlp.out": ".mlp",
            "mlp.residual": "",
        },
        {"embedding": "model.embed_tokens", "norm": "model.norm", "logits": "lm_head"},
    ),
    "keras_hub": (
        "transformer_layers.{n}",
        {
            "attn.norm": ".input_layernorm",
            "attn.q": ".self_attention_layer.query_dense",
            "attn.k": ".self_attention_layer.key_dense",
            "attn.v": ".self_attention_layer.value_dense",
            "attn.q_rope": ".self_attention_layer.rotary_embedding_layer",
            "attn.k_rope": ".self_attention_layer.rotary_embedding_layer#2",
            "attn.mix": ".self_attention_layer.output_dense.input",
            "attn.out": ".self_attention_layer",
            "attn.residual": ".post_attention_layernorm.input",
            "mlp.norm": ".post_attention_layernorm",
            "mlp.router_logits": ".sparse_moe_block.router.router_dense",
            "mlp.out": ".sparse_moe_block",
            "mlp.residual": "",
        },
        {"embedding": "token_embedding", "norm": "layer_norm", "logits": "token_embedding#2"},
    ),
    "torchtitan": (
        "layers.{n}",
        {
            "attn.norm": ".attention_norm",
            "attn.q": ".attention.qkv_linear.0",
            "attn.k": ".attention.qkv_linear.1",
            "attn.v": ".attention.qkv_linear.2",
            "attn.mix": ".attention.wo.input",
            "attn.out": ".attention",
            "attn.residual": ".ffn_norm.input",
            "mlp.norm": ".ffn_norm",
            "mlp.router_logits": ".moe.router.gate",
            "mlp.out": ".moe",
            "mlp.residual": "",
        },
        {"embedding": "tok_embeddings", "norm": "norm", "logits": "lm_head"},
    ),
}

FRAMEWORKS = tuple(_NAMES)


def names_in(framework: str, config: ModelConfig) -> dict[str, tuple[str, str]]:
    """The tap point and its layout of each name (``""``: one of the usual layouts).

    >>> from gptoss_ref.config import GPT_OSS_20B
    >>> names_in("mlx", GPT_OSS_20B)["model.layers.3.self_attn.rope#2"]
    ('block.3.attn.k_rope', 'K T C')
    """
    block, stages, ends = _NAMES[framework]
    found = {name: (tap, "") for tap, name in ends.items()}
    for n in range(config.num_hidden_layers):
        for stage, entry in stages.items():
            name, _, layout = entry.partition(" ")
            found[block.format(n=n) + name] = (f"block.{n}.{stage}", layout)
    return found
