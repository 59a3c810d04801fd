"""Write a trained checkpoint as a Hugging Face folder: MXFP4 experts, the rest in bfloat16.

    python export.py CHECKPOINT.pt FOLDER [--experts mxfp4|bfloat16]

With ``--experts bfloat16`` the experts keep the master weights that training rounds to MXFP4, in
bfloat16 and in the dequantised Hugging Face layout: what the rounding costs can then be measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

try:
    import torch
    from safetensors.torch import save_file
    from torch import Tensor
except ImportError:
    sys.exit("this needs torch: python -m pip install torch")

from data import TOKENIZER
from gptoss_ref.chat.hf_tokenizer import tokenizer_json
from gptoss_ref.layers import mxfp4
from model import Config

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
QUANTISED = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def interleaved(x: Tensor) -> Tensor:
    """Turn axis 1 of (E,2F,…), F gate rows and then F up rows, into gate, up, gate, up, …"""
    gate, up = x.chunk(2, dim=1)
    return torch.stack((gate, up), dim=2).flatten(1, 2)


def tensors(state: dict[str, Tensor], cfg: Config, experts: str) -> dict[str, Tensor]:
    """Return the tensors of the Hugging Face layout, by name."""
    out = {
        "model.embed_tokens.weight": state["embedding"],
        "model.norm.weight": state["norm"],
        "lm_head.weight": state["unembedding"],
    }
    H, K, C = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    quantised: dict[str, Tensor] = {}
    for n in range(cfg.num_layers):
        mine, theirs = f"blocks.{n}.", f"model.layers.{n}."
        out[theirs + "input_layernorm.weight"] = state[mine + "attn_norm"]
        out[theirs + "post_attention_layernorm.weight"] = state[mine + "mlp_norm"]
        out[theirs + "self_attn.sinks"] = state[mine + "sinks"]
        for part in ("weight", "bias"):
            qkv = state[mine + f"qkv_{part}"].split((H * C, K * C, K * C))
            for name, value in zip("qkv", qkv, strict=True):
                out[theirs + f"self_attn.{name}_proj.{part}"] = value
            out[theirs + f"self_attn.o_proj.{part}"] = state[mine + f"out_{part}"]
            out[theirs + f"mlp.router.{part}"] = state[mine + f"router_{part}"]
        out[theirs + "mlp.experts.gate_up_proj_bias"] = interleaved(state[mine + "mlp1_bias"])
        out[theirs + "mlp.experts.down_proj_bias"] = state[mine + "mlp2_bias"]
        for name, weight in (
            ("gate_up_proj", interleaved(state[mine + "mlp1_weight"])),
            ("down_proj", state[mine + "mlp2_weight"]),
        ):
            if experts == "bfloat16":
                out[theirs + "mlp.experts." + name] = weight.swapaxes(1, 2)
                continue
            blocks, scales = mxfp4.encode(weight.float().numpy())
            quantised[theirs + f"mlp.experts.{name}_blocks"] = torch.from_numpy(blocks)
            quantised[theirs + f"mlp.experts.{name}_scales"] = torch.from_numpy(scales)
    whole = {name: t.to(torch.bfloat16).contiguous() for name, t in out.items()}
    return whole | quantised


def config_json(cfg: Config, experts: str) -> dict[str, Any]:
    """Return config.json with the keys of the released models."""
    special = TOKENIZER.special
    config: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": special["<|return|>"],
        "experts_per_token": cfg.experts_per_token,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "hidden_size": cfg.hidden_size,
        "initial_context_length": cfg.original_length,
        "initializer_range": 0.02,
        "intermediate_size": cfg.intermediate_size,
        "layer_types": [
            "sliding_attention" if n % 2 == 0 else "full_attention" for n in range(cfg.num_layers)
        ],
        "max_position_embeddings": int(cfg.original_length * cfg.rope_factor),
        "model_type": "gpt_oss",
        "num_attention_heads": cfg.num_heads,
        "num_experts_per_tok": cfg.experts_per_token,
        "num_hidden_layers": cfg.num_layers,
        "num_key_value_heads": cfg.num_kv_heads,
        "num_local_experts": cfg.num_experts,
        "output_router_logits": False,
        "pad_token_id": special["<|endoftext|>"],
        "quantization_config": QUANTISED,
        "rms_norm_eps": cfg.eps,
        "rope_scaling": {
            "beta_fast": cfg.beta_fast,
            "beta_slow": cfg.beta_slow,
            "factor": cfg.rope_factor,
            "original_max_position_embeddings": cfg.original_length,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": cfg.rope_theta,
        "router_aux_loss_coef": 0.01,
        "sliding_window": cfg.window,
        "swiglu_limit": cfg.limit,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": cfg.vocab_size,
    }
    if experts == "bfloat16":
        del config["quantization_config"]
    return config


def generation_json() -> dict[str, Any]:
    """Return generation_config.json; greedy, for the answers of this model are exact."""
    special = TOKENIZER.special
    return {
        "bos_token_id": special["<|startoftext|>"],
        "do_sample": False,
        "eos_token_id": [special[f"<|{n}|>"] for n in ("return", "endoftext", "call")],
        "pad_token_id": special["<|endoftext|>"],
    }


def tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json."""
    return special_tokens() | {
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(Config.original_length * Config.rope_factor),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def special_tokens() -> dict[str, Any]:
    """Return special_tokens_map.json."""
    return {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
    }


def export(state: dict[str, Tensor], cfg: Config, folder: Path, experts: str = "mxfp4") -> None:
    """Write the folder, everything but the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    save_file(tensors(state, cfg, experts), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it private
    for name, value in {
        "config": config_json(cfg, experts),
        "generation_config": generation_json(),
        "tokenizer": tokenizer_json(TOKENIZER),
        "tokenizer_config": tokenizer_config(),
        "special_tokens_map": special_tokens(),
    }.items():
        text = json.dumps(value, indent=None if name == "tokenizer" else 2, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(TEMPLATE, folder / TEMPLATE.name)


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", choices=("mxfp4", "bfloat16"), default="mxfp4")
    args = parser.parse_args()
    state = torch.load(args.checkpoint, map_location="cpu")["model"]
    export(state, Config(), args.folder, args.experts)


if __name__ == "__main__":
    main()
