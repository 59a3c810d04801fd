"""keras-hub on JAX, with a random checkpoint of the released constants, which it has built in."""

import os

os.environ["KERAS_BACKEND"] = "jax"
import keras_hub
import numpy as np
from wild import random, show

import gptoss_ref as gr

model = random()
ids = np.random.default_rng(1).integers(0, model.config.vocab_size, 120)
for dtype in ("float32", "bfloat16"):
    theirs = keras_hub.models.GptOssBackbone.from_preset(str(model.path), dtype=dtype)
    batch = {"token_ids": ids[None], "padding_mask": np.ones((1, len(ids)), int)}
    run = lambda m=theirs, batch=batch: m.token_embedding(m(batch), reverse=True)  # noqa: E731
    trace = gr.verify.capture_calls(theirs, run, ids, model.config, framework="keras_hub")
    show("keras-hub", dtype, trace, model)
