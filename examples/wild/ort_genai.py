"""onnxruntime-genai: its builder, then logits of the prompt and of decoding steps."""

import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime_genai as og
from wild import MODEL, TINY, TOKENS, show

import gptoss_ref as gr

folder = tempfile.mkdtemp()
build = [
    "-m",
    "onnxruntime_genai.models.builder",
    "-i",
    TINY,
    "-o",
    folder,
    "-p",
    "fp32",
    "-e",
    "cpu",
]
subprocess.run([sys.executable, *build], check=True, capture_output=True)
generator = og.Generator(model := og.Model(folder), og.GeneratorParams(model))
rows = []
for part in (TOKENS[:30], *([token] for token in TOKENS[30:])):
    generator.append_tokens(np.array([part], np.int32))
    rows.append(np.array(generator.get_output("logits"))[0][-1:])
positions = range(29, len(TOKENS))
logits = gr.verify.from_arrays({"logits": rows}, TOKENS, MODEL.config, positions=positions)
show("onnxruntime-genai", "float32, logits of 1 + steps", logits)
