"""Writes a checkpoint as a GGUF file, to run the same weights in llama.cpp.

    python benches/write_gguf.py tiny tiny.gguf [--matrices Q8_0]

Without --matrices nothing is requantised: MXFP4 bytes keep their values, only the order of the
nibbles changes; matrices stay bfloat16; norm scales, biases, sinks and the router, which llama.cpp
wants in float32, are widened. One tensor is in memory at a time. Needs the package ``gguf``. Names
and keys are those of llama.cpp's architecture "gpt-oss" (src/models/openai-moe.cpp,
conversion/gpt_oss.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import gptoss_ref as gr
from gptoss_ref.numerics import widen
from gptoss_ref.weights import MXFP4

NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's token types
Tensor = tuple[str, tuple[int, ...], str, Callable[[], np.ndarray]]
"""Name, shape of the values, ggml type, and how to make the bytes."""


def write_gguf(folder: str | Path, path: str | Path, matrices: str = "BF16") -> None:
    """Write the checkpoint ``folder`` (or "tiny") as the GGUF file ``path``.

    ``matrices``: the ggml type of the bfloat16 ones; Q8_0 is that of the files people download.
    Without a tokenizer.json in the folder the file has no vocabulary: it computes all the same.
    """
    import gguf

    checkpoint = gr.load_checkpoint(folder)
    writer = gguf.GGUFWriter(path, "gpt-oss")
    add_config(writer, checkpoint.config)
    add_tokenizer(writer, Path(checkpoint.root) / "tokenizer.json", checkpoint.config)
    tensors = [recoded(tensor, matrices) for tensor in every_tensor(checkpoint.weights)]
    for name, shape, kind, _ in tensors:
        raw = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[raw]
        count = int(np.prod(shape))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), count // block * size, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, _, make in tensors:
        writer.write_tensor_data(np.ascontiguousarray(make()))
    writer.close()


def add_config(writer: Any, config: gr.ModelConfig) -> None:
    """The keys that llama.cpp reads for this architecture."""
    import gguf

    if (config.swiglu_alpha, config.swiglu_limit) != (1.702, 7.0) or config.layer_types:
        raise SystemExit("llama.cpp has gpt-oss's alpha, limit and layer pattern built in")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.experts_per_token)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    if config.rope_scaling_factor > 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_scaling_factor)
        writer.add_rope_scaling_orig_ctx_len(config.initial_context_length)
        writer.add_rope_scaling_yarn_beta_fast(config.rope_ntk_beta)
        writer.add_rope_scaling_yarn_beta_slow(config.rope_ntk_alpha)


def add_tokenizer(writer: Any, path: Path, config: gr.ModelConfig) -> None:
    """The vocabulary and merges of a Hugging Face tokenizer.json with o200k's pattern."""
    if not path.exists():
        writer.add_tokenizer_model("no_vocab")
        return
    data = json.loads(path.read_text())
    tokens = [f"[unused{i}]" for i in range(config.vocab_size)]
    types = [UNUSED] * config.vocab_size
    for text, token in data["model"]["vocab"].items():
        tokens[token], types[token] = text, NORMAL
    for entry in data["added_tokens"]:
        tokens[entry["id"]], types[entry["id"]] = entry["content"], CONTROL
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    ids = {text: token for token, text in enumerate(tokens)}
    for name, add in (
        ("<|startoftext|>", writer.add_bos_token_id),  # else llama.cpp takes token 11 for it
        ("<|return|>", writer.add_eos_token_id),
        ("<|endoftext|>", writer.add_pad_token_id),
    ):
        if name in ids:
            add(ids[name])
    writer.add_add_bos_token(False)


def every_tensor(weights: Any) -> Iterator[Tensor]:
    """All tensors under llama.cpp's names; gate and up rows are taken apart."""
    yield matrix("token_embd.weight", weights.embedding)
    yield matrix("output.weight", weights.unembedding)
    yield vector("output_norm.weight", weights.norm_scale)
    for n, block in enumerate(weights.blocks):
        at, attn, mlp = f"blk.{n}.", block.attn, block.mlp
        yield vector(at + "attn_norm.weight", attn.norm_scale)
        for name, weight, bias in (
            ("attn_q", attn.q_weight, attn.q_bias),
            ("attn_k", attn.k_weight, attn.k_bias),
            ("attn_v", attn.v_weight, attn.v_bias),
            ("attn_output", attn.out_weight, attn.out_bias),
        ):
            yield matrix(f"{at}{name}.weight", weight)
            yield vector(f"{at}{name}.bias", bias)
        yield vector(at + "attn_sinks.weight", attn.sinks)
        yield vector(at + "post_attention_norm.weight", mlp.norm_scale)
        yield vector(at + "ffn_gate_inp.weight", mlp.gate_weight)  # llama.cpp routes in float32
        yield vector(at + "ffn_gate_inp.bias", mlp.gate_bias)
        for name, weight, bias in (
            ("ffn_gate_exps", rows(mlp.mlp1_weight, 0), mlp.mlp1_bias[:, 0::2]),
            ("ffn_up_exps", rows(mlp.mlp1_weight, 1), mlp.mlp1_bias[:, 1::2]),
            ("ffn_down_exps", mlp.mlp2_weight, mlp.mlp2_bias),
        ):
            yield matrix(f"{at}{name}.weight", weight)
            yield vector(f"{at}{name}.bias", bias)


def recoded(tensor: Tensor, matrices: str) -> Tensor:
    """A bfloat16 matrix in the type ``matrices``; anything else as it is."""
    name, shape, kind, make = tensor
    if kind != "BF16" or matrices == "BF16":
        return tensor
    import gguf

    to = gguf.GGMLQuantizationType[matrices]
    return name, shape, matrices, lambda: gguf.quantize(widen(make(), np.float32), to)


def rows(weight: Any, first: int) -> Any:
    """Every second row (E, 2F, D) -> (E, F, D), from ``first`` on."""
    if isinstance(weight, MXFP4):
        return MXFP4(weight.blocks[:, first::2], weight.scales[:, first::2])
    return weight[:, first::2]


def vector(name: str, values: Any) -> Tensor:
    """A tensor in float32."""
    return name, values.shape, "F32", lambda: widen(values, np.float32)


def matrix(name: str, weight: Any) -> Tensor:
    """A tensor as it is stored: MXFP4 or bfloat16; others in float32."""
    if isinstance(weight, MXFP4):
        return name, weight.shape, "MXFP4", lambda: ggml_blocks(weight)
    if weight.dtype == np.uint16:
        return name, weight.shape, "BF16", lambda: weight
    return vector(name, weight)


def ggml_blocks(weight: MXFP4) -> np.ndarray:
    """Blocks of ggml: the scale byte, then 16 bytes whose low nibbles are values 0 to 15.

    A checkpoint pairs neighbours instead: byte j holds values 2j and 2j + 1.
    """
    low, high = weight.blocks & 15, weight.blocks >> 4
    values = np.stack([low, high], -1).reshape(*weight.scales.shape, 32)
    halves = values[..., :16] | values[..., 16:] << 4
    return np.concatenate([weight.scales[..., None], halves], -1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a checkpoint, or tiny")
    parser.add_argument("path", type=Path)
    parser.add_argument("--matrices", default="BF16", help="ggml type of the bfloat16 matrices")
    args = parser.parse_args()
    write_gguf(args.folder, args.path, args.matrices)
