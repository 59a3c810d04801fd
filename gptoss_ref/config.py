"""ModelConfig: the dimensions and constants of a gpt-oss architecture, checked once.

Every other module uses it; `config_json.py` reads and writes the two `config.json` dialects. Axis
letters: D hidden_size, H num_attention_heads, K num_key_value_heads,
G = H / K, C head_dim, E num_experts, A experts_per_token, F intermediate_size, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from gptoss_ref import config_json
from gptoss_ref._files import read_object
from gptoss_ref.errors import ConfigError

SLIDING = "sliding_attention"
FULL = "full_attention"

_POSITIVE_INTS = (
    "num_hidden_layers",
    "num_experts",
    "experts_per_token",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
    "initial_context_length",
    "max_position_embeddings",
)
_POSITIVE_FLOATS = (
    "swiglu_limit",
    "swiglu_alpha",
    "rope_theta",
    "rope_scaling_factor",
    "rope_ntk_alpha",
    "rope_ntk_beta",
    "rms_norm_eps",
)


@dataclass(frozen=True)
class ModelConfig:
    """One gpt-oss architecture. The defaults are those of gpt-oss-120b.

    Field names are those of the OpenAI dialect, or of the Hugging Face dialect for fields that only
    it has. `layer_types` None means the released pattern: layers 0, 2, ... sliding, the others
    full; the same pattern written out is stored as None, so that equal models compare equal.
    `rope_ntk_alpha` is YaRN's beta_slow and `rope_ntk_beta` its beta_fast. `eos_token_ids` and
    `pad_token_id` do not affect the computation and are ignored in comparisons.

    Raises ConfigError, with the field, for an invalid value or a contradiction between fields.
    """

    num_hidden_layers: int = 36
    num_experts: int = 128
    experts_per_token: int = 4
    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    head_dim: int = 64
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    sliding_window: int = 128
    layer_types: tuple[str, ...] | None = None
    initial_context_length: int = 4096
    rope_theta: float = 150000.0
    rope_scaling_factor: float = 32.0
    rope_ntk_alpha: float = 1.0
    rope_ntk_beta: float = 32.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    eos_token_ids: tuple[int, ...] = field(default=(), compare=False)
    pad_token_id: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in _POSITIVE_INTS:
            value = getattr(self, name)
            number = isinstance(value, int) and not isinstance(value, bool)
            if not number or not 0 < value < config_json.MAX_INT:
                raise ConfigError(f"{name} must be a positive integer below 2^31, not {value!r}")
        for name in _POSITIVE_FLOATS:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < config_json.MAX_FLOAT:
                raise ConfigError(f"{name} must be a positive finite number, not {value!r}")
            object.__setattr__(self, name, float(value))
        self._check_shapes()
        self._check_layer_types()
        self._check_token_ids()
        if self.rope_theta <= 1:
            raise ConfigError(f"rope_theta must be greater than 1, not {self.rope_theta}")
        if self.rope_scaling_factor > 1:
            self._check_yarn_bounds()

    def _check_shapes(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even (rotary pairs), not {self.head_dim}")
        if self.experts_per_token > self.num_experts:
            raise ConfigError(
                f"experts_per_token ({self.experts_per_token}) must be at most num_experts "
                f"({self.num_experts})"
            )

    def _check_layer_types(self) -> None:
        if self.layer_types is None:
            return
        types = tuple(self.layer_types)
        if len(types) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_types has {len(types)} entries for num_hidden_layers "
                f"{self.num_hidden_layers}"
            )
        for index, kind in enumerate(types):
            if kind not in (SLIDING, FULL):
                raise ConfigError(
                    f"layer_types[{index}] must be {SLIDING!r} or {FULL!r}, not {kind!r}"
                )
        released = types == _alternating(self.num_hidden_layers)
        object.__setattr__(self, "layer_types", None if released else types)

    def _check_token_ids(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        pad = () if self.pad_token_id is None else (self.pad_token_id,)
        for name, ids in (("eos_token_ids", self.eos_token_ids), ("pad_token_id", pad)):
            for token in ids:
                if isinstance(token, bool) or not isinstance(token, int) or token < 0:
                    raise ConfigError(f"{name} must hold token ids, not {token!r}")

    def _check_yarn_bounds(self) -> None:
        low, high = self.yarn_bounds()
        top = self.head_dim / 2 - 1
        if not 0 < low < high < top:
            raise ConfigError(
                "YaRN needs 0 < low < high < head_dim/2 - 1, but initial_context_length "
                f"{self.initial_context_length}, rope_ntk_beta {self.rope_ntk_beta:g}, "
                f"rope_ntk_alpha {self.rope_ntk_alpha:g}, rope_theta {self.rope_theta:g} and "
                f"head_dim {self.head_dim} give low {low:.4f}, high {high:.4f}, "
                f"head_dim/2 - 1 = {top:g}"
            )

    def yarn_bounds(self) -> tuple[float, float]:
        """(low, high): the rotary pairs between which YaRN's ramp goes from 0 to 1; not rounded.

        low = (C/2) ln(initial_context_length / (2 pi beta)) / ln(theta) with beta = rope_ntk_beta,
        and high the same with rope_ntk_alpha. The OpenAI reference asserts
        0 < low < high < C/2 - 1. Source: openai/gpt-oss, gpt_oss/torch/model.py, RotaryEmbedding.

        >>> low, high = GPT_OSS_20B.yarn_bounds()
        >>> print(f"{low:.6f} {high:.6f}")
        8.092779 17.398025
        """

        def pair(beta: float) -> float:
            log_turns = math.log(self.initial_context_length) - math.log(beta * 2 * math.pi)
            return (self.head_dim / 2) * log_turns / math.log(self.rope_theta)

        return pair(self.rope_ntk_beta), pair(self.rope_ntk_alpha)

    @property
    def group_size(self) -> int:
        """G = H / K: the number of query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def width(self) -> int:
        """The length of the shorter rows of the experts' matrices; it decides which kernels run."""
        return min(self.hidden_size, self.intermediate_size)

    @property
    def attention_types(self) -> tuple[str, ...]:
        """`layer_types` written out: one of SLIDING, FULL per layer."""
        if self.layer_types is None:
            return _alternating(self.num_hidden_layers)
        return self.layer_types

    def window(self, layer: int) -> int | None:
        """The number of keys that a query of this layer sees, including its own; None for all.

        >>> GPT_OSS_20B.window(0), GPT_OSS_20B.window(1)
        (128, None)

        Raises:
            ConfigError: there is no such layer.
        """
        if not 0 <= layer < self.num_hidden_layers:
            raise ConfigError(
                f"there is no layer {layer}: num_hidden_layers is {self.num_hidden_layers}"
            )
        return self.sliding_window if self.attention_types[layer] == SLIDING else None

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> ModelConfig:
        """Reads a `config.json` of either dialect, from a file, a folder or a JSON object.

        Raises ConfigError with the file, the field and the expected value.
        """
        if isinstance(source, Mapping):
            name, raw = "config", source
        else:
            if source == "":
                raise ConfigError("the path of config.json is empty; expected a file or a folder")
            path = Path(source)
            if path.is_dir() and path.name != "config.json":
                path = path / "config.json"
            name, raw = str(path), read_object(path)
        values = config_json.parse(raw, name)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None

    def to_json(
        self,
        dialect: Literal["openai", "hf"] = "hf",
        experts: Literal["mxfp4", "bfloat16"] = "mxfp4",
    ) -> dict[str, Any]:
        """The object of a `config.json` in one dialect.

        The Hugging Face form says how the experts are stored (quantization_config) and writes
        rope_scaling and rope_theta as the released files do, which transformers 4 and 5 both
        read. Raises ConfigError for values that the OpenAI dialect cannot express: layer_types,
        rms_norm_eps or swiglu_alpha that differ from the released ones.
        """
        if dialect == "openai":
            return config_json.to_openai(self)
        if dialect == "hf":
            return config_json.to_hf(self, experts)
        raise ConfigError(f"dialect must be 'openai' or 'hf', not {dialect!r}")

    def differences(self, other: ModelConfig) -> list[str]:
        """The architecture fields in which two configurations differ, as `name: this / that`."""
        return [
            f"{f.name}: {getattr(self, f.name)} / {getattr(other, f.name)}"
            for f in fields(self)
            if f.compare and getattr(self, f.name) != getattr(other, f.name)
        ]


def _alternating(layers: int) -> tuple[str, ...]:
    return tuple(SLIDING if layer % 2 == 0 else FULL for layer in range(layers))


GPT_OSS_20B = ModelConfig(
    num_hidden_layers=24, num_experts=32, eos_token_ids=(200002,), pad_token_id=199999
)
GPT_OSS_120B = ModelConfig(
    num_hidden_layers=36, num_experts=128, eos_token_ids=(200002,), pad_token_id=199999
)
