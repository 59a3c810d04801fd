"""Adapters for other implementations: live modules, arrays under other names, files, servers.

    capture(module, tokens)                   a live torch model            torch_hooks.py
    capture_calls(model, run, tokens, config) mlx, keras, any framework     calls.py
    from_arrays(mapping, tokens, config)      arrays under other names    arrays.py
    read(path, tokens=..., config=...)        the same from files           files.py
    from_llama(llama, tokens, config)         llama-cpp-python's logits     llama_cpp.py
    observe(url, tokens, tokenizer=..., ...)  an HTTP endpoint              endpoint.py

The first five return a :class:`~gptoss_ref.tracing.trace.Trace`, the last one a
:class:`~gptoss_ref.verify.observe.observation.LogprobObservation`.
"""

from gptoss_ref.verify.observe.adapters.arrays import from_arrays
from gptoss_ref.verify.observe.adapters.calls import capture_calls
from gptoss_ref.verify.observe.adapters.endpoint import observe
from gptoss_ref.verify.observe.adapters.files import read
from gptoss_ref.verify.observe.adapters.llama_cpp import from_llama
from gptoss_ref.verify.observe.adapters.torch_hooks import capture

__all__ = ["capture", "capture_calls", "from_arrays", "from_llama", "observe", "read"]
