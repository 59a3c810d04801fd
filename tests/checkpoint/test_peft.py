"""PEFT's files: names, shapes and settings, written and read; PEFT itself is in tests/training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gptoss_ref.checkpoint.adapter import Adapter, LowRank
from gptoss_ref.checkpoint.peft import (
    CONFIG,
    TENSORS,
    base_of,
    is_adapter,
    read_adapter,
    write_adapter,
)
from gptoss_ref.errors import CheckpointError
from tests.support.strategies import small_config

SMALL = small_config()  # D 37, HC 80, E 9, F 23, V 71, three layers
D, HC, E, F, V = 37, 80, 9, 23, 71
SHAPES: dict[str, tuple[int, ...]] = {
    "embedding": (V, D),
    "unembedding": (V, D),
    "attn.q_weight": (HC, D),
    "mlp.gate_weight": (E, D),
    "mlp.mlp1_weight": (E, 2 * F, D),
    "mlp.mlp2_weight": (E, D, F),
}
"""(N, M) or (E, N, M) of a weight, without its layer."""
BASE = "base_model.model."
LAYER = BASE + "model.layers.{}."


def factors_of(*weights: str, ranks: int = 2) -> dict[str, LowRank]:
    """Random factors; the scale is that of alpha 6."""
    rng = np.random.default_rng(len(weights))
    made = {}
    for weight in weights:
        *experts, n, m = SHAPES[weight.removeprefix(weight[:8] if weight[:5] == "block" else "")]
        a, b = rng.normal(size=(*experts, ranks, m)), rng.normal(size=(*experts, n, ranks))
        made[weight] = LowRank(a.astype(np.float32), b.astype(np.float32), 6.0 / ranks)
    return made


def same(one: Adapter, other: Adapter) -> None:
    assert (one.alpha, one.rslora, one.base) == (other.alpha, other.rslora, other.base)
    assert set(one.factors) == set(other.factors)
    assert set(one.whole) == set(other.whole)
    for name, factors in one.factors.items():
        theirs = other.factors[name]
        assert factors.scale == pytest.approx(theirs.scale, rel=1e-15)
        np.testing.assert_array_equal(factors.a, theirs.a, err_msg=name)
        np.testing.assert_array_equal(factors.b, theirs.b, err_msg=name)
    for name, values in one.whole.items():
        np.testing.assert_array_equal(values, other.whole[name], err_msg=name)


# --- written --------------------------------------------------------------------------------------


def everything() -> Adapter:
    """Every kind of weight; each pair of expert matrices, and each of the two alone."""
    rng = np.random.default_rng(9)
    factors = factors_of(
        "block.0.attn.q_weight",
        "block.0.mlp.gate_weight",
        "block.0.mlp.mlp2_weight",
        "block.1.mlp.mlp1_weight",
        "block.1.mlp.mlp2_weight",
        "block.2.mlp.mlp1_weight",
        "embedding",
        "unembedding",
    )
    whole = {
        "block.0.attn.sinks": rng.normal(size=8),
        "block.0.mlp.mlp1_weight": rng.normal(size=(E, 2 * F, D)),
        "norm_scale": rng.normal(size=D),
        "unembedding": rng.normal(size=(V, D)),
    }
    single = {name: values.astype(np.float32) for name, values in whole.items()}
    return Adapter(factors, single, 6.0, False, "base")


def test_the_tensors_of_a_file(tmp_path: Path) -> None:
    adapter = everything()
    write_adapter(tmp_path, adapter, SMALL)
    stored = load_file(tmp_path / TENSORS)
    expected: dict[str, np.ndarray] = {}
    for weight, module in {
        "block.0.attn.q_weight": LAYER.format(0) + "self_attn.q_proj",
        "block.0.mlp.gate_weight": LAYER.format(0) + "mlp.router",
        "unembedding": BASE + "lm_head",
    }.items():
        expected[f"{module}.lora_A.weight"] = adapter.factors[weight].a
        expected[f"{module}.lora_B.weight"] = adapter.factors[weight].b
    expected[BASE + "model.embed_tokens.lora_embedding_A"] = adapter.factors["embedding"].b.T
    expected[BASE + "model.embed_tokens.lora_embedding_B"] = adapter.factors["embedding"].a.T
    for weight, module in {
        "block.0.mlp.mlp2_weight": LAYER.format(0) + "mlp.experts",
        "block.1.mlp.mlp1_weight": LAYER.format(1) + "mlp.experts.base_layer",
        "block.1.mlp.mlp2_weight": LAYER.format(1) + "mlp.experts",
        "block.2.mlp.mlp1_weight": LAYER.format(2) + "mlp.experts",
    }.items():
        a, b = adapter.factors[weight].a, adapter.factors[weight].b
        expected[f"{module}.lora_A.weight"] = np.concatenate(list(a))  # rows of expert 0, 1, …
        expected[f"{module}.lora_B.weight"] = np.stack(
            [b[e, :, r] for r in range(2) for e in range(E)], axis=1
        )  # columns of rank 0 of expert 0, 1, …
    whole = adapter.whole
    expected[LAYER.format(0) + "self_attn.sinks"] = whole["block.0.attn.sinks"]
    gate_up = np.stack([matrix.T for matrix in whole["block.0.mlp.mlp1_weight"]])
    expected[LAYER.format(0) + "mlp.experts.gate_up_proj"] = gate_up
    expected[BASE + "model.norm.weight"] = whole["norm_scale"]
    expected[BASE + "lm_head.base_layer.weight"] = whole["unembedding"]
    assert set(stored) == set(expected)
    for name, values in expected.items():
        assert stored[name].dtype == np.float32
        np.testing.assert_array_equal(stored[name], values, err_msg=name)
    with safe_open(tmp_path / TENSORS, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_factors_are_stored_as_float32(tmp_path: Path) -> None:
    ((name, f),) = factors_of("block.0.attn.q_weight").items()
    wide = LowRank(f.a.astype(np.float64), f.b.astype(np.float64), f.scale)
    write_adapter(tmp_path, Adapter({name: wide}), SMALL)
    assert {x.dtype for x in load_file(tmp_path / TENSORS).values()} == {np.dtype(np.float32)}


def config_of(tmp_path: Path, adapter: Adapter) -> dict[str, Any]:
    write_adapter(tmp_path, adapter, SMALL)
    text = (tmp_path / CONFIG).read_text("utf-8")
    settings: dict[str, Any] = json.loads(text)
    assert text == json.dumps(settings, indent=2) + "\n"
    return settings


def test_the_settings_of_a_file(tmp_path: Path) -> None:
    layers = "model.layers."
    assert config_of(tmp_path, everything()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": 2,
        "lora_alpha": 6.0,
        "use_rslora": False,
        "target_modules": ["lm_head", "model.embed_tokens", f"{layers}0.self_attn.q_proj"],
        "target_parameters": [
            f"{layers}0.mlp.experts.down_proj",
            f"{layers}0.mlp.router.weight",
            f"{layers}1.mlp.experts.down_proj",
            f"{layers}1.mlp.experts.gate_up_proj",
            f"{layers}2.mlp.experts.gate_up_proj",
        ],
        "modules_to_save": [
            f"{layers}0.mlp.experts.gate_up_proj", f"{layers}0.self_attn.sinks", "model.norm",
        ],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "inference_mode": True,
    }  # fmt: skip


def test_what_is_in_all_layers_has_a_short_name(tmp_path: Path) -> None:
    names = [f"block.{n}.{what}" for n in range(3) for what in ("attn.q_weight", "mlp.mlp1_weight")]
    factors = factors_of(*names) | factors_of("block.1.mlp.gate_weight", ranks=3)
    settings = config_of(tmp_path, Adapter(factors, {}, 6.0, True))
    assert settings["target_modules"] == ["q_proj"]
    assert settings["target_parameters"] == [
        "mlp.experts.gate_up_proj", "model.layers.1.mlp.router.weight"
    ]  # fmt: skip
    assert (settings["r"], settings["use_rslora"], settings["modules_to_save"]) == (3, True, None)
    assert settings["base_model_name_or_path"] == ""
    settings = config_of(tmp_path, Adapter({}, {"norm_scale": np.ones(D, np.float32)}))
    assert (settings["r"], settings["target_modules"]) == (1, [])
    assert settings["target_parameters"] is None


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none"):
        write_adapter(tmp_path / "none", everything(), SMALL)


# --- read -----------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    adapter = everything()
    write_adapter(tmp_path, adapter, SMALL)
    again = read_adapter(tmp_path, SMALL)
    same(again, adapter)
    experts = [f for f in again.factors.values() if f.a.ndim == 3]
    assert all(f.a.flags.c_contiguous and f.b.flags.c_contiguous for f in experts)
    factors = factors_of("block.1.attn.q_weight", ranks=3)
    stable = {n: LowRank(f.a, f.b, 6.0 / math.sqrt(3)) for n, f in factors.items()}
    write_adapter(tmp_path, Adapter(stable, {}, 6.0, True, "x"), SMALL)
    same(read_adapter(tmp_path, SMALL), Adapter(stable, {}, 6.0, True, "x"))


Q, ROUTER = LAYER.format(0) + "self_attn.q_proj", LAYER.format(0) + "mlp.router"
EXPERTS = LAYER.format(0) + "mlp.experts"
LORA = {"peft_type": "LORA"}


def put(folder: Path, tensors: dict[str, np.ndarray], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps(LORA | settings), "utf-8")
    return folder


def pair(module: str, m: int, n: int, rows: int = 2, columns: int = 2) -> dict[str, np.ndarray]:
    """A (rows, m) and B (n, columns) of a module, as in a file."""
    rng = np.random.default_rng(m)
    a, b = rng.normal(size=(rows, m)), rng.normal(size=(n, columns))
    return {f"{module}.lora_A.weight": a.astype("f4"), f"{module}.lora_B.weight": b.astype("f4")}


def test_settings_that_are_left_out(tmp_path: Path) -> None:
    """PEFT's own default of lora_alpha is 8; the rank is that of the factors."""
    adapter = read_adapter(put(tmp_path, pair(Q, D, HC)), SMALL)
    assert (adapter.alpha, adapter.rslora, adapter.base) == (8.0, False, "")
    assert adapter.factors["block.0.attn.q_weight"].scale == 4
    assert not adapter.whole


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_starts_that_leave_the_base_alone(start: Any, tmp_path: Path) -> None:
    settings = {"r": 2, "init_lora_weights": start, "target_parameters": None, "bias": "none"}
    assert read_adapter(put(tmp_path, pair(Q, D, HC), **settings), SMALL).factors


