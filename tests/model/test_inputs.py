"""What a model does with input that is not right: errors that name it, and no wrong numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from gptoss_ref import layers
from gptoss_ref.backend import NUMPY, get_backend
from gptoss_ref.checkpoint import Checkpoint
from gptoss_ref.errors import CheckpointError, GptOssError, TokenError
from gptoss_ref.model import Model, load
from gptoss_ref.numerics import FLOAT64
from gptoss_ref.weights import MXFP4, MLPWeights, ModelWeights
from tests.support.agreement import POLICIES
from tests.support.checks_model import build_model, in_chunks, taps_of
from tests.support.distance import relative_l2
from tests.support.strategies import as_weights, random_arrays, random_tokens, small_config

CONFIG = small_config(max_position_embeddings=20)


@pytest.fixture(scope="module", params=["numpy", "numba"])
def model(request: pytest.FixtureRequest) -> Model:
    return build_model(CONFIG, random_arrays(CONFIG, 0), "float32", get_backend(request.param))


@pytest.mark.parametrize(
    "sequence",
    [list, tuple, np.array, partial(np.array, dtype=np.uint8), iter],
    ids=["list", "tuple", "int64", "uint8", "iterator"],
)
def test_any_sequence_of_ints(model: Model, sequence: Callable[[list[int]], Any]) -> None:
    logits = model(sequence([3, 1, 4]))
    assert logits.shape == (3, CONFIG.vocab_size)
    assert np.array_equal(logits, model([3, 1, 4]))


def test_a_generator_of_tokens(model: Model) -> None:
    assert np.array_equal(model(t for t in (3, 1, 4)), model([3, 1, 4]))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "empty"),
        (np.array([], np.int64), "empty"),
        ([1, 71], r"71.*position 1.*70"),
        ([1, 2, -1], r"-1.*position 2"),
        ([2**40], str(2**40)),
        ([2**70], "integer|range"),
        ([1.0, 2.0], "integer"),
        ([[1, 2]], "shape"),
        (np.ones((2, 2), np.int64), "shape"),
        (["1"], "integer"),
        ("Hello", r"one row of integers.*tokenizer\.encode"),
        ([0] * 21, r"21.*20"),
    ],
)
def test_bad_tokens(model: Model, tokens: Any, message: str) -> None:
    with pytest.raises(TokenError, match=message):
        model(tokens)


def test_a_context_too_long_in_steps(model: Model) -> None:
    cache = model.new_cache()
    model([1] * 19, cache=cache)
    with pytest.raises(TokenError, match=r"21.*20"):
        model([1, 1], cache=cache)
    assert cache.length == 19
    model([1], cache=cache)
    with pytest.raises(TokenError, match=r"21.*20"):
        model([1], cache=cache)


def test_positions_in_errors_count_the_cache(model: Model) -> None:
    cache = model.new_cache()
    model([1] * 5, cache=cache)
    with pytest.raises(TokenError, match=r"99.*position 6"):
        model([1, 99], cache=cache)


def test_unknown_policy_and_backend() -> None:
    weights = as_weights(random_arrays(CONFIG, 0))
    with pytest.raises(GptOssError, match="float16"):
        Model(CONFIG, weights, policy="float16")
    with pytest.raises(GptOssError, match="cuda"):
        Model(CONFIG, weights, backend="cuda")
    assert get_backend("numpy") is NUMPY
    with pytest.raises(GptOssError, match="expected one of auto, numba, numpy"):
        get_backend("cuda", FLOAT64)


def test_the_backend_that_computes_is_the_one_that_is_named() -> None:
    """Kernels by default; the NumPy layers under the policies that kernels do not follow."""
    weights = as_weights(random_arrays(CONFIG, 0))
    assert Model(CONFIG, weights).backend is get_backend("numba")
    assert get_backend("numba").name == "numba"
    for backend in ("numba", "numpy"):
        for policy in ("float64", "bfloat16"):
            assert Model(CONFIG, weights, policy=policy, backend=backend).backend is NUMPY
    mine = dataclasses.replace(NUMPY, name="mine")
    assert Model(CONFIG, weights, policy="float64", backend=mine).backend is mine
    with pytest.raises(GptOssError, match="policy float64 needs the numpy backend"):
        Model(CONFIG, weights, policy="float64", backend=get_backend("numba"))([1])


@pytest.mark.parametrize("policy", POLICIES)
def test_logits_dtype(policy: str) -> None:
    logits = build_model(CONFIG, random_arrays(CONFIG, 0), policy)([1, 2])
    assert logits.dtype == (np.float64 if policy == "float64" else np.float32)


@pytest.mark.parametrize(
    ("policy", "backend"), [*((policy, "numpy") for policy in POLICIES), ("float32", "numba")]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_propagate(policy: str, backend: str, bad: float) -> None:
    """A NaN or infinite embedding spoils its own logits and those of all who attend to it.

    In one pass it may also reach earlier rows, as in torch: their weight for it is 0, and 0 · NaN
    is NaN. What a cache held before is out of its reach.
    """
    arrays = random_arrays(CONFIG, 0)
    arrays["embedding"][7, 3] = bad
    model = build_model(CONFIG, arrays, policy, get_backend(backend))
    tokens = [1, 2, 3, 7, 4, 5]
    with np.errstate(all="ignore"):
        assert np.isnan(model(tokens)[3:]).all()
        logits = in_chunks(model, tokens, [3, 1, 1, 1])
    assert np.isfinite(logits[:3]).all()
    assert np.isnan(logits[3:]).all()


def test_large_activations_do_not_overflow() -> None:
    """45,344, seen in the 120b, and more: float32 and bfloat16 have room where float16 has not."""
    arrays = random_arrays(CONFIG, 0)
    for n in range(CONFIG.num_hidden_layers):
        arrays[f"block.{n}.mlp.mlp2_bias"] = arrays[f"block.{n}.mlp.mlp2_bias"] * 2.0**20
    tokens = random_tokens(CONFIG, 9, 0)
    exact = build_model(CONFIG, arrays, "float64")(tokens)
    with np.errstate(over="raise", invalid="raise"):
        narrow = build_model(CONFIG, arrays, "float32")(tokens)
        compiled = build_model(CONFIG, arrays, "float32", get_backend("numba"))(tokens)
        rounded = build_model(CONFIG, arrays, "bfloat16")(tokens)
    assert relative_l2(narrow, exact) < 1e-4
    assert relative_l2(compiled, exact) < 1e-4
    assert np.isfinite(rounded).all()


MXFP4_CONFIG = small_config(d_model=32, d_ff=64)


def with_a_scale_of_255(scale_255: str | None, name: str = "mlp1_weight") -> ModelWeights:
    """Block 1, expert 3, row 2 has one scale byte of 255; the meaning is set where it is given."""
    arrays = random_arrays(MXFP4_CONFIG, 0, mxfp4=True)
    _blocks, scales = arrays[f"block.1.mlp.{name}"]
    scales[3, 2, 0] = 255
    weights = as_weights(arrays)

    def marked(n: int, mlp: MLPWeights) -> MLPWeights:
        changes = {}
        for field in ("mlp1_weight", "mlp2_weight"):
            matrix = getattr(mlp, field)
            assert isinstance(matrix, MXFP4)
            setting = {} if scale_255 is None else {"scale_255": scale_255}
            changes[field] = dataclasses.replace(
                matrix, name=f"block.{n}.mlp.{field}.scales (model-2.safetensors)", **setting
            )
        return dataclasses.replace(mlp, **changes)

    return dataclasses.replace(
        weights,
        blocks=tuple(
            dataclasses.replace(block, mlp=marked(n, block.mlp))
            for n, block in enumerate(weights.blocks)
        ),
    )


TOKENS = random_tokens(MXFP4_CONFIG, 12, 0)  # routed to expert 3 of block 1 at least once


@pytest.mark.parametrize("name", ["mlp1_weight", "mlp2_weight"])
@pytest.mark.parametrize("policy", POLICIES)
def test_scale_255_as_an_error_names_tensor_and_file(policy: str, name: str) -> None:
    model = Model(MXFP4_CONFIG, with_a_scale_of_255("error", name), policy=policy)
    with pytest.raises(CheckpointError, match=rf"block\.1\.mlp\.{name}.*model-2\.safetensors.*255"):
        model(TOKENS)


@pytest.mark.parametrize("policy", POLICIES)
def test_scale_255_as_nan_spoils_who_is_routed_there(policy: str) -> None:
    model = Model(MXFP4_CONFIG, with_a_scale_of_255("nan"), policy=policy)
    with np.errstate(all="ignore"):
        taps = taps_of(partial(model, TOKENS))
    logits = taps["logits"]
    hit = (taps["block.1.mlp.expert_indices"] == 3).any(-1)
    assert hit.any()
    assert not hit.all()
    assert np.isnan(logits[hit]).all()
    first = int(hit.argmax())
    assert np.isfinite(model(TOKENS[:first])).all()  # alone: 0 · NaN reaches earlier rows


def test_scale_255_as_an_exponent_is_two_to_the_128() -> None:
    """Exact in float64: the same as multiplying those 32 values by hand."""
    weights = with_a_scale_of_255("exponent")
    matrix = weights.blocks[1].mlp.mlp1_weight
    assert isinstance(matrix, MXFP4)
    values = layers.mxfp4.decode(
        matrix.blocks, matrix.scales, scale_255="exponent", dtype=np.float64
    )
    dense = dataclasses.replace(
        weights,
        blocks=tuple(
            dataclasses.replace(b, mlp=dataclasses.replace(b.mlp, mlp1_weight=values))
            if n == 1
            else b
            for n, b in enumerate(weights.blocks)
        ),
    )
    assert np.abs(values[3, 2, :32]).max() >= 2.0**127
    ours, expected = (Model(MXFP4_CONFIG, w, policy="float64")(TOKENS) for w in (weights, dense))
    assert np.isfinite(expected).all()
    assert relative_l2(ours, expected) < 1e-12


def test_loading_makes_scale_255_an_error_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the byte means is decided when loading, for every MXFP4 matrix of the checkpoint."""
    weights = with_a_scale_of_255(None)
    fields: dict[str, Any] = {field.name: None for field in dataclasses.fields(Checkpoint)}
    fields |= {"config": MXFP4_CONFIG, "weights": weights, "layout": "hf", "nbytes": 0}
    fields |= {"generation": {}}
    fake: Callable[..., Checkpoint] = lambda *a, **k: Checkpoint(**fields)  # noqa: E731
    monkeypatch.setattr("gptoss_ref.checkpoint.load.load_checkpoint", fake)
    with pytest.raises(CheckpointError, match="255"):
        load("anywhere")(TOKENS)
    with np.errstate(all="ignore"):
        assert np.isnan(load("anywhere", scale_255="nan")(TOKENS)).any()
    exponent = load("anywhere", scale_255="exponent", policy="float64")(TOKENS)
    assert np.isfinite(exponent).all()
    with pytest.raises(GptOssError, match="zero"):
        load("anywhere", scale_255="zero")  # type: ignore[arg-type]
