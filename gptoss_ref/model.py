"""The model: embedding, blocks of attention and experts with residuals, norm, unembedding.

    x = embedding(tokens)
    for each block:  x = x + attention(norm(x));  x = x + experts(norm(x))
    logits = unembedding(norm(x))

Norms stand before attention and experts (pre-norm). Even layers have a sliding window, odd layers
full attention (``config.layer_types``).

A long pass goes through each block in chunks of tokens, to bound its memory; the weights of each
block are still read once. A pass with a tap is not chunked, so a tap sees whole arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_ref.backend import Backend, get_backend
from gptoss_ref.cache import KVCache, LayerCache
from gptoss_ref.checkpoint import Checkpoint
from gptoss_ref.checkpoint.load import load_adapted
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import GptOssError, TokenError
from gptoss_ref.layers import yarn
from gptoss_ref.layers.mxfp4 import Scale255
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy
from gptoss_ref.weights import AttentionWeights, MLPWeights, ModelWeights, with_scale_255

if TYPE_CHECKING:
    from gptoss_ref.chat.tokenizer import Tokenizer

Tap = Callable[[str, Array], None]
"""Called with each tap point's name and array, which is read-only. An attribute
``wants(name) -> bool``, if it exists, says whether to compute a costly tap (the attention
weights)."""

CHUNK = 512
"""Tokens that go through a block at a time. With 512 a pass of 4,096 tokens of the 20b allocates
470 MB, 214 of them keys and values (``benches/bench_model.py --memory``)."""


class Model:
    """A gpt-oss model: calling it maps tokens to logits.

    Args:
        config: dimensions and constants.
        weights: as a checkpoint stores them.
        policy: where to round.
        backend: a Backend, or its name: ``"numba"``, ``"numpy"`` or ``"auto"``, see :func:`load`.
            Kernels compute in float32 only; under another policy every name gives the NumPy layers.
            The attribute ``backend`` is the one in use.
        checkpoint: the source of the weights; it has the tokenizer and the stop tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        *,
        policy: str | Policy = FLOAT32,
        backend: str | Backend = "numba",
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.policy = get_policy(policy)
        self.backend = get_backend(backend, self.policy, weights, config.width)
        self.checkpoint = checkpoint
        self._prepared: tuple[tuple[Any, ...], Callable[..., None] | None] = ((), None)
        self._inv_freq, self._concentration = yarn(
            config.head_dim,
            config.rope_theta,
            config.rope_scaling_factor,
            config.initial_context_length,
            config.rope_ntk_beta,
            config.rope_ntk_alpha,
        )

    @property
    def path(self) -> Path | None:
        """Folder of the checkpoint; None if there is none."""
        return None if self.checkpoint is None else self.checkpoint.path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the checkpoint.

        Raises:
            TokenError: the model was built from weights alone, or its folder has no tokenizer.
        """
        from gptoss_ref.chat.hf_tokenizer import load_tokenizer

        if self.checkpoint is None:
            raise TokenError("this model was built from weights alone and has no tokenizer")
        return load_tokenizer(self.checkpoint.root, self.config)

    @cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end a generation: those of the checkpoint, else return and call."""
        if self.checkpoint is None:
            return ()
        stops = self.checkpoint.generation.get("eos_token_id")
        if isinstance(stops, int):
            return (stops,)
        return tuple(stops or self.tokenizer.stop_tokens)

    def new_cache(self) -> KVCache:
        """An empty key/value cache for this model."""
        return KVCache(self.config, self.policy)

    def __call__(
        self,
        tokens: Iterable[int] | Array,
        cache: KVCache | None = None,
        *,
        tap: Tap | None = None,
        last_only: bool = False,
    ) -> Array:
        """Logits (T, V), in ``policy.dtype``, of the token after each of ``tokens`` (T,).

        Args:
            tokens: ids; their positions start at ``cache.length``, or at 0 without a cache.
            cache: extended by these tokens, if the pass succeeds.
            tap: called with the name and the array of each tap point, in order of computation;
                :mod:`gptoss_ref.tracing.taps` lists the names.
            last_only: return (and unembed) only the last row, (1, V).

        Raises:
            TokenError: no tokens, an id out of range, or more positions than the context has.
            CheckpointError: a chosen expert has a scale byte of 255 (see ``scale_255`` of
                :func:`load`).
            GptOssError: the cache has the shape of another model, or another thread has extended
                it meanwhile; or the tap edits an array in place.
        """
        held = self.new_cache() if cache is None else cache
        self._check_cache(held)
        start = held.length
        ids = self.checked(tokens, start)
        layers = list(held.layers)
        look = _no_tap if tap is None else _looking(tap)
        one_token = self._one_token() if len(ids) == 1 and tap is None else None
        if one_token is None:
            x = self._whole_arrays(ids, start, layers, look)  # (T, D)
        else:
            x = self._embedded(ids)  # (1, D)
            one_token(x, *self._rope_tables(np.array([start])), start, layers)
        logits = self._logits(x[-1:] if last_only else x, look)  # (T, V)
        if cache is not None:
            cache.commit(layers, start, start + len(ids))
        return logits

    def _whole_arrays(self, ids: Array, start: int, layers: list[LayerCache], tap: Tap) -> Array:
        """``ids`` (T,) through all blocks: (T, D). Extends ``layers``."""
        x = self._embedded(ids)
        tap("embedding", x)
        positions = np.arange(start, start + len(ids))
        tables = self._rope_tables(positions)  # (T, C/2) each
        size = CHUNK if tap is _no_tap else len(ids)
        for n, block in enumerate(self.weights.blocks):
            parts = []
            for rows in (slice(at, at + size) for at in range(0, len(ids), size)):
                cos, sin = (table[rows] for table in tables)
                part = x[rows]
                out = self._attention(part, n, block.attn, positions[rows], (cos, sin), layers, tap)
                part = self.policy.round(part + out)
                tap(f"block.{n}.attn.residual", part)
                part = self.policy.round(part + self._experts(part, n, block.mlp, tap))
                tap(f"block.{n}.mlp.residual", part)
                parts.append(part)
            x = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return x

    def _embedded(self, ids: Array) -> Array:
        """The embedding's rows of ``ids`` (T,): (T, D)."""
        return self.backend.embedding(ids, self.weights.embedding, policy=self.policy)

    def _rope_tables(self, positions: Array) -> tuple[Array, Array]:
        """Cosines and sines of the angles of ``positions`` (T,): (T, C/2) each."""
        return self.backend.rope_tables(
            positions, self._inv_freq, self._concentration, policy=self.policy
        )

    def _logits(self, x: Array, tap: Tap) -> Array:
        """The unembedding of the final norm of ``x`` (T, D): (T, V)."""
        backend, weights, policy = self.backend, self.weights, self.policy
        x = backend.rmsnorm(x, weights.norm_scale, self.config.rms_norm_eps, policy=policy)
        tap("norm", x)
        logits = backend.linear(x, weights.unembedding, policy=policy)
        tap("logits", logits)
        return logits

    def _one_token(self) -> Callable[..., None] | None:
        """The backend's function for one token through all blocks, or None."""
        of, blocks = self._prepared
        now = (self.config, self.backend, self.weights)
        if len(of) != len(now) or any(a is not b for a, b in zip(of, now, strict=True)):
            blocks = self.backend.blocks(self.config, self.weights)
            self._prepared = (now, blocks)
        return blocks

    def __getstate__(self) -> dict[str, Any]:
        """Leave out :meth:`_one_token`: a copy makes one for its own weights."""
        return self.__dict__ | {"_prepared": ((), None)}

    def _attention(
        self,
        x: Array,
        n: int,
        w: AttentionWeights,
        positions: Array,
        tables: tuple[Array, Array],
        layers: list[LayerCache],
        tap: Tap,
    ) -> Array:
        """Attention output of block ``n`` for ``x`` (T, D): (T, D). Extends ``layers[n]``."""
        backend, policy, name = self.backend, self.policy, f"block.{n}.attn."
        norm = backend.rmsnorm(x, w.norm_scale, self.config.rms_norm_eps, policy=policy)
        tap(name + "norm", norm)
        projections = ((w.q_weight, w.q_bias), (w.k_weight, w.k_bias), (w.v_weight, w.v_bias))
        q, k, v = (
            projected.reshape(len(x), -1, self.config.head_dim)
            for projected in (backend.linear(norm, *pair, policy=policy) for pair in projections)
        )  # (T, H, C), (T, K, C), (T, K, C)
        tap(name + "q", q)
        tap(name + "k", k)
        tap(name + "v", v)
        q = backend.rope(q, *tables, policy=policy)
        k = backend.rope(k, *tables, policy=policy)
        tap(name + "q_rope", q)
        tap(name + "k_rope", k)

        layers[n], keys, values, key_positions = layers[n].extended(k, v, int(positions[0]))
        where = (positions, key_positions, self.config.window(n))
        mix = backend.attention(q, keys, values, w.sinks, *where, policy=policy)
        if tap is not _no_tap and getattr(tap, "wants", _wants_all)(name + "weights"):
            tap(
                name + "weights",
                backend.attention_weights(q, keys, w.sinks, *where, policy=policy),
            )
        tap(name + "mix", mix)
        out = backend.linear(mix, w.out_weight, w.out_bias, policy=policy)
        tap(name + "out", out)
        return out

    def _experts(self, x: Array, n: int, w: MLPWeights, tap: Tap) -> Array:
        """Experts' output of block ``n`` for ``x`` (T, D): (T, D)."""
        backend, policy, config, name = self.backend, self.policy, self.config, f"block.{n}.mlp."
        norm = backend.rmsnorm(x, w.norm_scale, config.rms_norm_eps, policy=policy)
        tap(name + "norm", norm)
        routed = backend.router(
            norm, w.gate_weight, w.gate_bias, config.experts_per_token, policy=policy
        )
        tap(name + "router_logits", routed.logits)
        tap(name + "expert_indices", routed.indices)
        tap(name + "expert_weights", routed.weights)
        out = backend.experts(
            norm,
            routed.indices,
            routed.weights,
            w.mlp1_weight,
            w.mlp1_bias,
            w.mlp2_weight,
            w.mlp2_bias,
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
            policy=policy,
            tap=None if tap is _no_tap else lambda stage, values: tap(name + stage, values),
        )
        tap(name + "out", out)
        return out

    def _check_cache(self, cache: KVCache) -> None:
        """Raises GptOssError if the cache was made for other shapes."""
        config = self.config
        expected = (config.num_key_value_heads, config.head_dim)
        shapes = {layer.keys.shape[1:] for layer in cache.layers}
        if len(cache.layers) != config.num_hidden_layers or shapes != {expected}:
            raise GptOssError(
                f"a cache of {len(cache.layers)} layers with (K, C) of {sorted(shapes)}: expected "
                f"{config.num_hidden_layers} layers and {expected}, as model.new_cache() gives"
            )

    def checked(self, tokens: Iterable[int] | Array, start: int = 0) -> Array:
        """``tokens`` as an int64 array (T,), or a TokenError."""
        if not isinstance(tokens, Iterable):
            raise TokenError(f"tokens are {tokens!r}: expected one row of integers")
        ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        if ids.size == 0:
            raise TokenError("the prompt is empty: expected at least one token")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise TokenError(
                f"tokens have shape {ids.shape} and dtype {ids.dtype}: expected one row of "
                f"integers, as model.tokenizer.encode(text) gives"
            )
        size, context = self.config.vocab_size, self.config.max_position_embeddings
        wrong = np.flatnonzero((ids < 0) | (ids >= size))
        if wrong.size:
            raise TokenError(
                f"token {ids[wrong[0]]} at position {start + wrong[0]} is out of range: "
                f"expected 0 to {size - 1}"
            )
        if start + len(ids) > context:
            raise TokenError(
                f"{start + len(ids)} positions exceed the context: expected at most {context} "
                f"(max_position_embeddings)"
            )
        return ids.astype(np.int64)


