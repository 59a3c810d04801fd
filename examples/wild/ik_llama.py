"""ik_llama.cpp, a fork of llama.cpp, by its Python binding: the logits of every position."""

import tempfile

import numpy as np
from ik_llama_cpp import IkLlama, _ctypes_api
from ik_llama_cpp._internals import make_batch
from wild import MODEL, TINY, TOKENS, show
from write_gguf import write_gguf

path = tempfile.mkdtemp() + "/tiny.gguf"
write_gguf(TINY, path)
llama = IkLlama(path, n_ctx=512)
batch = make_batch(TOKENS)
for i in range(len(TOKENS)):
    batch.logits[i] = 1  # else the last one's alone
assert llama._context.decode(batch) == 0
rows = [_ctypes_api.llama_get_logits_ith(llama.ctx, i) for i in range(len(TOKENS))]
logits = np.array([np.ctypeslib.as_array(row, (MODEL.config.vocab_size,)) for row in rows])
show("ik-llama-cpp-python", "logits", {"logits": logits}, tokens=TOKENS, rounding="bfloat16")
