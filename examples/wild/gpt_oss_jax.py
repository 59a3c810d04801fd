"""atsentia/gpt-oss-jax, a flax port; WILD_SOURCE is a checkout."""

import json
import os
import sys

import jax.numpy as jnp
from wild import MODEL, TOKENS, converted, show

sys.path.insert(0, os.environ["WILD_SOURCE"])
from gpt_oss.jax.config import ModelConfig
from gpt_oss.jax.loader_safetensors import WeightLoader
from gpt_oss.jax.model import Transformer

import gptoss_ref as gr

folder = converted(layout="openai")
raw = json.loads((folder / "config.json").read_text())
config = ModelConfig(**{k: v for k, v in raw.items() if k in ModelConfig.__dataclass_fields__})
params = WeightLoader(str(folder)).load_params(config, show_progress=False)
watch = {"capture_intermediates": True, "mutable": ["intermediates"]}
_, seen = Transformer(config=config).apply({"params": params}, jnp.array(TOKENS), **watch)
trace = gr.verify.from_arrays(seen["intermediates"], TOKENS, MODEL.config, unknown="skip")
show(f"gpt-oss-jax {os.environ['WILD_VERSION']}", "as loaded", trace)
