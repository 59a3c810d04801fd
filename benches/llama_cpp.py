"""llama.cpp as a shared library, called through ctypes: enough to time a prefill and a token.

Any folder that holds ``libllama*.so`` and ``libggml*.so`` of a recent release serves, such as the
one of the npm package ``@node-llama-cpp/linux-x64`` (``package/bins/linux-x64``), which has one
library of kernels for each family of CPUs. A wheel with AVX2 only would be no peer of AVX-512.
"""

from __future__ import annotations

import ctypes
import time
from ctypes import POINTER, Structure, c_char, c_char_p, c_float, c_int32, c_uint32, c_void_p
from pathlib import Path
from typing import Any

_VARIANTS = {"avx2": "haswell", "plain": "x64"}
"""The library of kernels for a path that this CPU is forced to; otherwise llama.cpp chooses."""


class _Batch(Structure):
    _fields_ = [("tokens", c_int32), ("pointers", c_void_p * 6)]


class _ContextParams(Structure):
    """The fields of llama_context_params before those that differ between releases."""

    _fields_ = [
        *(
            (name, c_uint32)
            for name in ("ctx", "batch", "ubatch", "seqs", "rs", "outs", "outs_seq")
        ),
        *((name, c_int32) for name in ("threads", "threads_batch", "kind")),
        *((name, c_int32) for name in ("rope_scaling", "pooling", "attention", "flash")),
        ("numbers", c_float * 6),
        ("original_ctx", c_uint32),
        ("defrag", c_float),
        ("callback", c_void_p * 2),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("rest", c_char * 256),
    ]


class _ModelParams(Structure):
    """llama_model_params, of which nothing is changed."""

    _fields_ = [("rest", c_void_p * 64)]


class LlamaCpp:
    """One model in llama.cpp, with an empty context."""

    def __init__(
        self, folder: Path, file: Path, context: int, threads: int, flash: bool, path: str
    ) -> None:
        """Load ``file`` with the libraries in ``folder``, kernels those of ``path``."""
        lib = self._lib = self._libraries(folder, path)
        lib.llama_backend_init()
        start = time.perf_counter()
        params = lib.llama_context_default_params()
        found = (params.ctx, params.ubatch, params.flash, params.type_k, params.type_v)
        if found != (512, 512, -1, 1, 1):
            raise SystemExit(f"{folder}: this llama.cpp has another llama_context_params")
        params.ctx, params.batch, params.ubatch = context, 512, 512
        params.threads = params.threads_batch = threads
        params.flash = int(flash)
        self._model = lib.llama_model_load_from_file(
            str(file).encode(), lib.llama_model_default_params()
        )
        self._context = self._model and lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot load {file}")
        self.load_seconds = time.perf_counter() - start
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self.cpu = lib.llama_print_system_info().decode()

    @staticmethod
    def _libraries(folder: Path, path: str) -> Any:
        """Load the libraries: ggml's base and front first, then the kernels, then llama.cpp."""

        def load(pattern: str) -> Any:
            files = sorted(folder.glob(pattern), key=lambda file: len(file.name))
            if not files:
                raise SystemExit(f"{folder}: expected a library {pattern}")
            return ctypes.CDLL(str(files[0]), ctypes.RTLD_GLOBAL)

        load("libggml-base.so*")
        if not list(folder.glob("libggml-cpu-*.so")):
            load("libggml-cpu.so*")
        ggml = load("libggml.*so*")
        variant = folder / f"libggml-cpu-{_VARIANTS.get(path, '')}.so"
        if variant.exists():
            ggml.ggml_backend_load.argtypes, ggml.ggml_backend_load.restype = [c_char_p], c_void_p
            ggml.ggml_backend_load(str(variant).encode())
        else:
            ggml.ggml_backend_load_all_from_path(str(folder).encode())
        lib = load("libllama.*so*")
        for name, result, arguments in (
            ("llama_context_default_params", _ContextParams, ()),
            ("llama_model_default_params", _ModelParams, ()),
            ("llama_model_load_from_file", c_void_p, (c_char_p, _ModelParams)),
            ("llama_init_from_model", c_void_p, (c_void_p, _ContextParams)),
            ("llama_model_get_vocab", c_void_p, (c_void_p,)),
            ("llama_vocab_n_tokens", c_int32, (c_void_p,)),
            ("llama_print_system_info", c_char_p, ()),
            ("llama_get_memory", c_void_p, (c_void_p,)),
            ("llama_memory_clear", None, (c_void_p, ctypes.c_bool)),
            ("llama_batch_get_one", _Batch, (POINTER(c_int32), c_int32)),
            ("llama_decode", c_int32, (c_void_p, _Batch)),
            ("llama_synchronize", None, (c_void_p,)),
            ("llama_free", None, (c_void_p,)),
            ("llama_model_free", None, (c_void_p,)),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        return lib

    def restart(self) -> None:
        """Forget all tokens."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def append(self, tokens: list[int]) -> None:
        """Compute these tokens, after those before, and the logits of the last."""
        ids = (c_int32 * len(tokens))(*tokens)
        batch = self._lib.llama_batch_get_one(ids, len(tokens))
        if self._lib.llama_decode(self._context, batch):
            raise SystemExit("llama_decode failed")
        self._lib.llama_synchronize(self._context)

    def close(self) -> None:
        """Free the model."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)