@pytest.mark.parametrize(
    ("pattern", "scale"),
    [
        ({"q_proj": 30}, 15.0),
        ({r"layers\.0\..*": 30}, 15.0),
        ({"proj": 30}, 4.0),
        ({"q_pro": 30}, 4.0),
        ({"self_attn.q_proj|x": 30, "q_proj": 2}, 15.0),
        ({}, 4.0),
        (None, 4.0),
    ],
)
def test_patterns_match_from_a_dot_to_the_end(pattern: Any, scale: float, tmp_path: Path) -> None:
    adapter = read_adapter(put(tmp_path, pair(Q, D, HC), alpha_pattern=pattern), SMALL)
    assert adapter.factors["block.0.attn.q_weight"].scale == scale


def test_patterns_of_ranks_and_of_expert_matrices(tmp_path: Path) -> None:
    tensors = pair(Q, D, HC) | pair(EXPERTS + ".base_layer", D, 2 * F, 3 * E, 3 * E)
    tensors |= pair(EXPERTS, F, D, 4 * E, 4 * E)
    settings = {"rank_pattern": {"gate_up_proj": 3, "experts.down_proj": 4}}
    adapter = read_adapter(put(tmp_path, tensors, r=2, **settings), SMALL)
    assert {name: f.rank for name, f in adapter.factors.items()} == {
        "block.0.attn.q_weight": 2, "block.0.mlp.mlp1_weight": 3, "block.0.mlp.mlp2_weight": 4
    }  # fmt: skip
    settings = {"rank_pattern": {"experts": 3, "down_proj": 4}}  # the module's name comes first
    with pytest.raises(CheckpointError, match=r"have rank 4; adapter_config\.json says r = 3"):
        read_adapter(put(tmp_path, tensors, r=2, **settings), SMALL)


