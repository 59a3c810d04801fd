"""mlx-lm on the CPU: calls of its modules are recorded, since mlx has no hooks."""

import mlx.core as mx
from mlx_lm.utils import load_model
from wild import MODEL, TINY, TOKENS, show

import gptoss_ref as gr

model, _ = load_model(TINY)
prompt = mx.array([TOKENS])
for dtype in ("as loaded", "float32"):
    if dtype == "float32":
        model.set_dtype(mx.float32)
    trace = gr.verify.capture_calls(
        model, lambda: mx.eval(model(prompt)), TOKENS, MODEL.config, framework="mlx"
    )
    show("mlx-lm", dtype, trace)
show("mlx-lm", "float32, logits alone", {"logits": trace["logits"]}, tokens=TOKENS)
