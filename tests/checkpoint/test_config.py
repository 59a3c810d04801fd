"""ModelConfig: both dialects say the same, and what cannot be computed is refused by name."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import GPT_OSS_20B, GPT_OSS_120B, ModelConfig
from gptoss_ref.config import FULL, SLIDING
from gptoss_ref.errors import ConfigError
from tests.support.checkpoint_files import SIZES, hf_config

# The released files of openai/gpt-oss-20b, as far as they concern the model.
RELEASED_HF = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 201088,
}
RELEASED_OPENAI = {
    "num_hidden_layers": 24,
    "num_experts": 32,
    "experts_per_token": 4,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "swiglu_limit": 7.0,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}


def without(config: dict, key: str) -> dict:
    return {k: v for k, v in config.items() if k != key}


def test_released_figures() -> None:
    for config, layers, experts in ((GPT_OSS_20B, 24, 32), (GPT_OSS_120B, 36, 128)):
        assert (config.num_hidden_layers, config.num_experts) == (layers, experts)
        assert config.experts_per_token == 4
        assert (config.hidden_size, config.intermediate_size) == (2880, 2880)
        assert config.vocab_size == 201088
        assert (config.num_attention_heads, config.num_key_value_heads) == (64, 8)
        assert (config.head_dim, config.group_size) == (64, 8)
        assert (config.swiglu_limit, config.swiglu_alpha) == (7.0, 1.702)
        assert (config.rope_theta, config.rope_scaling_factor) == (150000.0, 32.0)
        assert (config.rope_ntk_alpha, config.rope_ntk_beta) == (1.0, 32.0)
        assert (config.initial_context_length, config.max_position_embeddings) == (4096, 131072)
        assert config.rms_norm_eps == 1e-5
        assert [config.window(n) for n in range(4)] == [128, None, 128, None]
        low, high = config.yarn_bounds()
        assert low == pytest.approx(8.092779, abs=1e-6)
        assert high == pytest.approx(17.398025, abs=1e-6)


@pytest.mark.parametrize("raw", [RELEASED_HF, RELEASED_OPENAI], ids=["hf", "openai"])
def test_released_files_load(raw: dict, tmp_path: Path) -> None:
    config = ModelConfig.from_json(raw)
    assert config == GPT_OSS_20B
    assert config.eos_token_ids == (200002,)
    assert config.pad_token_id == 199999
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert ModelConfig.from_json(tmp_path) == config
    assert ModelConfig.from_json(str(tmp_path / "config.json")) == config


def test_transformers_5_files_load() -> None:
    """rope_parameters instead of rope_scaling, flat or by layer type; swiglu_alpha stated."""
    rope = {**RELEASED_HF["rope_scaling"], "rope_theta": 150000}
    raw = without(without(RELEASED_HF, "rope_scaling"), "rope_theta") | {"swiglu_alpha": 1.702}
    assert ModelConfig.from_json(raw | {"rope_parameters": rope}) == GPT_OSS_20B
    nested = {SLIDING: rope, FULL: dict(rope)}
    assert ModelConfig.from_json(raw | {"rope_parameters": nested}) == GPT_OSS_20B
    assert (
        ModelConfig.from_json(raw | {"rope_parameters": rope, "swiglu_alpha": 1.5}) != GPT_OSS_20B
    )


def test_what_transformers_itself_writes_loads() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GptOssConfig(**hf_config("bfloat16"))
    assert ModelConfig.from_json(json.loads(theirs.to_json_string())) == ModelConfig(
        **SIZES, max_position_embeddings=256
    )


def test_transformers_reads_what_is_written() -> None:
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(**SIZES, max_position_embeddings=256, eos_token_ids=(102, 112))
    theirs = transformers.GptOssConfig(**json.loads(json.dumps(config.to_json("hf", "bfloat16"))))
    assert theirs.num_local_experts == SIZES["num_experts"]
    assert theirs.num_experts_per_tok == SIZES["experts_per_token"]
    assert theirs.head_dim == SIZES["head_dim"]
    assert theirs.layer_types == [SLIDING, FULL] * 2
    assert theirs.eos_token_id == [102, 112]
    rope = theirs.rope_parameters
    assert rope["rope_theta"] == SIZES["rope_theta"]
    assert rope["factor"] == SIZES["rope_scaling_factor"]
    assert (rope["beta_fast"], rope["beta_slow"]) == (SIZES["rope_ntk_beta"], 1.0)
    assert rope["truncate"] is False
    assert rope["original_max_position_embeddings"] == SIZES["initial_context_length"]


configs = st.builds(
    lambda layers, experts, chosen, kv, group, half, window, factor, types, eos: ModelConfig(
        num_hidden_layers=layers,
        num_experts=experts,
        experts_per_token=min(chosen, experts),
        vocab_size=131,
        hidden_size=64,
        intermediate_size=96,
        swiglu_limit=6.5,
        head_dim=2 * half,
        num_attention_heads=kv * group,
        num_key_value_heads=kv,
        sliding_window=window,
        layer_types=tuple(types[:layers]) if types else None,
        initial_context_length=32,
        rope_theta=150000.0,
        rope_scaling_factor=factor,
        rope_ntk_alpha=1.0,
        rope_ntk_beta=4.0,
        max_position_embeddings=int(32 * max(factor, 1)),
        eos_token_ids=tuple(eos),
    ),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(6, 20),
    st.integers(1, 128),
    st.sampled_from([1.0, 1.5, 8.0, 32.0]),
    st.none() | st.lists(st.sampled_from([SLIDING, FULL]), min_size=6, max_size=6),
    st.lists(st.integers(0, 130), max_size=2),
)


@given(configs)
def test_round_trip_through_json(config: ModelConfig) -> None:
    again = ModelConfig.from_json(json.loads(json.dumps(config.to_json("hf"))))
    assert again == config
    assert again.eos_token_ids == config.eos_token_ids
    if config.layer_types is None:
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json("openai")))) == config
    else:
        with pytest.raises(ConfigError, match="layer_types"):
            config.to_json("openai")


def test_openai_dialect_holds_exactly_its_keys() -> None:
    assert GPT_OSS_20B.to_json("openai") == RELEASED_OPENAI
    for change in ({"rms_norm_eps": 1e-6}, {"swiglu_alpha": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            ModelConfig(**SIZES, **change).to_json("openai")
    with pytest.raises(ConfigError, match="dialect"):
        GPT_OSS_20B.to_json("toml")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="experts"):
        GPT_OSS_20B.to_json("hf", "int8")  # type: ignore[arg-type]


def test_released_pattern_is_stored_as_none() -> None:
    written = ModelConfig(**SIZES, layer_types=(SLIDING, FULL, SLIDING, FULL))
    assert written.layer_types is None
    assert written == ModelConfig(**SIZES)
    assert written.attention_types == (SLIDING, FULL, SLIDING, FULL)
    other = ModelConfig(**SIZES, layer_types=(FULL, FULL, SLIDING, SLIDING))
    assert other.attention_types == other.layer_types
    assert [other.window(n) for n in range(4)] == [None, None, 7, 7]
    with pytest.raises(ConfigError, match="no layer 4"):
        other.window(4)


def test_hf_without_optional_keys() -> None:
    """layer_types, limits and eps take the released values; the context follows from YaRN."""
    raw = hf_config()
    for key in (
        "layer_types", "swiglu_limit", "rms_norm_eps", "max_position_embeddings",
        "initial_context_length", "attention_bias", "tie_word_embeddings", "hidden_act",
    ):  # fmt: skip
        del raw[key]
    del raw["rope_scaling"]["truncate"]
    config = ModelConfig.from_json(raw)
    assert config == ModelConfig(**SIZES, max_position_embeddings=256)


def test_all_full_attention_needs_no_window() -> None:
    raw = hf_config(layer_types=[FULL] * 4, sliding_window=None)
    assert ModelConfig.from_json(raw).window(0) is None


def test_plain_rope_must_be_said() -> None:
    raw = hf_config(rope_scaling={"rope_type": "default"})
    config = ModelConfig.from_json(raw)
    assert config.rope_scaling_factor == 1.0
    assert (config.initial_context_length, config.max_position_embeddings) == (32, 256)
    for missing in (without(raw, "rope_scaling"), raw | {"rope_scaling": None}):
        with pytest.raises(ConfigError, match=r"'rope_scaling' \(or 'rope_parameters'\)"):
            ModelConfig.from_json(missing)


REQUIRED_HF = [
    "num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "head_dim",
    "num_attention_heads", "num_key_value_heads", "num_local_experts", "sliding_window",
    "rope_theta",
]  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED_HF)
def test_hf_missing_key(key: str) -> None:
    with pytest.raises(ConfigError, match=f"config: the key '{key}' is missing"):
        ModelConfig.from_json(without(hf_config(), key))


def test_hf_experts_per_token_under_either_name() -> None:
    for key in ("num_experts_per_tok", "experts_per_token"):
        assert ModelConfig.from_json(without(hf_config(), key)).experts_per_token == 2
    neither = without(without(hf_config(), "num_experts_per_tok"), "experts_per_token")
    with pytest.raises(ConfigError, match="'num_experts_per_tok' is missing"):
        ModelConfig.from_json(neither)


@pytest.mark.parametrize("key", sorted(SIZES))
def test_openai_missing_key(key: str) -> None:
    with pytest.raises(ConfigError, match=f"the key '{key}' is missing"):
        ModelConfig.from_json(without(SIZES, key))


@pytest.mark.parametrize("key", sorted(SIZES))
@pytest.mark.parametrize("value", ["7", None, True, [1], -1, 0, math.nan, math.inf, 10**400])
def test_openai_wrong_value(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_json(SIZES | {key: value})


def test_misspelt_key_is_named() -> None:
    raw = without(SIZES, "rope_ntk_beta") | {"rope_ntk_betta": 4.0}
    with pytest.raises(ConfigError, match="'rope_ntk_beta' is missing; it has 'rope_ntk_betta'"):
        ModelConfig.from_json(raw)
    with pytest.raises(ConfigError, match=r"swiglu_limmit.*nearest: 'swiglu_limit'"):
        ModelConfig.from_json(SIZES | {"swiglu_limmit": 7.0})


HF_REFUSED = [
    ({"model_type": "llama"}, "model_type must be 'gpt_oss'"),
    ({"attention_bias": False}, "attention_bias must be True"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings must be False"),
    ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
    ({"num_attention_heads": 7}, r"num_attention_heads \(7\) must be a multiple"),
    ({"head_dim": 13}, "head_dim must be even"),
    ({"layer_types": [FULL] * 3}, "layer_types has 3 entries for num_hidden_layers 4"),
    ({"layer_types": [FULL] * 3 + ["chunked"]}, r"layer_types\[3\].*not 'chunked'"),
    ({"layer_types": "full_attention"}, "layer_types must be a list"),
    ({"sliding_window": None}, "sliding_window must be an integer"),
    ({"experts_per_token": 3}, r"num_experts_per_tok \(2\) contradicts experts_per_token \(3\)"),
    ({"num_experts": 6}, r"num_local_experts \(5\) contradicts num_experts \(6\)"),
    ({"num_experts_per_tok": 6, "experts_per_token": 6}, r"experts_per_token \(6\) must be"),
    ({"initial_context_length": 64}, r"initial_context_length \(64\) contradicts original_max"),
    ({"eos_token_id": "</s>"}, "eos_token_id must be an integer"),
    ({"eos_token_id": [-1]}, "eos_token_ids must hold token ids"),
    ({"pad_token_id": 1.5}, "pad_token_id must be an integer"),
    ({"rope_theta": 1}, "rope_theta must be greater than 1"),
    ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive"),
    ({"max_position_embeddings": 0}, "max_position_embeddings must be a positive"),
    ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), HF_REFUSED)
def test_hf_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"config: {message}"):
        ModelConfig.from_json(hf_config(**change))


ROPE_REFUSED = [
    ({"rope_type": "linear"}, "rope_scaling.rope_type must be 'yarn' or 'default'"),
    ({"rope_type": 3}, "rope_scaling.rope_type must be a string"),
    ({"truncate": True}, "rope_scaling.truncate is true"),
    ({"truncate": "no"}, "rope_scaling.truncate must be true or false"),
    ({"factor": 0.5}, "rope_scaling.factor must be at least 1"),
    ({"factor": None}, "rope_scaling.factor must be a finite number"),
    ({"attention_factor": 1.0}, "rope_scaling.attention_factor must be 0.1 ln"),
    ({"mscale": 1.0}, "rope_scaling.mscale is not supported"),
    ({"partial_rotary_factor": 0.5}, "rope_scaling.partial_rotary_factor must be 1"),
    ({"long_factor": [1.0]}, "rope_scaling.long_factor is not a known key"),
    ({"rope_theta": 10000}, r"rope_scaling.rope_theta \(10000\) contradicts rope_theta \(150000\)"),
    ({"beta_fast": 6.0}, "YaRN needs 0 < low < high < head_dim/2 - 1"),
    ({"beta_slow": 4.0}, "YaRN needs 0 < low < high"),
    ({"beta_slow": 1e-4}, "YaRN needs 0 < low < high"),
]


@pytest.mark.parametrize(("change", "message"), ROPE_REFUSED)
def test_rope_refused(change: dict, message: str) -> None:
    raw = hf_config()
    raw["rope_scaling"] = {**raw["rope_scaling"], **change}
    with pytest.raises(ConfigError, match=f"config: {message}"):
        ModelConfig.from_json(raw)


@pytest.mark.parametrize("key", ["rope_type", "factor", "original_max_position_embeddings"])
def test_rope_missing_key(key: str) -> None:
    raw = hf_config()
    raw["rope_scaling"] = without(raw["rope_scaling"], key)
    with pytest.raises(ConfigError, match=f"'rope_scaling.{key}' is missing"):
        ModelConfig.from_json(raw)


def test_rope_stated_twice_must_agree() -> None:
    raw = hf_config()
    rope = {**raw["rope_scaling"], "rope_theta": raw["rope_theta"]}
    assert ModelConfig.from_json(raw | {"rope_parameters": rope}) == ModelConfig.from_json(raw)
    with pytest.raises(ConfigError, match="rope_scaling contradicts rope_parameters"):
        ModelConfig.from_json(raw | {"rope_parameters": rope | {"factor": 4.0}})
    nested = {SLIDING: rope, FULL: rope | {"factor": 4.0}}
    bare = without(raw, "rope_scaling")
    with pytest.raises(ConfigError, match=r"rope_parameters.full_attention contradicts"):
        ModelConfig.from_json(bare | {"rope_parameters": nested})
    with pytest.raises(ConfigError, match=r"rope_parameters.full_attention must be an object"):
        ModelConfig.from_json(bare | {"rope_parameters": {SLIDING: rope, FULL: 1}})


def test_stated_concentration_may_agree() -> None:
    raw = hf_config()
    raw["rope_scaling"]["attention_factor"] = 0.1 * math.log(8) + 1
    assert ModelConfig.from_json(raw) == ModelConfig.from_json(hf_config())


def test_files_that_are_no_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        ModelConfig.from_json(path)
    for content, message in (
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "expected a JSON object, found a list"),
        (b"null", "expected a JSON object, found null"),
        (b'{"head_dim": 1, "head_dim": 2}', "'head_dim' appears twice"),
        (b"{}", "'num_hidden_layers' is missing"),
        (b'{"head_dim": ' + b"1" * 5000 + b"}", "not JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message) as caught:
            ModelConfig.from_json(path)
        assert str(path) in str(caught.value)


@given(st.data())
def test_no_damaged_config_gets_past_config_error(data: st.DataObject) -> None:
    """Any one value replaced by anything JSON can hold: it loads, or ConfigError says why not."""
    raw = copy.deepcopy(data.draw(st.sampled_from([hf_config(), dict(SIZES)])))
    target = raw
    if "rope_scaling" in raw and data.draw(st.booleans()):
        target = raw["rope_scaling"]
    key = data.draw(st.sampled_from(sorted(target)))
    numbers = st.integers(-3, 300) | st.floats() | st.sampled_from([2**31, 10**400, -(10**400)])
    leaves = st.none() | st.booleans() | numbers | st.text(max_size=3)
    target[key] = data.draw(leaves | st.lists(leaves, max_size=3) | st.dictionaries(
        st.sampled_from(["rope_type", "factor", SLIDING]), leaves, max_size=2))  # fmt: skip
    try:
        config = ModelConfig.from_json(raw)
    except ConfigError:
        return
    assert ModelConfig.from_json(config.to_json("hf")) == config
