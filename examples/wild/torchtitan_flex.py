"""torchtitan's debug model, whose sizes are its own, with random weights of that shape."""

import torch
from safetensors.torch import load_file
from torchtitan.models.gpt_oss import GptOssStateDictAdapter, gptoss_configs
from wild import TOKENS, converted, random, show

import gptoss_ref as gr

config = gptoss_configs["debugmodel"]("standard", attn_backend="flex")
few = {"num_experts": 8, "experts_per_token": 4, "vocab_size": 2048, "sliding_window": 128}
wide = {"hidden_size": 256, "intermediate_size": 2880, "num_attention_heads": 64}
ours = random(num_key_value_heads=8, **few, **wide)
theirs, adapter = config.build(), GptOssStateDictAdapter(config, None)
letters = {"mlp1_weight": "_EGD", "mlp1_bias": "_EG", "mlp2_weight": "_EDF", "mlp2_bias": "_ED"}
for hf, own in [*adapter.from_hf_map.items()]:  # their map lacks the letters
    adapter.from_hf_map[hf.removesuffix("_blocks")] = own + letters.get(own.split(".")[-1], "")
tensors = load_file(converted(ours.path, experts="bfloat16") / "model.safetensors")
state = {k: v.mT if "_weight_E" in k else v for k, v in adapter.from_hf(tensors).items()}
theirs.load_state_dict(state, strict=False, assign=True)  # RoPE's tables stay in float32
ids, where = TOKENS * 3, torch.arange(3 * len(TOKENS))[None]
run = lambda ids: theirs(ids, where, theirs.get_attention_masks(where))  # noqa: E731
trace = gr.verify.capture(theirs, ids, config=ours.config, run=run)
show("torchtitan", "bfloat16, flex", trace, ours)
