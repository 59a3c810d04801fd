"""Checkpoints as bytes: the bundled tiny one, and a random one whose dimensions all differ.

Both are held in OpenAI's layout: q, k and v fused, experts as MXFP4 blocks and scales.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TINY = Path(__file__).parents[3] / "gptoss_ref" / "data" / "tiny"


@dataclass(frozen=True)
class Config:
    """The numbers of config.json that the twin uses."""

    num_hidden_layers: int
    num_experts: int
    experts_per_token: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    head_dim: int
    num_attention_heads: int
    num_key_value_heads: int
    sliding_window: int
    windowed: tuple[bool, ...]
    initial_context_length: int
    rope_theta: float
    rope_scaling_factor: float
    beta_fast: float
    beta_slow: float
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702


# Of these, the ones that config.json calls so in either dialect ...
ALIKE = (
    "num_hidden_layers",
    "experts_per_token",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "swiglu_limit",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
)
# ... and in OpenAI's.
OPENAI = ("num_experts", "initial_context_length", "rope_theta", "rope_scaling_factor")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A configuration and the stored tensors under OpenAI's names."""

    name: str
    config: Config
    tensors: dict[str, Tensor]

    def write(self, folder: Path) -> Path:
        """Puts it on disk in OpenAI's layout."""
        c = self.config
        numbers = {name: getattr(c, name) for name in (*ALIKE, *OPENAI)}
        numbers |= {"rope_ntk_alpha": c.beta_slow, "rope_ntk_beta": c.beta_fast}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(numbers))
        stored = {
            name.replace("embedding", "embedding.weight"): t.contiguous()
            for name, t in self.tensors.items()
        }
        save_file(stored, folder / "model.safetensors")
        return folder


