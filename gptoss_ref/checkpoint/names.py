"""The one table of tensor names: what each layout calls a weight and which shape it has there.

Shapes are written with the axis letters of the package: D hidden, H query heads, K key/value
heads, C head size, E experts, F intermediate, V vocabulary; `HC` is H*C, `D/32` MXFP4 blocks.

In the OpenAI layout q, k and v are rows of one tensor, in that order. In a dequantised Hugging
Face checkpoint (`hf-bfloat16`) the expert matrices are stored transposed, as (E, input, output).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptoss_ref.config import ModelConfig
from gptoss_ref.weights import MXFP4_BLOCK

Layout = Literal["openai", "hf", "hf-bfloat16"]
"""OpenAI's names, Hugging Face's, or the latter with dequantised and transposed experts."""
LAYOUTS: tuple[Layout, ...] = ("openai", "hf", "hf-bfloat16")

# weight of ModelWeights | OpenAI name | Hugging Face name | axes
_MODEL = (
    ("embedding", "embedding.weight", "model.embed_tokens.weight", "V D"),
    ("unembedding", "unembedding.weight", "lm_head.weight", "V D"),
    ("norm_scale", "norm.scale", "model.norm.weight", "D"),
)
# weight of BlockWeights | OpenAI, after "block.N." | Hugging Face, after "model.layers.N." | axes
_BLOCK = (
    ("attn.norm_scale", "attn.norm.scale", "input_layernorm.weight", "D"),
    ("attn.q_weight", "attn.qkv.weight", "self_attn.q_proj.weight", "HC D"),
    ("attn.k_weight", "attn.qkv.weight", "self_attn.k_proj.weight", "KC D"),
    ("attn.v_weight", "attn.qkv.weight", "self_attn.v_proj.weight", "KC D"),
    ("attn.q_bias", "attn.qkv.bias", "self_attn.q_proj.bias", "HC"),
    ("attn.k_bias", "attn.qkv.bias", "self_attn.k_proj.bias", "KC"),
    ("attn.v_bias", "attn.qkv.bias", "self_attn.v_proj.bias", "KC"),
    ("attn.sinks", "attn.sinks", "self_attn.sinks", "H"),
    ("attn.out_weight", "attn.out.weight", "self_attn.o_proj.weight", "D HC"),
    ("attn.out_bias", "attn.out.bias", "self_attn.o_proj.bias", "D"),
    ("mlp.norm_scale", "mlp.norm.scale", "post_attention_layernorm.weight", "D"),
    ("mlp.gate_weight", "mlp.gate.weight", "mlp.router.weight", "E D"),
    ("mlp.gate_bias", "mlp.gate.bias", "mlp.router.bias", "E"),
    ("mlp.mlp1_bias", "mlp.mlp1_bias", "mlp.experts.gate_up_proj_bias", "E 2F"),
    ("mlp.mlp2_bias", "mlp.mlp2_bias", "mlp.experts.down_proj_bias", "E D"),
)
# The expert matrices: stored in two MXFP4 tensors, or dequantised and transposed in one.
# weight | OpenAI | Hugging Face | axes of the blocks | axes when dequantised
_EXPERTS = (
    ("mlp.mlp1_weight", "mlp.mlp1_weight", "mlp.experts.gate_up_proj", "E 2F D/32 16", "E D 2F"),
    ("mlp.mlp2_weight", "mlp.mlp2_weight", "mlp.experts.down_proj", "E D F/32 16", "E F D"),
)
_QKV_ROWS = {"q": ("", "HC"), "k": ("HC", "HC+KC"), "v": ("HC+KC", "HC+2KC")}


@dataclass(frozen=True)
class Place:
    """Where a layout keeps one weight.

    Attributes:
        weight: ours: `embedding`, or `block.N.attn.q_weight`; MXFP4 expert matrices appear twice,
            as `block.N.mlp.mlp1_weight.blocks` and `.scales`.
        tensor: the name in the file.
        shape: of that tensor in the file.
        axes: the same in axis letters, for messages.
        kind: `float` (bfloat16, float16, float32 or float64) or `bytes` (uint8).
        rows: which rows of the tensor are the weight, for q, k and v of the OpenAI layout.
        transposed: whether the last two axes are swapped in the file.
    """

    weight: str
    tensor: str
    shape: tuple[int, ...]
    axes: str
    kind: Literal["float", "bytes"] = "float"
    rows: tuple[int, int] | None = None
    transposed: bool = False


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """The size of every axis that the table mentions."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    d, f = config.hidden_size, config.intermediate_size
    hc, kc = heads * config.head_dim, groups * config.head_dim
    return {
        "": 0, "V": config.vocab_size, "D": d, "H": heads, "HC": hc, "KC": kc,
        "HC+KC": hc + kc, "HC+2KC": hc + 2 * kc, "E": config.num_experts, "F": f, "2F": 2 * f,
        "D/32": d // MXFP4_BLOCK, "F/32": f // MXFP4_BLOCK, "16": MXFP4_BLOCK // 2,
    }  # fmt: skip


def places(config: ModelConfig, layout: Layout) -> Iterator[Place]:
    """Every weight of a configuration and where the layout keeps it, in the order of the model."""
    sizes = axis_sizes(config)
    openai = layout == "openai"

    def shape(axes: str) -> tuple[int, ...]:
        return tuple(sizes[axis] for axis in axes.split())

    def place(weight: str, tensor: str, axes: str, **options: object) -> Place:
        return Place(weight, tensor, shape(axes), axes, **options)  # type: ignore[arg-type]

    for weight, openai_name, hf_name, axes in _MODEL:
        yield place(weight, openai_name if openai else hf_name, axes)
    for n in range(config.num_hidden_layers):
        ours = f"block.{n}."
        prefix = ours if openai else f"model.layers.{n}."
        for weight, openai_name, hf_name, axes in _BLOCK:
            if openai and "qkv" in openai_name:
                begin, end = _QKV_ROWS[weight[len("attn.")]]
                axes = " ".join(["HC+2KC", *axes.split()[1:]])
                rows = sizes[begin], sizes[end]
                yield place(ours + weight, prefix + openai_name, axes, rows=rows)
            else:
                yield place(ours + weight, prefix + (openai_name if openai else hf_name), axes)
        for weight, openai_name, hf_name, blocks, dequantised in _EXPERTS:
            name = prefix + (openai_name if openai else hf_name)
            if layout == "hf-bfloat16":
                yield place(ours + weight, name, dequantised, transposed=True)
                continue
            joint = "." if openai else "_"
            for part, axes in (("blocks", blocks), ("scales", blocks.removesuffix(" 16"))):
                yield place(f"{ours}{weight}.{part}", f"{name}{joint}{part}", axes, kind="bytes")


def detect_layout(tensors: set[str]) -> Layout | None:
    """The layout these tensor names belong to; None if they belong to neither."""
    if any(name.startswith("block.") for name in tensors):
        return "openai"
    if not any(name.startswith("model.layers.") for name in tensors):
        return None
    dequantised = any(name.endswith(("gate_up_proj", "down_proj")) for name in tensors)
    return "hf-bfloat16" if dequantised else "hf"
