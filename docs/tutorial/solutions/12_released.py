"""Solution of chapter 12: `tiny`'s safetensors file read by hand into ModelWeights.

Check it by `gptoss-ref check 12_released.py:model model`.
"""

import json

import numpy as np

import gptoss_ref as gr
from gptoss_ref.weights import MXFP4, AttentionWeights, BlockWeights, MLPWeights, ModelWeights

FOLDER = gr.load_checkpoint("tiny").path  # only to learn where the package keeps it
TYPES = {"BF16": "<u2", "U8": "u1", "F32": "<f4"}  # bfloat16 stays as bits, which the layers widen


def read_tensors(path):
    """Every tensor of a safetensors file, by name."""
    raw = path.read_bytes()
    # 8 bytes: the header's length. Then the header. Offsets count from its end.
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = np.frombuffer(raw[start + begin : start + end], TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def block(tensors, n):
    """One block in the Hugging Face layout."""
    at = f"model.layers.{n}."
    attn, mlp = at + "self_attn.", at + "mlp."

    def linear(name):
        return tensors[name + ".weight"], tensors[name + ".bias"]

    def expert(name):
        # Two tensors are one matrix; the bias is a third, of ordinary numbers.
        name = mlp + "experts." + name
        stored = MXFP4(tensors[name + "_blocks"], tensors[name + "_scales"])
        return stored, tensors[name + "_bias"]

    return BlockWeights(
        AttentionWeights(
            tensors[at + "input_layernorm.weight"],
            *linear(attn + "q_proj"),
            *linear(attn + "k_proj"),
            *linear(attn + "v_proj"),
            tensors[attn + "sinks"],
            *linear(attn + "o_proj"),
        ),
        MLPWeights(
            tensors[at + "post_attention_layernorm.weight"],  # that is: before the experts
            *linear(mlp + "router"),
            *expert("gate_up_proj"),
            *expert("down_proj"),
        ),
    )


def model(tokens):
    """tokens (T,) to the residual stream after each block (L, T, D) and the logits (T, V)."""
    config = gr.ModelConfig.from_json(FOLDER / "config.json")
    tensors = read_tensors(FOLDER / "model.safetensors")
    weights = ModelWeights(
        tensors["model.embed_tokens.weight"],
        tuple(block(tensors, n) for n in range(config.num_hidden_layers)),
        tensors["model.norm.weight"],
        tensors["lm_head.weight"],  # not the embedding again: the two are not tied
    )
    run = gr.Model(config, weights, backend="numpy", policy="float64")
    streams = []

    def tap(name, values):
        if name.endswith(".mlp.residual"):
            streams.append(values)

    logits = run(tokens, tap=tap)
    return np.stack(streams), logits