@cache
def tiny() -> Checkpoint:
    """The bundled model, read from Hugging Face's layout."""
    raw: dict[str, Any] = json.loads((TINY / "config.json").read_text())
    yarn = raw["rope_scaling"]
    config = Config(
        **{name: raw[name] for name in ALIKE},
        num_experts=raw["num_local_experts"],
        windowed=tuple(kind == "sliding_attention" for kind in raw["layer_types"]),
        initial_context_length=yarn["original_max_position_embeddings"],
        rope_theta=raw["rope_theta"],
        rope_scaling_factor=yarn["factor"],
        beta_fast=yarn["beta_fast"],
        beta_slow=yarn["beta_slow"],
        rms_norm_eps=raw["rms_norm_eps"],
    )
    stored = load_file(TINY / "model.safetensors")
    tensors = {
        "embedding": stored["model.embed_tokens.weight"],
        "unembedding": stored["lm_head.weight"],
        "norm.scale": stored["model.norm.weight"],
    }
    for n in range(config.num_hidden_layers):
        ours, theirs = f"block.{n}.", f"model.layers.{n}."
        for kind in ("weight", "bias"):
            fused = [stored[f"{theirs}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            tensors[f"{ours}attn.qkv.{kind}"] = torch.cat(fused)
            tensors[f"{ours}attn.out.{kind}"] = stored[f"{theirs}self_attn.o_proj.{kind}"]
            tensors[f"{ours}mlp.gate.{kind}"] = stored[f"{theirs}mlp.router.{kind}"]
        tensors[ours + "attn.norm.scale"] = stored[theirs + "input_layernorm.weight"]
        tensors[ours + "attn.sinks"] = stored[theirs + "self_attn.sinks"]
        tensors[ours + "mlp.norm.scale"] = stored[theirs + "post_attention_layernorm.weight"]
        for matrix, name in (("mlp1", "gate_up_proj"), ("mlp2", "down_proj")):
            at = f"{theirs}mlp.experts.{name}_"
            tensors[f"{ours}mlp.{matrix}_weight.blocks"] = stored[at + "blocks"]
            tensors[f"{ours}mlp.{matrix}_weight.scales"] = stored[at + "scales"]
            tensors[f"{ours}mlp.{matrix}_bias"] = stored[at + "bias"]
    return Checkpoint("tiny", config, tensors)


# Layers 4, H 6, K 2, G 3, C 20, E 9, A 5, D 64, F 160, V 83, window 11, HC 120, KC 40: no two
# alike. low 0.784 and high 3.693 of YaRN are far from whole numbers: rounding them shows.
RANDOM = Config(
    num_hidden_layers=4,
    num_experts=9,
    experts_per_token=5,
    vocab_size=83,
    hidden_size=64,
    intermediate_size=160,
    head_dim=20,
    num_attention_heads=6,
    num_key_value_heads=2,
    sliding_window=11,
    windowed=(True, False, True, False),
    initial_context_length=512,
    rope_theta=150000.0,
    rope_scaling_factor=32.0,
    beta_fast=32.0,
    beta_slow=1.0,
)


@cache
def random_checkpoint(seed: int = 0) -> Checkpoint:
    """Weights under which every layer moves the residual by about its own size.

    * The embedding is small (0.03), as trained ones are, so that the norm's epsilon matters.
    * Gate and up projections have a standard deviation near 4: a tenth of them is beyond ±7.
    * Sinks N(0.5, 1.5), biases of q, k, v 0.4, of the router 0.6: none is negligible.
    * One block of 32 weights in each expert has scale byte 0 and one, all zeros, scale byte 134
      (see :func:`planted`). The right values of both are (next to) nothing.
    """
    c, rng = RANDOM, np.random.default_rng(seed)
    d, f, e = c.hidden_size, c.intermediate_size, c.num_experts
    rows = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    wide = c.num_attention_heads * c.head_dim

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return torch.from_numpy(rng.normal(mean, std, shape)).to(torch.bfloat16)

    def uniform(*shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(0.5, 1.5, shape)).to(torch.bfloat16)

    def mxfp4(n: int, m: int, exponent: int) -> tuple[Tensor, Tensor]:
        """Uniform codes, whose root mean square is 2.93, times 2^exponent or twice that."""
        blocks = rng.integers(0, 256, (e, n, m // 32, 16), dtype=np.uint8)
        scales = rng.integers(127 + exponent, 129 + exponent, (e, n, m // 32), dtype=np.uint8)
        stored = torch.from_numpy(blocks), torch.from_numpy(scales)
        for byte in (0, 134):
            _plant(*stored, byte)
        return stored

    tensors = {
        "embedding": normal(c.vocab_size, d, std=0.03),
        "unembedding": normal(c.vocab_size, d, std=d**-0.5),
        "norm.scale": uniform(d),
    }
    for n in range(c.num_hidden_layers):
        at = f"block.{n}.attn."
        tensors[at + "norm.scale"] = uniform(d)
        tensors[at + "qkv.weight"] = normal(rows, d, std=1.2 * d**-0.5)
        tensors[at + "qkv.bias"] = normal(rows, std=0.4)
        tensors[at + "sinks"] = normal(c.num_attention_heads, std=1.5, mean=0.5)
        tensors[at + "out.weight"] = normal(d, wide, std=wide**-0.5)
        tensors[at + "out.bias"] = normal(d, std=0.2)
        at = f"block.{n}.mlp."
        tensors[at + "norm.scale"] = uniform(d)
        tensors[at + "gate.weight"] = normal(e, d, std=1.5 * d**-0.5)
        tensors[at + "gate.bias"] = normal(e, std=0.6)
        for name, size, inputs, exponent in (("mlp1", 2 * f, d, -3), ("mlp2", d, f, -10)):
            blocks, scales = mxfp4(size, inputs, exponent)
            tensors[at + name + "_weight.blocks"] = blocks
            tensors[at + name + "_weight.scales"] = scales
        tensors[at + "mlp1_bias"] = normal(e, 2 * f, std=1.0)
        tensors[at + "mlp2_bias"] = normal(e, d, std=0.2)
    return Checkpoint(f"random-{seed}", c, tensors)


def _plant(blocks: Tensor, scales: Tensor, byte: int) -> None:
    """Give one block of 32 weights in every expert (E, N, M) that scale byte, in place.

    Under 134 and 255 the block is all zeros: what a decoder makes of the scale is then NaN or
    nothing, and neither is ever too large for a dtype. Under 0 its codes stay, for among them are
    the ones that were misread.
    """
    row = {0: 0, 134: 1, 255: 2}[byte]
    scales[:, row, 0] = byte
    if byte:
        blocks[:, row, 0] = 0


@cache
def planted(checkpoint: Checkpoint, byte: int) -> Checkpoint:
    """A copy with that scale byte, 0, 134 or 255, in every expert of every layer.

    By the specification a byte of 255 is NaN, and with it all that follows from it.
    """
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    for name, blocks in tensors.items():
        if name.endswith(".blocks"):
            _plant(blocks, tensors[name.removesuffix("blocks") + "scales"], byte)
    return Checkpoint(f"{checkpoint.name} with scale byte {byte}", checkpoint.config, tensors)


@cache
def large(checkpoint: Checkpoint) -> Checkpoint:
    """A copy with a residual of 80,000 in one place: more than float16 holds.

    Each of two biases of 40,000 fits, and so does all that the norm makes of it. gpt-oss-120b
    reaches 45,344 (microsoft/onnxruntime-genai#2444).
    """
    tensors = dict(checkpoint.tensors)
    for n in (0, 1):
        name = f"block.{n}.attn.out.bias"
        tensors[name] = tensors[name].clone()
        tensors[name][5] = 40_000
    return Checkpoint(f"large {checkpoint.name}", checkpoint.config, tensors)