def _no_tap(name: str, values: Array) -> None:
    """The tap of a pass without a tap."""


def _looking(tap: Tap) -> Tap:
    """``tap`` with read-only arrays; editing one raises an error that says what to do instead."""

    def look(name: str, values: Array) -> None:
        shown = values.view()
        shown.flags.writeable = False
        try:
            tap(name, shown)
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            raise GptOssError(
                f"the tap edited {name!r} in place, but arrays are read-only in a tap: copy the "
                f"array, or replace a layer or a weight to change the pass"
            ) from error

    look.wants = getattr(tap, "wants", _wants_all)  # type: ignore[attr-defined]
    return look


def _wants_all(name: str) -> bool:
    return True


def load(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    backend: str | Backend = "auto",
    policy: str | Policy = "float32",
    scale_255: Scale255 = "error",
) -> Model:
    """Load a checkpoint without copying or decoding its weights.

    The kernels of the ``"numba"`` backend are compiled once on each machine, by the first pass that
    needs them, or in advance by ``gptoss-ref warmup``.

    Args:
        path: ``"tiny"`` (the bundled model), ``"released-constants"`` or ``"other-constants"``
            (random weights, see :mod:`gptoss_ref.checkpoint.made`), a folder in the OpenAI or the
            Hugging Face layout, or the Hub id of a checkpoint that is already in the local Hugging
            Face cache. A folder with a LoRA adapter in PEFT's files gives the model that it names,
            with the adapter.
        adapter: such a folder, for the model ``path``. The adapted weights are dense and in memory.
        backend: ``"numba"`` for the fast compiled kernels, ``"numpy"`` for the specification, or
            ``"auto"``: numba, but numpy for a small model while its kernels are not compiled.
            ``model.backend.name`` is the one in use.
        policy: ``"float32"``, ``"float64"`` or ``"bfloat16"``; the last two always use the NumPy
            layers.
        scale_255: the meaning of an MXFP4 scale byte of 255: ``"error"`` (raised when such an
            expert is first used), ``"nan"`` (the MX specification) or ``"exponent"`` (OpenAI's
            loader).

    Raises:
        CheckpointError, ConfigError: the checkpoint is incomplete or inconsistent, or the adapter
            does not fit it.
        GptOssError: an unknown backend, policy or ``scale_255``.
    """
    policy = get_policy(policy)
    if backend != "auto":
        backend = get_backend(backend, policy)
    if scale_255 not in ("nan", "exponent", "error"):
        raise GptOssError(f"unknown scale_255 {scale_255!r}: expected nan, exponent or error")
    checkpoint, learnt = load_adapted(path, adapter)
    weights = with_scale_255(checkpoint.weights, scale_255)
    if learnt is not None:
        weights = learnt.applied(weights, policy)
    return Model(checkpoint.config, weights, policy=policy, backend=backend, checkpoint=checkpoint)
