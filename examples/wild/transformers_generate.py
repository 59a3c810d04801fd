"""The logits of each step of transformers' generate, and its compiled model."""

import torch
import transformers
from wild import TINY, TOKENS, show

import gptoss_ref as gr

model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
out = model.generate(
    torch.tensor([TOKENS[:30]]), max_new_tokens=20, output_logits=True, return_dict_in_generate=True
)
ids = out.sequences[0].tolist()
steps = range(29, 29 + len(out.logits))
config = gr.load("tiny").config
logits = gr.verify.from_arrays({"logits": out.logits}, ids, config, positions=steps)
show("transformers", f"float32, {len(steps)} steps of generate", logits)
show("transformers", "float32, torch.compile", gr.verify.capture(torch.compile(model), TOKENS))
