"""llama.cpp by a Python binding, which gives the logits of every position."""

import tempfile

import numpy as np
from llama_cpp_py_sync import Llama
from wild import MODEL, TINY, TOKENS, show
from write_gguf import write_gguf

path = tempfile.mkdtemp() + "/tiny.gguf"
write_gguf(TINY, path)
llama = Llama(path, n_ctx=512)
lib, batch = llama._lib, llama._lib.llama_batch_init(len(TOKENS), 0, 1)
batch.n_tokens = len(TOKENS)
for i, token in enumerate(TOKENS):
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
    batch.seq_id[i][0] = 0
assert lib.llama_decode(llama._ctx, batch) == 0
size = len(TOKENS) * MODEL.config.vocab_size
logits = np.frombuffer(llama._ffi.buffer(lib.llama_get_logits(llama._ctx), 4 * size), np.float32)
logits = logits.reshape(len(TOKENS), -1)
show("llama-cpp-py-sync", "logits of every position", {"logits": logits}, tokens=TOKENS)
