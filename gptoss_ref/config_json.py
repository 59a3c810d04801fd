"""Read and write the two `config.json` dialects, OpenAI's and Hugging Face's.

A key that asks for a computation that this package does not have is an error; it is never ignored.
Sources: openai/gpt-oss gpt_oss/torch/model.py (ModelConfig); transformers
configuration_gpt_oss.py and modeling_rope_utils.py; the config.json files of openai/gpt-oss-20b.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gptoss_ref.errors import ConfigError

if TYPE_CHECKING:
    from gptoss_ref.config import ModelConfig

OPENAI_KEYS: dict[str, type] = {
    "num_hidden_layers": int,
    "num_experts": int,
    "experts_per_token": int,
    "vocab_size": int,
    "hidden_size": int,
    "intermediate_size": int,
    "swiglu_limit": float,
    "head_dim": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "sliding_window": int,
    "initial_context_length": int,
    "rope_theta": float,
    "rope_scaling_factor": float,
    "rope_ntk_alpha": float,
    "rope_ntk_beta": float,
}

# Hugging Face keys with the same name and meaning as the ModelConfig field.
_HF_SAME: dict[str, type] = {
    "num_hidden_layers": int,
    "vocab_size": int,
    "hidden_size": int,
    "intermediate_size": int,
    "head_dim": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
}
_HF_OPTIONAL: dict[str, type] = {
    "swiglu_limit": float,
    "swiglu_alpha": float,
    "rms_norm_eps": float,
    "max_position_embeddings": int,
}
# Keys with only one allowed value in gpt-oss and in this package.
_HF_FIXED: dict[str, Any] = {
    "attention_bias": True,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
_HF_MARKS = (
    "model_type", "architectures", "num_local_experts", "num_experts_per_tok", "rope_scaling",
    "rope_parameters",
)  # fmt: skip
# Values that the OpenAI dialect does not contain; they are constants of the reference code.
_OPENAI_IMPLIED = {"rms_norm_eps": 1e-5, "swiglu_alpha": 1.702, "layer_types": None}
_ROPE_KEYS = {
    "rope_type", "type", "rope_theta", "factor", "beta_fast", "beta_slow", "truncate",
    "original_max_position_embeddings", "attention_factor", "mscale", "mscale_all_dim",
    "partial_rotary_factor",
}  # fmt: skip
# Larger numbers cannot be sizes, and would make Python's integer arithmetic endless or overflow.
MAX_INT = 2**31
MAX_FLOAT = 1e300
_RELEASED_VOCAB, _RETURN, _ENDOFTEXT = 201088, 200002, 199999


def parse(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """ModelConfig's keyword arguments from a `config.json` object of either dialect.

    Raises ConfigError; its message begins with `source`, the file.
    """
    reader = _Reader(raw, source)
    if any(key in raw for key in _HF_MARKS):
        return _parse_hf(reader)
    return _parse_openai(reader)


class _Reader:
    """Typed look-ups in one JSON object; every error names the source and the key."""

    def __init__(self, raw: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.raw, self.source, self.prefix = raw, source, prefix

    def fail(self, key: str, message: str) -> ConfigError:
        return ConfigError(f"{self.source}: {self.prefix}{key} {message}")

    def require(self, key: str, kind: type) -> Any:
        if key not in self.raw:
            near = difflib.get_close_matches(key, self.raw, n=1, cutoff=0.75)
            hint = f"; it has {near[0]!r}" if near else ""
            raise ConfigError(f"{self.source}: the key {self.prefix + key!r} is missing{hint}")
        return self.typed(key, self.raw[key], kind)

    def optional(self, key: str, kind: type) -> Any:
        """The value; None if the key is missing or null."""
        value = self.raw.get(key)
        return None if value is None else self.typed(key, value, kind)

    def typed(self, key: str, value: Any, kind: type) -> Any:
        if kind is float:
            good = isinstance(value, int | float) and not isinstance(value, bool)
            if good and abs(value) < MAX_FLOAT:  # false for NaN
                return float(value)
            raise self.fail(key, f"must be a finite number, not {value!r}")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            name = {int: "an integer", bool: "true or false", str: "a string", list: "a list"}
            raise self.fail(key, f"must be {name.get(kind, 'an object')}, not {value!r}")
        if isinstance(value, int) and abs(value) >= MAX_INT:
            raise self.fail(key, f"must be below {MAX_INT}, not {value}")
        return value

    def context(self, length: int, factor: float) -> int:
        """Length of the context extended by YaRN: initial_context_length * factor."""
        stretched = length * max(factor, 1.0)
        if stretched >= MAX_INT:
            raise self.fail("rope", f"scaling gives a context of {stretched:g}, beyond {MAX_INT}")
        return round(stretched)


def _parse_openai(reader: _Reader) -> dict[str, Any]:
    values = {key: reader.require(key, kind) for key, kind in OPENAI_KEYS.items()}
    for key in reader.raw:
        if key not in OPENAI_KEYS:
            near = difflib.get_close_matches(key, OPENAI_KEYS, n=1)
            hint = f" (nearest: {near[0]!r})" if near else ""
            raise reader.fail(key, f"is not a key of the OpenAI dialect{hint}")
    length = values["initial_context_length"]
    values["max_position_embeddings"] = reader.context(length, values["rope_scaling_factor"])
    if values["vocab_size"] == _RELEASED_VOCAB:
        values |= {"eos_token_ids": (_RETURN,), "pad_token_id": _ENDOFTEXT}
    return values


def _parse_hf(reader: _Reader) -> dict[str, Any]:
    raw = reader.raw
    if raw.get("model_type") != "gpt_oss":
        raise reader.fail("model_type", f"must be 'gpt_oss', not {raw.get('model_type')!r}")
    for key, expected in _HF_FIXED.items():
        if raw.get(key, expected) != expected:
            raise reader.fail(key, f"must be {expected!r} for gpt-oss, not {raw[key]!r}")
    values = {key: reader.require(key, kind) for key, kind in _HF_SAME.items()}
    for key, kind in _HF_OPTIONAL.items():
        if (value := reader.optional(key, kind)) is not None:
            values[key] = value
    values["num_experts"] = _agreeing(reader, "num_local_experts", "num_experts")
    values["experts_per_token"] = _agreeing(reader, "num_experts_per_tok", "experts_per_token")
    layer_types = reader.optional("layer_types", list)
    if layer_types is not None:
        values["layer_types"] = tuple(layer_types)
    if layer_types is None or "sliding_attention" in layer_types or raw.get("sliding_window"):
        values["sliding_window"] = reader.require("sliding_window", int)
    values |= _parse_rope(reader)
    _parse_context(reader, values)
    eos = raw.get("eos_token_id")
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    values["eos_token_ids"] = tuple(reader.typed("eos_token_id", token, int) for token in eos)
    values["pad_token_id"] = reader.optional("pad_token_id", int)
    return values


def _agreeing(reader: _Reader, key: str, alias: str) -> int:
    """An integer under one of two names; if both are present, they must be equal."""
    if key not in reader.raw and alias in reader.raw:
        key = alias
    value: int = reader.require(key, int)
    other = reader.optional(alias, int)
    if other is not None and other != value:
        raise reader.fail(key, f"({value}) contradicts {alias} ({other})")
    return value


def _parse_context(reader: _Reader, values: dict[str, Any]) -> None:
    """Determines initial_context_length and max_position_embeddings, in place."""
    stated = reader.optional("initial_context_length", int)
    original = values.get("initial_context_length")
    if stated is not None and original is not None and stated != original:
        raise reader.fail(
            "initial_context_length",
            f"({stated}) contradicts original_max_position_embeddings ({original})",
        )
    original = original if original is not None else stated
    if original is None:
        original = reader.require("max_position_embeddings", int)
    values["initial_context_length"] = original
    stretched = reader.context(original, values["rope_scaling_factor"])
    values.setdefault("max_position_embeddings", stretched)


def _parse_rope(reader: _Reader) -> dict[str, Any]:
    """Rotary fields from rope_parameters (transformers 5) or rope_scaling (released files)."""
    found: list[tuple[str, dict[str, Any]]] = []
    for key in ("rope_parameters", "rope_scaling"):
        block = reader.optional(key, dict)
        if not block:
            continue
        kinds = [kind for kind in ("sliding_attention", "full_attention") if kind in block]
        for kind in kinds:
            if not isinstance(block[kind], dict):
                raise reader.fail(f"{key}.{kind}", f"must be an object, not {block[kind]!r}")
        nested = [(f"{key}.{kind}", block[kind]) for kind in kinds] or [(key, block)]
        found += [(name, _rope_block(reader, name, inner)) for name, inner in nested]
    if not found:
        raise ConfigError(
            f"{reader.source}: the key 'rope_scaling' (or 'rope_parameters') is missing; "
            "gpt-oss uses YaRN; for plain RoPE, set rope_type to 'default'"
        )
    first_name, first = found[0]
    for name, other in found[1:]:
        if other != first:
            raise reader.fail(name, f"contradicts {first_name}: {other} / {first}")
    return first


def _rope_block(reader: _Reader, name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    inner = _Reader(block, reader.source, f"{name}.")
    for key in block:
        if key not in _ROPE_KEYS:
            raise inner.fail(key, f"is not a known key; known are {', '.join(sorted(_ROPE_KEYS))}")
    theta = inner.optional("rope_theta", float)
    outer = reader.optional("rope_theta", float)
    if theta is not None and outer is not None and theta != outer:
        raise inner.fail("rope_theta", f"({theta:g}) contradicts rope_theta ({outer:g})")
    theta = theta if theta is not None else outer
    values: dict[str, Any] = {
        "rope_theta": theta if theta is not None else reader.require("rope_theta", float)
    }
    if block.get("partial_rotary_factor") not in (None, 1):
        raise inner.fail("partial_rotary_factor", "must be 1: gpt-oss rotates whole heads")
    kind_key = "type" if "type" in block and "rope_type" not in block else "rope_type"
    kind = inner.require(kind_key, str)
    if kind == "default":
        return values | {"rope_scaling_factor": 1.0}
    if kind != "yarn":
        raise inner.fail(kind_key, f"must be 'yarn' or 'default', not {kind!r}")
    # gpt-oss does not round YaRN's bounds. Rounding changes frequencies by up to 76 %, so a file
    # that asks for it is an error. Files without the key are older and mean no rounding.
    if inner.optional("truncate", bool):
        raise inner.fail("truncate", "is true; gpt-oss does not round YaRN's bounds (false)")
    factor = inner.require("factor", float)
    if factor < 1:
        raise inner.fail("factor", f"must be at least 1, not {factor:g}")
    _check_concentration(inner, factor)
    values["rope_scaling_factor"] = factor
    values["initial_context_length"] = inner.require("original_max_position_embeddings", int)
    for key, target in (("beta_fast", "rope_ntk_beta"), ("beta_slow", "rope_ntk_alpha")):
        if (beta := inner.optional(key, float)) is not None:
            values[target] = beta
    return values


def _check_concentration(inner: _Reader, factor: float) -> None:
    """ConfigError unless the file's scale of cos and sin, if any, is 0.1 ln(factor) + 1."""
    expected = 0.1 * math.log(factor) + 1
    stated = inner.optional("attention_factor", float)
    if stated is not None and not math.isclose(stated, expected, rel_tol=1e-6):
        raise inner.fail(
            "attention_factor", f"must be 0.1 ln(factor) + 1 = {expected:.6f}, not {stated:g}"
        )
    for key in ("mscale", "mscale_all_dim"):
        if inner.optional(key, float):
            raise inner.fail(key, "is not supported: gpt-oss scales by 0.1 ln(factor) + 1")


