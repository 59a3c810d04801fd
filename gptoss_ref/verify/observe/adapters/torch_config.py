"""The configuration of a live torch model, from its config object or from its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from gptoss_ref.config import ModelConfig
from gptoss_ref.config_json import OPENAI_KEYS
from gptoss_ref.errors import ConfigError, TraceError
from gptoss_ref.verify.observe.adapters.watching import blocks_of

_PLACES = ("config", "cfg", "model_args", "args")
_WRAPPED = ("original_model", "base_model", "model", "module", "_orig_mod")


def own_config(module: Any, root: Any, naming: str | None) -> ModelConfig:
    """The configuration of a module.

    Args:
        module: the argument of ``capture``.
        root: the module that holds the blocks.
        naming: ``"transformers"``, ``"openai"`` or None.

    Raises:
        TraceError: the module has no configuration.
        ConfigError: its configuration is not one of gpt-oss.
    """
    reason = "it has no configuration"
    if naming == "openai":
        try:
            return _of_parts(root)
        except (AttributeError, LookupError, TypeError, ValueError, ConfigError) as error:
            reason = str(error)
    for own in _stated(module, root):
        raw = _as_dict(own)
        if raw.get("model_type") == "gpt_oss":
            return ModelConfig.from_json(raw)
        try:
            return ModelConfig.from_json({k: v for k, v in raw.items() if k in OPENAI_KEYS})
        except ConfigError as error:
            if naming == "transformers" and "model_type" in raw:
                reason = f"its configuration is of the model_type {raw['model_type']!r}"
            elif naming != "openai":
                reason = str(error)
    raise TraceError(f"{type(module).__qualname__}: unknown configuration ({reason}): pass config")


def _stated(module: Any, root: Any) -> Iterator[Any]:
    """Objects that may be a configuration: of the module, of the wrapped module, of its root."""
    seen = module
    for _ in range(8):
        held = (getattr(seen, name, None) for name in _PLACES)
        yield from (own for own in held if own is not None)
        inner = (getattr(seen, name, None) for name in _WRAPPED)
        seen = next((part for part in inner if hasattr(part, "named_modules")), None)
        if seen is None:
            break
    yield from (getattr(root, name) for name in _PLACES if getattr(root, name, None) is not None)


def _as_dict(own: Any) -> Mapping[str, Any]:
    if hasattr(own, "to_dict"):
        try:
            raw = own.to_dict()
        except Exception:  # any object may be here, and it need not be a configuration
            return {}
    elif dataclasses.is_dataclass(own) and not isinstance(own, type):
        raw = dataclasses.asdict(own)
    else:
        raw = own if isinstance(own, Mapping) else getattr(own, "__dict__", {})
    return raw if isinstance(raw, Mapping) else {}


def _of_parts(module: Any) -> ModelConfig:
    """The configuration of a module with OpenAI's names, which keeps it only in its parts."""
    block = next((block for _, block in blocks_of(module.block)), None)
    if block is None:
        raise ConfigError("it has no blocks")
    attn, mlp = block.attn, block.mlp
    rope = attn.rope
    return ModelConfig(
        num_hidden_layers=len(module.block),
        num_experts=mlp.gate.out_features,
        experts_per_token=mlp.experts_per_token,
        vocab_size=module.embedding.num_embeddings,
        hidden_size=module.embedding.embedding_dim,
        intermediate_size=mlp.mlp1_weight.shape[1] // 2,
        swiglu_limit=mlp.swiglu_limit,
        head_dim=attn.head_dim,
        num_attention_heads=attn.num_attention_heads,
        num_key_value_heads=attn.num_key_value_heads,
        sliding_window=attn.sliding_window,
        initial_context_length=rope.initial_context_length,
        rope_theta=rope.base,
        rope_scaling_factor=rope.scaling_factor,
        rope_ntk_alpha=rope.ntk_alpha,
        rope_ntk_beta=rope.ntk_beta,
        rms_norm_eps=module.norm.eps,
        max_position_embeddings=round(rope.initial_context_length * rope.scaling_factor),
    )
