"""OpenVINO, exported by optimum-intel: logits."""

import torch
from optimum.intel import OVModelForCausalLM
from wild import TOKENS, converted, show

folder = converted(layout="hf", experts="bfloat16")
precise = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
model = OVModelForCausalLM.from_pretrained(
    folder, export=True, load_in_8bit=False, ov_config=precise
)
out = model(torch.tensor([TOKENS]), attention_mask=torch.ones(1, len(TOKENS), dtype=int))
show(
    "openvino",
    "float32, logits",
    {"logits": out.logits.detach()},
    tokens=TOKENS,
    rounding="float32",
)