def to_openai(config: ModelConfig) -> dict[str, Any]:
    """The OpenAI dialect of a configuration; ConfigError for values that it cannot express."""
    for key, implied in _OPENAI_IMPLIED.items():
        value = getattr(config, key)
        if value != implied:
            said = "sliding, full, sliding, ..." if key == "layer_types" else implied
            raise ConfigError(
                f"{key} {value!r} cannot be written in the OpenAI dialect, which implies {said}"
            )
    return {key: getattr(config, key) for key in OPENAI_KEYS}


def to_hf(config: ModelConfig, experts: str) -> dict[str, Any]:
    """The Hugging Face dialect of a configuration, with `experts` "mxfp4" or "bfloat16".

    Raises:
        ConfigError: `experts` is neither.
    """
    if experts not in ("mxfp4", "bfloat16"):
        raise ConfigError(f"experts must be 'mxfp4' or 'bfloat16', not {experts!r}")
    scaling: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling_factor >= 1:  # also in transformers, YaRN with factor 1 is plain RoPE
        scaling = {
            "rope_type": "yarn",
            "factor": config.rope_scaling_factor,
            "beta_fast": config.rope_ntk_beta,
            "beta_slow": config.rope_ntk_alpha,
            "truncate": False,
            "original_max_position_embeddings": config.initial_context_length,
        }
    eos = list(config.eos_token_ids)
    value: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "dtype": "bfloat16",
        **_HF_FIXED,
        **{key: getattr(config, key) for key in (*_HF_SAME, *_HF_OPTIONAL)},
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "experts_per_token": config.experts_per_token,
        "sliding_window": config.sliding_window,
        "layer_types": list(config.attention_types),
        "initial_context_length": config.initial_context_length,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else eos,
        "pad_token_id": config.pad_token_id,
    }
    if experts == "mxfp4":
        value["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        }
    return value
