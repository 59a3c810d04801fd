"""Merging an adapter: W + s B A, rounded once, and the error as it is measured from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gptoss_ref as gr
from gptoss_ref.checkpoint.merge import _ratio
from gptoss_ref.errors import CheckpointError
from gptoss_ref.training import Adapter, LoRA, LowRank, write_adapter
from tests.support.checkpoint_files import write_hf, write_hf_bfloat16, write_openai
from tests.support.strategies import mxfp4_values

WRITERS = {"openai": write_openai, "hf": write_hf, "hf-bfloat16": write_hf_bfloat16}
TARGETS: dict[str, dict[str, Any]] = {
    "openai": {"layout": "openai"},
    "hf": {"layout": "hf", "experts": "mxfp4"},
    "hf-bfloat16": {"layout": "hf", "experts": "bfloat16"},
}
LORA = LoRA(rank=3, alpha=4.0, targets=("block.1.attn.k_weight", "*.attn.out_weight",
                                        "block.2.mlp.mlp?_weight", "unembedding"))  # fmt: skip


def values(weight: Any) -> np.ndarray:
    """A stored weight as float64, by ml_dtypes."""
    if hasattr(weight, "blocks"):
        return mxfp4_values(weight.blocks, weight.scales)
    if weight.dtype == np.uint16:
        bits = np.ascontiguousarray(weight)
        wide: np.ndarray = bits.view(ml_dtypes.bfloat16).astype(np.float64)
        return wide
    return weight.astype(np.float64)


def folders(tmp_path: Path, source: str) -> tuple[Path, Path, Adapter]:
    """A checkpoint, an adapter for it, and the same in memory."""
    base = WRITERS[source](tmp_path / "base", seed=2)
    model = gr.load(base, backend="numpy")
    rng = np.random.default_rng(0)
    factors = {
        name: LowRank(f.a, rng.normal(0, 0.2, f.b.shape).astype(np.float32), f.scale)
        for name, f in LORA.start(model.weights, 0).items()
    }
    sinks = rng.normal(size=6).astype(np.float32)
    adapter = Adapter(factors, {"block.0.attn.sinks": sinks}, LORA.alpha, False, str(base))
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", adapter, model.config)
    return base, tmp_path / "adapter", adapter


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", WRITERS)
def test_merging_adds_and_rounds_once(source: str, target: str, tmp_path: Path) -> None:
    base, folder, adapter = folders(tmp_path, source)
    before = gr.load_checkpoint(base).weights.named()
    done = gr.convert(folder, tmp_path / "merged", **TARGETS[target])
    plain = gr.convert(base, tmp_path / "plain", **TARGETS[target])
    after = gr.load_checkpoint(tmp_path / "merged").weights.named()
    untouched = gr.load_checkpoint(tmp_path / "plain").weights.named()
    assert plain.merged == ()
    reported = {merged.weight: merged for merged in done.merged}
    assert set(reported) == {*adapter.factors, *adapter.whole}
    for name, stored in after.items():
        if name not in reported:
            np.testing.assert_array_equal(values(stored), values(untouched[name]), err_msg=name)
            continue
        old = values(before[name])
        if name in adapter.whole:
            exact = adapter.whole[name].astype(np.float64)
        else:
            f = adapter.factors[name]
            exact = old + f.scale * np.matmul(f.b.astype(np.float64), f.a.astype(np.float64))
        error = np.linalg.norm(values(stored) - exact)
        merged = reported[name]
        assert merged.error == pytest.approx(error / np.linalg.norm(exact), rel=1e-6)
        assert merged.lost == pytest.approx(error / np.linalg.norm(exact - old), rel=1e-6)
        if merged.stored == "bfloat16":
            near = exact.astype(ml_dtypes.bfloat16).astype(np.float64)  # rounded twice, by float32
            assert (abs(values(stored) - exact) <= abs(near - exact)).all(), name
        else:
            assert merged.stored == "mxfp4"
            assert name.endswith(("mlp1_weight", "mlp2_weight"))
            assert 0.03 < merged.error < 0.3  # four bits


def test_the_summary_says_how_much_is_lost(tmp_path: Path) -> None:
    _, folder, _ = folders(tmp_path, "hf")
    said = str(gr.convert(folder, tmp_path / "merged"))
    assert "merged into bfloat16: 7 weights; rounding error at most 0." in said
    assert "merged into mxfp4: 2 weights; rounding error at most " in said
    assert "of the adapter's change (block.2.mlp.mlp" in said


def test_a_merged_model_answers_as_the_adapted_one(tmp_path: Path) -> None:
    """Into bfloat16, where little is lost; and the adapter has an effect."""
    base, folder, _ = folders(tmp_path, "hf-bfloat16")
    gr.convert(folder, tmp_path / "merged")
    tokens = np.arange(20)
    adapted = gr.load(folder, backend="numpy")(tokens)
    merged = gr.load(tmp_path / "merged", backend="numpy")(tokens)
    plain = gr.load(base, backend="numpy")(tokens)
    assert np.linalg.norm(merged - adapted) < 0.05 * np.linalg.norm(plain - adapted)


def test_an_adapter_that_overflows(tmp_path: Path) -> None:
    base, folder, adapter = folders(tmp_path, "hf")
    name = "block.1.attn.k_weight"
    f = adapter.factors[name]
    huge = LowRank(f.a * np.float32(1e30), f.b * np.float32(1e30), f.scale)
    config = gr.load_checkpoint(base).config
    write_adapter(folder, Adapter({name: huge}, {}, 4.0, False, str(base)), config)
    gr.convert(folder, tmp_path / "large", layout="hf")  # 1e60: infinite in bfloat16
    with pytest.raises(CheckpointError, match="NaN or an infinity"):
        gr.convert(tmp_path / "large", tmp_path / "again", experts="mxfp4", adapter=folder)
    assert not (tmp_path / "again").exists()


def spoilt(base: Path, change: Any) -> None:
    """Changes the tensors of a checkpoint of one file."""
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors")


K = "model.layers.1.self_attn.k_proj.weight"
SCALES = "model.layers.2.mlp.experts.down_proj_scales"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_merging_into_wider_floats(dtype: str, tmp_path: Path) -> None:
    """The sum is rounded to the dtype that the matrix has, in either layout."""
    base, folder, adapter = folders(tmp_path, "hf")

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if tensors[name].dtype == torch.bfloat16:
                tensors[name] = tensors[name].to(getattr(torch, dtype))

    spoilt(base, widen)
    before = gr.load_checkpoint(base).weights.named()["block.1.attn.k_weight"].astype(np.float64)
    f = adapter.factors["block.1.attn.k_weight"]
    added = f.scale * (f.b.astype(np.float64) @ f.a.astype(np.float64))
    exact = (before + added).astype(dtype)
    for layout, name, rows in (
        ("hf", K, slice(None)),
        ("openai", "block.1.attn.qkv.weight", slice(72, 96)),
    ):
        done = gr.convert(folder, tmp_path / layout, layout=layout)
        after = load_file(tmp_path / layout / "model.safetensors")[name].numpy()[rows]
        assert after.dtype == dtype
        # products in another order: a few units of float64, which no narrower rounding shows here
        np.testing.assert_allclose(after, exact, rtol=1e-12 if dtype == "float64" else 0)
        (merged,) = (m for m in done.merged if m.weight == "block.1.attn.k_weight")
        assert merged.stored == dtype
        error = np.linalg.norm(exact.astype(np.float64) - (before + added))
        assert merged.lost == pytest.approx(error / np.linalg.norm(added), rel=1e-6, abs=1e-15)


def test_joined_rows_of_two_dtypes(tmp_path: Path) -> None:
    base, folder, _ = folders(tmp_path, "hf")
    spoilt(base, lambda tensors: tensors.update({K: tensors[K].float()}))
    with pytest.raises(CheckpointError, match=r"have dtypes BF16, F32; block.1.attn.qkv.weight n"):
        gr.convert(folder, tmp_path / "merged", layout="openai")


def test_what_is_not_finite_before_the_merge(tmp_path: Path) -> None:
    base, folder, _ = folders(tmp_path, "hf")
    before = "before the adapter is added: expected finite weights"
    spoilt(base, lambda tensors: tensors[SCALES].__setitem__((3, 20, 1), 255))
    said = (
        rf"^block\.2\.mlp\.mlp2_weight: holds a NaN or an infinity \(a scale byte of 255\) {before}"
    )
    with pytest.raises(CheckpointError, match=said):
        gr.convert(folder, tmp_path / "merged")
    spoilt(base, lambda tensors: tensors[K].__setitem__((3, 20), torch.nan))
    said = rf"^block\.1\.attn\.k_weight: holds a NaN or an infinity {before}"
    with pytest.raises(CheckpointError, match=said):
        gr.convert(folder, tmp_path / "merged")


def test_an_adapter_that_adds_nothing(tmp_path: Path) -> None:
    base, folder, adapter = folders(tmp_path, "hf")
    name = "block.1.attn.k_weight"
    f = adapter.factors[name]
    nothing = Adapter({name: LowRank(f.a, 0 * f.b, f.scale)}, {}, 4.0, False, str(base))
    write_adapter(folder, nothing, gr.load_checkpoint(base).config)
    (merged,) = gr.convert(folder, tmp_path / "merged").merged
    assert (merged.error, merged.lost) == (0, 0)
    assert (_ratio(2.0, 0.0), _ratio(0.0, 0.0), _ratio(1.0, 4.0)) == (np.inf, 0, 0.5)