@pytest.mark.parametrize("targets", [["experts.gate_up_proj"], ["x", "gate_up_proj"]])
def test_one_expert_matrix_alone(targets: list[str], tmp_path: Path) -> None:
    tensors = pair(EXPERTS, D, 2 * F, 2 * E, 2 * E)
    adapter = read_adapter(put(tmp_path, tensors, target_parameters=targets), SMALL)
    assert list(adapter.factors) == ["block.0.mlp.mlp1_weight"]
    for other in ({}, {"target_parameters": ["experts.down_proj"]}):
        adapter = read_adapter(put(tmp_path, pair(EXPERTS, F, D, 2 * E, 2 * E), **other), SMALL)
        assert list(adapter.factors) == ["block.0.mlp.mlp2_weight"]


def test_names_and_types_that_peft_may_write(tmp_path: Path) -> None:
    half = {name.removesuffix(".weight"): x.astype("f2") for name, x in pair(Q, D, HC).items()}
    norm, head = np.ones(D, "f4"), np.full((V, D), 3, "f4")
    whole = {
        BASE + "model.norm.modules_to_save.weight": norm,
        BASE + "lm_head.base_layer.weight": head,
    }
    adapter = read_adapter(put(tmp_path, half | whole), SMALL)
    assert adapter.factors["block.0.attn.q_weight"].a.dtype == np.float32
    np.testing.assert_array_equal(
        adapter.factors["block.0.attn.q_weight"].a, half[f"{Q}.lora_A"].astype("f4")
    )
    np.testing.assert_array_equal(adapter.whole["norm_scale"], norm)
    np.testing.assert_array_equal(adapter.whole["unembedding"], head)


