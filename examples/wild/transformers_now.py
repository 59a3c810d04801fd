"""transformers' GptOssForCausalLM as it is now, with each implementation that runs on a CPU."""

import torch
import transformers
from wild import TINY, TOKENS, refused, show

import gptoss_ref as gr

load = transformers.AutoModelForCausalLM.from_pretrained
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    model = load(TINY, dtype=dtype, attn_implementation="eager")
    for experts in ("eager", "batched_mm", "grouped_mm")[: 1 if dtype == torch.float16 else 3]:
        model.set_experts_implementation(experts)
        form = f"{str(dtype)[6:]}, experts {experts}"
        show("transformers", form, gr.verify.capture(model, TOKENS))
for attention in ("sdpa", "flex_attention"):
    try:
        model = load(TINY, dtype=torch.float32, attn_implementation=attention)
        show("transformers", attention, gr.verify.capture(model, TOKENS))
    except ValueError as error:
        refused("transformers", attention, error)
