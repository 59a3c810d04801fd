"""onnxruntime-genai: its builder, then the logits of a prompt's last token and of each step."""

import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime_genai as og
from wild import MODEL, TINY, TOKENS, show

import gptoss_ref as gr

build = f"-m onnxruntime_genai.models.builder -p fp32 -e cpu -i {TINY} -o"
subprocess.run([sys.executable, *build.split(), (folder := tempfile.mkdtemp())], check=True)
generator, rows = og.Generator(m := og.Model(folder), og.GeneratorParams(m)), []
for part in (TOKENS[:30], *([token] for token in TOKENS[30:])):
    generator.append_tokens(np.array([part], np.int32))
    rows.append(np.array(generator.get_output("logits"))[0][-1:])
some = {"positions": range(29, len(TOKENS))}
logits = gr.verify.from_arrays({"logits": rows}, TOKENS, MODEL.config, **some)
show("onnxruntime-genai", "float32, logits of 1 + steps", logits)
