"""transformers 4.55, which wants the experts in bfloat16."""

import torch
import transformers
from wild import TOKENS, converted, show

import gptoss_ref as gr

folder = converted(layout="hf", experts="bfloat16")
for dtype in (torch.float32, torch.bfloat16):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=dtype, attn_implementation="eager"
    )
    show("transformers", str(dtype)[6:], gr.verify.capture(model, TOKENS))
