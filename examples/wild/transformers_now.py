"""transformers' GptOssForCausalLM as it is now, with each of its experts implementations."""

import torch
import transformers
from wild import TINY, TOKENS, show

import gptoss_ref as gr

load = transformers.AutoModelForCausalLM.from_pretrained
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    model = load(TINY, dtype=dtype, attn_implementation="eager")
    for experts in ("eager", "batched_mm", "grouped_mm")[: 1 if dtype == torch.float16 else 3]:
        model.set_experts_implementation(experts)
        form = f"{str(dtype)[6:]}, experts {experts}"
        show("transformers", form, gr.verify.capture(model, TOKENS))
