"""The exercises of the course: where their solutions stand, and what checks them."""

from __future__ import annotations

from pathlib import Path

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial"
CHAPTERS = sorted(TUTORIAL.glob("[01][0-9]_*.md"))

# chapter, function of its solutions, operation of `gptoss-ref check`
EXERCISES = [
    ("01_tokens", "embedding", "embedding"),
    ("01_tokens", "embedding_as_product", "embedding"),
    ("02_residual_stream", "rmsnorm", "rmsnorm"),
    ("02_residual_stream", "linear", "linear"),
    ("03_rotary", "yarn", "yarn"),
    ("03_rotary", "rope", "rope"),
    ("04_attention", "attention", "attention"),
    ("05_experts", "router", "router"),
    ("06_swiglu", "swiglu", "swiglu"),
    ("06_swiglu", "experts", "experts"),
    ("07_mxfp4", "mxfp4_decode", "mxfp4_decode"),
    ("07_mxfp4", "mxfp4_encode", "mxfp4_encode"),
    ("08_cache", "attention", "attention"),
    ("08_cache", "model", "model"),
    ("09_sampling", "sampling", "sampling"),
    ("10_speed", "linear", "linear"),
    ("11_verify", "forward", "model"),
    ("12_released", "model", "model"),
    ("13_backward", "swiglu_backward", "swiglu_backward"),
    ("13_backward", "attention_backward", "attention_backward"),
    ("14_teach", "linear", "linear"),
]
