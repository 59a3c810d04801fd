"""TransformerLens' bridge, plain and in its compatibility mode."""

import torch
from transformer_lens.model_bridge import TransformerBridge
from wild import MODEL, TINY, TOKENS, show

import gptoss_ref as gr

for compatible in (False, True):
    bridge = TransformerBridge.boot_transformers(str(TINY), device="cpu", dtype=torch.float32)
    if compatible:
        bridge.enable_compatibility_mode()
    trace = gr.verify.capture(bridge, TOKENS, config=MODEL.config)
    show("transformer-lens", f"float32{', compatibility mode' * compatible}", trace)
