"""llama.cpp's server, out of a Python wheel, asked over HTTP; the GGUF file keeps every value."""

import tempfile

import xllamacpp
from wild import MODEL, TINY, TOKENS, show
from write_gguf import write_gguf

import gptoss_ref as gr

path = tempfile.mkdtemp() + "/tiny.gguf"
write_gguf(TINY, path)
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, 512, 1, False
server = xllamacpp.Server(params)
seen = gr.verify.observe(
    server.listening_address, TOKENS, tokenizer=MODEL.tokenizer, config=MODEL.config
)
show("xllamacpp", "server, log-probabilities", seen)