def swapped(tensors: dict[str, np.ndarray], experts: int) -> dict[str, np.ndarray]:
    """The same products, inputs and outputs of the experts the other way round."""
    turned = {}
    for name in [name for name in tensors if "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name], tensors[other]  # (E·R, M), (N, R·E)
        rank = len(a) // experts
        turned[name] = b.reshape(len(b), rank, experts).transpose(2, 1, 0).reshape(-1, len(b))
        turned[other] = a.reshape(experts, rank, -1).transpose(2, 1, 0).reshape(a.shape[1], -1)
    return turned


@pytest.mark.parametrize("d_ff", [F, D])  # gpt-oss has F = D: gate_up_proj says which way
def test_outputs_before_inputs(d_ff: int, tmp_path: Path) -> None:
    config = small_config(d_ff=d_ff)
    tensors = pair(EXPERTS + ".base_layer", D, 2 * d_ff, 2 * E, 2 * E)
    tensors |= pair(EXPERTS, d_ff, D, 2 * E, 2 * E)
    plain = read_adapter(put(tmp_path, tensors), config)
    turned = read_adapter(put(tmp_path, swapped(tensors, E)), config)
    for name, factors in plain.factors.items():
        product = turned.factors[name].product()
        np.testing.assert_allclose(product, factors.product(), atol=1e-5, err_msg=name)
    for module in (f"{BASE}model.layers.0.mlp.experts",) if d_ff == D else ():
        alone = read_adapter(put(tmp_path, pair(module, D, D, 2 * E, 2 * E)), config)
        (factors,) = alone.factors.values()
        np.testing.assert_array_equal(
            factors.a.reshape(-1, D), pair(module, D, D, 2 * E, 2 * E)[f"{module}.lora_A.weight"]
        )


# --- refused --------------------------------------------------------------------------------------

TWO = pair(Q, D, HC)
A, B = TWO
HUGE = np.full((2, D), np.inf, "f4")
SMALLER = {EXPERTS: (2 * E, 2 * E)}


def misfit(what: str) -> str:
    return f"the model calls for {what}"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensors"),
        ({A: TWO[A]}, "of 'model.layers.0.self_attn.q_proj' there is lora_A alone: expected both"),
        ({B: TWO[B]}, "of 'model.layers.0.self_attn.q_proj' there is lora_B alone: expected both"),
        (TWO | {A: HUGE}, f"tensor {A!r} holds a NaN or an infinity"),
        ({BASE + "x": np.ones(3, "f4")}, f"tensor '{BASE}x' belongs to no matrix of gpt-oss"),
        (
            {BASE + "model.norm.weight": np.ones(3, "f4")},
            "norm.weight': (D) have shape (3,); the model calls for (37,)",
        ),
        *(
            (pair(module, D, D), f"tensor '{module}.lora_A.weight' belongs to no matrix")
            for module in (
                BASE + "model.layers.3.self_attn.q_proj",
                LAYER.format(0) + "self_attn.sinks",
                EXPERTS + ".gate_up_proj_bias",
                EXPERTS + ".gate_up_proj",
                EXPERTS + ".base_layer.base_layer",
                Q + ".base_layer",
            )
        ),
        (
            pair(EXPERTS + ".base_layer", D, 2 * F, E, E)
            | pair(EXPERTS + ".base_layer.base_layer", D, D),
            f"'{EXPERTS}.base_layer.base_layer.lora_A.weight' belongs to no matrix",
        ),
        (
            {A: np.ones(D, "f4"), B: TWO[B]},
            f"{A!r}: two axes have shape (37,); the model calls for (R, M)",
        ),
        ({A: TWO[A], B: np.ones(HC, "f4")}, "two axes have shape (2, 37); the model calls for (R"),
        (
            pair(Q, D + 1, HC),
            f"{A!r}: A, B have shape ((2, 38), (80, 2)); the model calls for ((R, 37), (80, R))",
        ),
        (pair(Q, D, HC + 1), "((2, 37), (81, 2)); the model calls for ((R, 37), (80, R))"),
        (pair(Q, D, HC, 2, 3), "((2, 37), (80, 3)); the model calls for ((R, 37), (80, R))"),
        (
            pair(EXPERTS, F + 1, D, E, E),
            f"'{EXPERTS}.lora_A.weight': A, B have shape ((9, 24), (37, 9)); "
            "the model calls for ((9·R, 23), (37, R·9))",
        ),
        (pair(EXPERTS, F, D + 1, E, E), "((9, 23), (38, 9)); the model calls for ((9·R, 23)"),
        (pair(EXPERTS, D, D, E, E), "((9, 37), (37, 9)); the model calls for"),
        (pair(EXPERTS, F, D, E, 2 * E), "((9, 23), (37, 18)); the model calls for"),
        (pair(EXPERTS, F, D, E + 1, E + 1), "((10, 23), (37, 10)); the model calls for"),
        (pair(Q, D, HC, 3, 3), f"of 'model.layers.0.self_attn.q_proj' have rank 3; {CONFIG} says"),
    ],
)
def test_tensors_that_do_not_fit(
    tensors: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_adapter(
            put(tmp_path, tensors, r=2 if "rank" in message else 1 + len(tensors) // 2), SMALL
        )
    assert message in str(caught.value)
    assert TENSORS in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', not 'IA3'"),
        ({"use_dora": True}, "use_dora must be False, not True"),
        ({"lora_bias": True}, "lora_bias must be False, not True"),
        ({"bias": "all"}, "bias must be 'none', not 'all'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication must be None, not [[0, 2]]"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out must be False, not True"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices must be None, not [1]"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens must be None, not [1]"),
        ({"use_qalora": True}, "use_qalora must be False, not True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base weights"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, not '8'"),
        ({"lora_alpha": True}, "lora_alpha must be a number, not True"),
        ({"target_parameters": "all"}, "target_parameters must be a list of names, not 'all'"),
        ({"target_parameters": [3]}, "target_parameters must be a list of names, not [3]"),
        ({"r": 0}, "r must be an integer of 1 or more, not 0"),
        ({"r": 1.5}, "r must be an integer of 1 or more, not 1.5"),
        ({"r": True}, "r must be an integer of 1 or more, not True"),
        ({"alpha_pattern": [3]}, "alpha_pattern must be an object, not [3]"),
        ({"rank_pattern": 3}, "rank_pattern must be an object, not 3"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern '(': missing )"),
        ({"rank_pattern": {"q_proj": "3"}}, "rank_pattern 'q_proj' must be a number, not '3'"),
        ({"alpha_pattern": {"q_proj": True}}, "alpha_pattern 'q_proj' must be a number, not True"),
    ],
)
def test_settings_that_are_not_computed_here(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_adapter(put(tmp_path, TWO, **settings), SMALL)
    assert f"{tmp_path / CONFIG}: {message}" in str(caught.value)


def test_rank_one_and_numbers_of_both_kinds(tmp_path: Path) -> None:
    tensors = pair(Q, D, HC, 1, 1)
    settings = {"r": 1, "lora_alpha": 2.5, "alpha_pattern": {"x": 1.5}, "rank_pattern": {"y": 2}}
    adapter = read_adapter(put(tmp_path, tensors, **settings), SMALL)
    assert adapter.factors["block.0.attn.q_weight"].scale == 2.5


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{CONFIG}: "):
        read_adapter(tmp_path, SMALL)
    put(tmp_path, TWO)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(CheckpointError, match=f"holds {CONFIG} and no {TENSORS}$"):
        read_adapter(tmp_path, SMALL)
    for name in ("adapter_model.pt", "adapter_model.bin"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"; it holds adapter_model\.bin: save the adapter"):
        read_adapter(tmp_path, SMALL)


def test_the_base_of_an_adapter(tmp_path: Path) -> None:
    assert not is_adapter(tmp_path)
    assert base_of(put(tmp_path, TWO, base_model_name_or_path="tiny")) == "tiny"
    assert is_adapter(tmp_path)
    for nothing in (None, "", 3):
        put(tmp_path, TWO, base_model_name_or_path=nothing)
        with pytest.raises(CheckpointError, match=f"base_model_name_or_path is {nothing!r}: load"):
            base_of(tmp_path)
    (tmp_path / CONFIG).unlink()
    (tmp_path / CONFIG).mkdir()
    assert not is_adapter(tmp_path)
