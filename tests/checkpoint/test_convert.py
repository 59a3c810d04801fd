"""Converting: kept to the byte where it can be, refused where not, and never left half done."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gptoss_ref import ModelConfig, convert, load_checkpoint
from gptoss_ref.checkpoint import Conversion
from gptoss_ref.checkpoint.adapter import Adapter, LowRank
from gptoss_ref.checkpoint.peft import write_adapter
from gptoss_ref.errors import CheckpointError, ConfigError, GptOssError
from gptoss_ref.layers.mxfp4 import encode
from tests.support.checkpoint_files import (
    SIZES,
    dequantise,
    hf_config,
    openai_tensors,
    write_hf,
    write_hf_bfloat16,
    write_openai,
)

WRITERS = {"openai": write_openai, "hf": write_hf, "hf-bfloat16": write_hf_bfloat16}
OPTIONS: dict[str, dict[str, Any]] = {
    "openai": {"layout": "openai", "experts": "mxfp4"},
    "hf": {"layout": "hf", "experts": "mxfp4"},
    "hf-bfloat16": {"layout": "hf", "experts": "bfloat16"},
}
INDEX = "model.safetensors.index.json"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor, read by safetensors itself."""
    result: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        result |= load_file(file)
    return result


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


@pytest.mark.parametrize(("source", "target"), [*itertools.product(WRITERS, WRITERS)])
def test_every_direction_is_byte_exact(tmp_path: Path, source: str, target: str) -> None:
    """From each layout to each: the result is what the independent writer writes for the target.

    Blocks whose largest code is 4 or 6 are the ones that encoding reproduces to the byte.
    """
    src = WRITERS[source](tmp_path / "src", seed=5, shards=2, canonical=True)
    result = convert(src, tmp_path / "dst", **OPTIONS[target])
    expected = WRITERS[target](tmp_path / "expected", seed=5, canonical=True)
    assert_same(tensors_of(tmp_path / "dst"), tensors_of(expected))
    assert load_checkpoint(tmp_path / "dst").layout == target
    assert result.files == ("model.safetensors",)
    assert (result.layout, result.experts) == (
        OPTIONS[target]["layout"],
        OPTIONS[target]["experts"],
    )
    assert result.nbytes == load_checkpoint(expected).nbytes
    assert result.notes == ()
    assert json.loads(json.dumps(result.to_json()))["path"] == str(tmp_path / "dst")
    assert str(tmp_path / "dst") in str(result)


@pytest.mark.parametrize("rule", ["floor", "even", "fit"])
def test_mxfp4_values_survive_bfloat16(tmp_path: Path, rule: Any) -> None:
    """Any MXFP4 block: exact in bfloat16, and equal again on the way back, if in other bytes."""
    src = write_hf(tmp_path / "src", seed=6)
    convert(src, tmp_path / "dense", experts="bfloat16")
    convert(tmp_path / "dense", tmp_path / "back", experts="mxfp4", rule=rule)
    before, after = tensors_of(src), tensors_of(tmp_path / "back")
    dense = tensors_of(tmp_path / "dense")
    changed = 0
    for name in [n for n in before if n.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        old = dequantise(before[name], before[stem + "_scales"])
        new = dequantise(after[name], after[stem + "_scales"])
        assert np.array_equal(old, new)
        assert np.array_equal(np.signbit(old), np.signbit(new))
        assert np.array_equal(old.swapaxes(1, 2), dense[stem].double().numpy())
        changed += int(not torch.equal(before[name], after[name]))
    assert changed, "these blocks are meant to include some that another scale can express"


def test_extreme_scales_are_exact_in_bfloat16(tmp_path: Path) -> None:
    """Scale bytes from 0 (2^-127, subnormal results) to 254, as far as the values fit."""
    src = write_hf(tmp_path / "src")
    tensors = tensors_of(src)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    scales, blocks = tensors[name + "_scales"], tensors[name + "_blocks"]
    scales[0] = torch.arange(384).reshape(192, 2) % 255
    blocks[0, (scales[0] > 252).nonzero(as_tuple=True)[0]] &= 0x99  # magnitudes 0 and .5
    save_file(tensors, src / "model.safetensors")
    convert(src, tmp_path / "dst", experts="bfloat16")
    dense = tensors_of(tmp_path / "dst")[name].double().numpy()
    assert np.array_equal(dense.swapaxes(1, 2), dequantise(blocks, scales))
    assert np.abs(dense[dense != 0]).min() < 2.0**-126
    assert np.abs(dense).max() > 2.0**125


def test_small_pieces_make_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies, decoding and encoding in several pieces a tensor, the last of them shorter."""
    src = write_hf(tmp_path / "src", seed=5, canonical=True)
    convert(src, tmp_path / "dense", experts="bfloat16")
    convert(tmp_path / "dense", tmp_path / "back", experts="mxfp4")
    module = importlib.import_module("gptoss_ref.checkpoint.convert")
    monkeypatch.setattr(module, "_TILE_VALUES", 7 * 64)  # of 64 rows of 96, 192 of 64
    monkeypatch.setattr(module, "_COPY_VALUES", 1000)
    calls: list[tuple[int, int, str]] = []
    convert(
        src, tmp_path / "dense 2", experts="bfloat16", progress=lambda *call: calls.append(call)
    )
    copied = [done for done, _, name in calls if name == "lm_head.weight"]
    assert np.diff(copied).tolist() == [2000] * 7 + [2 * 384]  # of 131 * 64 values
    assert [*module._tiles(2, 7 * 64 + 1)] == [slice(0, 1), slice(1, 2)]
    pieces: list[str] = []
    convert(
        tmp_path / "dense 2", tmp_path / "back 2", experts="mxfp4",
        progress=lambda *call: pieces.append(call[2]),
    )  # fmt: skip
    name = "model.layers.0.mlp.experts.{}_proj_blocks"
    assert pieces.count(name.format("gate_up")) == 5 * 28  # seven of 192 rows
    assert pieces.count(name.format("down")) == 5 * 16  # four of 64 rows
    for one in ("dense", "back"):
        assert listing(tmp_path / one) == listing(tmp_path / f"{one} 2")


def damage(folder: Path, name: str, index: tuple, value: float) -> Path:
    tensors = tensors_of(folder)
    tensors[name][index] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_values_without_a_counterpart_are_refused(tmp_path: Path) -> None:
    stem = "model.layers.1.mlp.experts.down_proj"

    def refused(src: Path, message: str, experts: Any) -> None:
        with pytest.raises(CheckpointError, match=message):
            convert(src, tmp_path / "dst", experts=experts)
        assert not (tmp_path / "dst").exists()

    src = damage(write_hf(tmp_path / "a"), stem + "_scales", (3, 20, 1), 255)
    refused(src, rf"{stem}_scales\[3\] .*scale byte 255", "bfloat16")
    convert(src, tmp_path / "kept", layout="openai")  # bytes are copied, whatever they mean
    assert tensors_of(tmp_path / "kept")["block.1.mlp.mlp2_weight.scales"][3, 20, 1] == 255
    src = damage(write_hf(tmp_path / "b", canonical=True), stem + "_scales", (3, 20, 1), 254)
    refused(src, rf"{stem}_scales\[3\] .*2\^128 or more, which bfloat16 cannot", "bfloat16")
    for number, value in enumerate((float("nan"), float("-inf"))):
        src = damage(write_hf_bfloat16(tmp_path / f"c{number}"), stem, (4, 70, 9), value)
        refused(src, rf"^{src}/model.safetensors: {stem}\[4\] holds a NaN or an infinity", "mxfp4")


def test_bfloat16_experts_are_rounded_to_mxfp4(tmp_path: Path) -> None:
    """Weights that never were MXFP4: each becomes the nearest code under the block's scale."""
    src = write_hf_bfloat16(tmp_path / "src")
    tensors = tensors_of(src)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors[name] = torch.randn(5, 64, 192, generator=torch.Generator().manual_seed(1)).bfloat16()
    save_file(tensors, src / "model.safetensors")
    convert(src, tmp_path / "dst", experts="mxfp4")
    after = tensors_of(tmp_path / "dst")
    new = dequantise(after[name + "_blocks"], after[name + "_scales"])
    old = tensors[name].double().numpy().swapaxes(1, 2)
    scale = np.repeat(2.0 ** (after[name + "_scales"].numpy().astype(int) - 127), 32, axis=-1)
    error = np.abs(new - old) / scale
    inside = np.abs(old) / scale <= 6
    assert error[inside].max() <= 1  # half of the widest gap, 4 to 6
    assert error.max() <= 2  # saturated: the floor rule leaves values of up to 8
    half_gap = np.where(np.abs(old) / scale < 2, 0.25, np.where(np.abs(old) / scale < 4, 0.5, 1))
    assert (error[inside] <= half_gap[inside]).all()
    convert(src, tmp_path / "even", experts="mxfp4", rule="even")
    even = tensors_of(tmp_path / "even")
    blocks, scales = encode(old, rule="even")
    assert np.array_equal(even[name + "_blocks"].numpy(), blocks)
    assert np.array_equal(even[name + "_scales"].numpy(), scales)
    assert not np.array_equal(scales, after[name + "_scales"].numpy())


@pytest.mark.parametrize("target", sorted(OPTIONS))
def test_sharded_output(tmp_path: Path, target: str) -> None:
    src = write_hf(tmp_path / "src", seed=5, canonical=True)
    result = convert(src, tmp_path / "dst", max_shard_bytes=100_000, **OPTIONS[target])
    assert len(result.files) > 2
    expected = WRITERS[target](tmp_path / "expected", seed=5, canonical=True)
    assert_same(tensors_of(tmp_path / "dst"), tensors_of(expected))
    assert load_checkpoint(tmp_path / "dst").layout == target
    index = json.loads((tmp_path / "dst" / INDEX).read_text())
    assert index["metadata"]["total_size"] == result.nbytes
    assert set(index["weight_map"].values()) == set(result.files)
    for file in result.files:
        tensors = load_file(tmp_path / "dst" / file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 100_000
        with safe_open(tmp_path / "dst" / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_tensors_are_aligned(tmp_path: Path) -> None:
    convert(write_hf(tmp_path / "src"), tmp_path / "dst", layout="openai")
    shards = load_checkpoint(tmp_path / "dst").shards
    assert all(shards.array(name).flags.aligned for name in shards)


def test_same_input_same_files(tmp_path: Path) -> None:
    src = write_hf(tmp_path / "src")
    for name in ("one", "two"):
        convert(src, tmp_path / name, layout="openai", max_shard_bytes=100_000)
    one, two = sorted((tmp_path / "one").iterdir()), sorted((tmp_path / "two").iterdir())
    assert [p.name for p in one] == [p.name for p in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


def test_without_options_it_copies(tmp_path: Path) -> None:
    for name, writer in WRITERS.items():
        src = writer(tmp_path / name, shards=3)
        convert(src, tmp_path / f"{name}-copy")
        assert load_checkpoint(tmp_path / f"{name}-copy").layout == name
        assert_same(tensors_of(tmp_path / f"{name}-copy"), tensors_of(src))


def test_float32_tensors_stay_float32(tmp_path: Path) -> None:
    src = write_hf(tmp_path / "src")
    tensors = {n: t.float() if t.dtype == torch.bfloat16 else t for n, t in tensors_of(src).items()}
    save_file(tensors, src / "model.safetensors")
    convert(src, tmp_path / "dst", layout="openai")
    joined = tensors_of(tmp_path / "dst")["block.0.attn.qkv.weight"]
    assert joined.dtype == torch.float32
    assert torch.equal(joined, openai_tensors()["block.0.attn.qkv.weight"].float())
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(24, 64, dtype=torch.bfloat16)
    save_file(tensors, src / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=rf"^{src}: {', '.join(f'model.layers.0.self_attn.{x}_proj.weight' for x in 'qkv')} "
        "have dtypes BF16, F32; block.0.attn.qkv.weight needs one$",
    ):
        convert(src, tmp_path / "mixed", layout="openai")


# --- configuration and companions -----------------------------------------------------------------


def read(folder: Path, name: str = "config.json") -> dict:
    return json.loads((folder / name).read_text())


def test_config_is_written_in_the_right_dialect(tmp_path: Path) -> None:
    src = write_hf(tmp_path / "src")
    convert(src, tmp_path / "openai", layout="openai")
    assert read(tmp_path / "openai") == SIZES
    stops = read(tmp_path / "openai", "generation_config.json")
    assert stops == {"eos_token_id": [102], "pad_token_id": 99}
    convert(src, tmp_path / "dense", experts="bfloat16")
    assert "quantization_config" not in read(tmp_path / "dense")
    assert read(tmp_path / "dense")["router_aux_loss_coef"] == 0.9, "unknown keys are kept"
    convert(tmp_path / "openai", tmp_path / "hf", layout="hf")
    assert read(tmp_path / "hf")["quantization_config"]["quant_method"] == "mxfp4"
    for name in ("openai", "dense", "hf"):
        config = load_checkpoint(tmp_path / name).config
        assert config == ModelConfig(**SIZES, max_position_embeddings=256)
        assert config.eos_token_ids == (102,), "stop tokens go by way of generation_config.json"


def test_keys_that_choose_code_are_left_out(tmp_path: Path) -> None:
    src = write_hf(tmp_path / "src")
    more = {"auto_map": {}, "_commit": "x", "experts_implementation": "y", "mine": 3}
    (src / "config.json").write_text(json.dumps(read(src) | more))
    result = convert(src, tmp_path / "dst")
    assert result.notes == tuple(
        f"config.json: left out {key!r}: it may choose code to load" for key in list(more)[:3]
    )
    assert read(tmp_path / "dst")["mine"] == 3
    assert not set(list(more)[:3]) & set(read(tmp_path / "dst"))


def test_companions_come_along(tmp_path: Path) -> None:
    src = write_hf(tmp_path / "src")
    contents = {
        "tokenizer.json": b'{"a": 1}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": "{# µ #}\r\n".encode(),
        "generation_config.json": b'{"eos_token_id": [101, 102]}',
        "LICENSE": b"licence",
    }
    for name, content in {**contents, "README.md": b"card", "x.bin": b"?"}.items():
        (src / name).write_bytes(content)
    convert(src, tmp_path / "dst", layout="openai")
    written = {p.name: p.read_bytes() for p in (tmp_path / "dst").iterdir()}
    assert set(written) == {*contents, "config.json", "model.safetensors"}
    assert {name: written[name] for name in contents} == contents


def test_companions_of_original(tmp_path: Path) -> None:
    write_openai(tmp_path / "repo" / "original")
    (tmp_path / "repo" / "tokenizer.json").write_text("{}")
    convert(tmp_path / "repo", tmp_path / "dst", layout="hf")
    assert (tmp_path / "dst" / "tokenizer.json").read_text() == "{}"


def test_what_the_openai_dialect_cannot_say(tmp_path: Path) -> None:
    src = write_hf(tmp_path / "src")

    def configured(**changes: Any) -> Path:
        (src / "config.json").write_text(json.dumps(hf_config(**changes)))
        return src

    result = convert(configured(max_position_embeddings=100), tmp_path / "a", layout="openai")
    assert "max_position_embeddings: 100 becomes" in result.notes[0]
    assert "note:" in str(result)
    scaling = hf_config()["rope_scaling"]
    for factor, context in ((1.0, 32), (1.5, 48)):
        config = configured(
            rope_scaling=scaling | {"factor": factor}, max_position_embeddings=context
        )
        assert convert(config, tmp_path / f"{factor}", layout="openai").notes == ()
    shrunk = write_openai(tmp_path / "shrunk")  # a factor below 1 does not shorten the context
    (shrunk / "config.json").write_text(json.dumps(SIZES | {"rope_scaling_factor": 0.5}))
    kept = convert(shrunk, tmp_path / "kept")
    assert (kept.notes, kept.layout) == ((), "openai")
    for key, value in (
        ("swiglu_alpha", 1.5),
        ("rms_norm_eps", 1e-6),
        ("layer_types", ["full_attention"] * 4),
    ):
        with pytest.raises(ConfigError, match=f"{key} .* cannot be written in the OpenAI dialect"):
            convert(configured(**{key: value}), tmp_path / "b", layout="openai")
        assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "openai", "experts": "bfloat16"}, "OpenAI layout stores experts as MXFP4 only"),
        ({"layout": "gguf"}, "layout must be 'hf' or 'openai', not 'gguf'"),
        ({"experts": "int8"}, "experts must be 'mxfp4' or 'bfloat16', not 'int8'"),
        ({"max_shard_bytes": 0}, "max_shard_bytes must be positive"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(GptOssError, match=message):
        convert(write_hf(tmp_path / "src"), tmp_path / "dst", **options)


def test_mxfp4_needs_multiples_of_32(tmp_path: Path) -> None:
    import transformers

    config = transformers.GptOssConfig(**hf_config("bfloat16", hidden_size=20))
    transformers.GptOssForCausalLM(config).save_pretrained(tmp_path / "src")
    with pytest.raises(ConfigError, match=r"hidden_size \(20\) must be a multiple of 32"):
        convert(tmp_path / "src", tmp_path / "dst", experts="mxfp4")


# --- all or nothing -------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"<folder>"
        for path in folder.rglob("*")
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to convert in, with a source in it."""
    write_hf(tmp_path / "place" / "src")
    return tmp_path / "place"


def assert_untouched(place: Path, act: Callable[[], Any], error: type[BaseException]) -> str:
    before = listing(place)
    with pytest.raises(error) as caught:
        act()
    assert listing(place) == before
    return str(caught.value)


def test_a_target_without_a_name(place: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^the path of the result is empty; expected the pa"):
        convert(place / "src", "")


def test_existing_target_is_never_touched(place: Path) -> None:
    (place / "full").mkdir()
    (place / "full" / "file").write_text("mine")
    (place / "empty").mkdir()
    (place / "file").write_text("mine")
    os.symlink("nowhere", place / "link")
    for name in ("full", "empty", "file", "link", "src"):
        message = assert_untouched(
            place, lambda name=name: convert(place / "src", place / name), CheckpointError
        )
        assert message == f"{place / name}: already exists; the result needs a new folder"


def test_target_that_appears_meanwhile_is_not_touched(place: Path) -> None:
    def progress(done: int, total: int, name: str) -> None:
        (place / "dst").mkdir(exist_ok=True)

    with pytest.raises(CheckpointError, match="already exists"):
        convert(place / "src", place / "dst", progress=progress)
    assert sorted(p.name for p in place.iterdir()) == ["dst", "src"]
    assert not list((place / "dst").iterdir())


def test_missing_parent(place: Path) -> None:
    message = assert_untouched(
        place, lambda: convert(place / "src", place / "no" / "dst"), CheckpointError
    )
    assert message.endswith("cannot be created: No such file or directory")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError, MemoryError])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_interrupted_runs_leave_nothing(
    place: Path, error: type[BaseException], options: dict
) -> None:
    calls = 0

    def progress(done: int, total: int, name: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise error

    assert_untouched(
        place, lambda: convert(place / "src", place / "dst", progress=progress, **options), error
    )
    assert calls == 20


def test_source_that_turns_out_bad_leaves_nothing(place: Path) -> None:
    damage(place / "src", "model.layers.3.mlp.experts.down_proj_scales", (4, 1, 1), 255)
    message = assert_untouched(
        place, lambda: convert(place / "src", place / "dst", experts="bfloat16"), CheckpointError
    )
    assert "scale byte 255" in message


def test_full_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before writing if the system tells the free space; no file is left."""
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 5))
        message = assert_untouched(
            place, lambda: convert(place / "src", place / "dst"), CheckpointError
        )
        assert "bytes, the disk has 5 free" in message
        enough = load_checkpoint(place / "src").nbytes
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, enough))
        said = str(convert(place / "src", place / "fits"))
        assert said == f"{place / 'fits'}: hf layout, mxfp4 experts, {enough} bytes, 1 file"
        shutil.rmtree(place / "fits")

    def progress(done: int, total: int, name: str) -> None:
        raise OSError(28, "No space left on device")

    message = assert_untouched(
        place, lambda: convert(place / "src", place / "dst", progress=progress), CheckpointError
    )
    assert message == f"{place / 'dst'}: cannot be written: No space left on device"


def test_ctrl_c_at_a_running_process_leaves_nothing(place: Path) -> None:
    code = textwrap.dedent("""
        import signal, sys, time
        from gptoss_ref import convert
        # a run in the background passes on an ignored Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def progress(done, total, name):
            print(done, flush=True)
            time.sleep(0.05)
        convert(sys.argv[1], sys.argv[2], layout="openai", progress=progress)
    """)
    before = listing(place)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(place / "src"), str(place / "dst")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    time.sleep(0.1)
    assert [p.name for p in place.iterdir() if p.name.endswith(".partial")]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert listing(place) == before


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    result = convert(
        write_hf(tmp_path / "src"),
        tmp_path / "dst",
        experts="bfloat16",
        progress=lambda *call: seen.append(call),
    )
    done = [call[0] for call in seen]
    assert done == sorted(done)
    assert done[-1] == result.nbytes
    assert {call[1] for call in seen} == {result.nbytes}
    assert {call[2] for call in seen} == set(tensors_of(tmp_path / "dst"))


def test_what_is_not_said_is_the_sources(tmp_path: Path) -> None:
    src = write_hf_bfloat16(tmp_path / "src", canonical=True)
    assert convert(src, tmp_path / "same").experts == "bfloat16"
    assert convert(src, tmp_path / "openai", layout="openai").experts == "mxfp4"
    for name in ("tiny", "other-constants"):
        with pytest.raises(
            CheckpointError, match=f"'{name}' names a bundled model; expected another"
        ):
            convert(src, tmp_path / name)


def test_an_adapter_of_experts_is_encoded_by_the_rule(tmp_path: Path) -> None:
    base = write_hf(tmp_path / "base")
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(5, 2, 96)).astype("f4"), rng.normal(size=(5, 64, 2)).astype("f4")
    adapter = Adapter({"block.1.mlp.mlp2_weight": LowRank(a, b, 0.5)}, {}, 1.0, False, str(base))
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", adapter, load_checkpoint(base).config)
    convert(tmp_path / "adapter", tmp_path / "dst", rule="even")
    name = "model.layers.1.mlp.experts.down_proj"
    before, after = tensors_of(base), tensors_of(tmp_path / "dst")
    old = dequantise(before.pop(name + "_blocks"), before.pop(name + "_scales"))
    blocks, scales = encode(old + 0.5 * b.astype(float) @ a.astype(float), rule="even")
    assert np.array_equal(after.pop(name + "_blocks").numpy(), blocks)
    assert np.array_equal(after.pop(name + "_scales").numpy(), scales)
    assert_same(before, after)


def test_how_many_files_there_are() -> None:
    for files, said in ((("a",), "1 file"), (("a", "b"), "2 files")):
        assert str(Conversion("p", "hf", "mxfp4", 7, files, ("n",))).splitlines() == [
            f"p: hf layout, mxfp4 experts, 7 bytes, {said}", "note: n"
        ]  # fmt: skip


def test_progress_over_shards_that_are_numbered_from_one(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    result = convert(
        write_hf(tmp_path / "src"),
        tmp_path / "dst",
        max_shard_bytes=100_000,
        progress=lambda *call: seen.append(call),
    )
    count = len(result.files)
    assert str(result).endswith(f" bytes, {count} files")
    assert result.files == tuple(
        f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
    )
    assert count > 2
    sizes = {name: tensor.nbytes for name, tensor in tensors_of(tmp_path / "dst").items()}
    done = 0
    for at, total, name in seen:  # each tensor in one piece
        done += sizes.pop(name)
        assert (at, total) == (done, result.nbytes)
    assert not sizes
    each = convert(tmp_path / "dst", tmp_path / "each", max_shard_bytes=1)
    assert len(each.files) == len(tensors_of(tmp_path / "each"))


def test_result_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    convert(write_hf(tmp_path / "src"), tmp_path / "dst")
    assert (tmp_path / "dst").stat().st_mode == (tmp_path / "usual").stat().st_mode


# --- what others make of the result ---------------------------------------------------------------


@pytest.fixture(scope="module")
def logits_in_transformers() -> Callable[[Path], torch.Tensor]:
    """Float32 logits of a fixed prompt, computed by transformers from a folder."""
    transformers = pytest.importorskip("transformers")

    def compute(folder: Path) -> torch.Tensor:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tokens = torch.tensor([[5, 17, 130, 0, 99, 64, 3, 3, 28, 101]])
        with torch.no_grad():
            return model(tokens).logits[0]

    return compute


def test_transformers_loads_what_convert_writes(
    tmp_path: Path, logits_in_transformers: Callable[[Path], torch.Tensor]
) -> None:
    """Both Hugging Face outputs give transformers the logits of the checkpoint they came from."""
    source = write_openai(tmp_path / "source", seed=8)
    reference = logits_in_transformers(write_hf(tmp_path / "reference", seed=8))
    assert reference.std() > 0.1
    convert(source, tmp_path / "mxfp4", layout="hf")
    convert(source, tmp_path / "dense", layout="hf", experts="bfloat16", max_shard_bytes=300_000)
    convert(tmp_path / "dense", tmp_path / "again", experts="mxfp4")
    for name in ("mxfp4", "dense", "again"):
        assert torch.equal(logits_in_transformers(tmp_path / name), reference), name


def test_every_layout_gives_this_package_the_same_logits(
    tmp_path: Path, logits_in_transformers: Callable[[Path], torch.Tensor]
) -> None:
    from gptoss_ref import load

    source = write_hf(tmp_path / "src", seed=8)
    tokens = [5, 17, 130, 0, 99, 64, 3, 3, 28, 101]
    expected = load(source)(tokens)
    theirs = logits_in_transformers(source).double().numpy()
    assert np.linalg.norm(expected - theirs) <= 1e-5 * np.linalg.norm(theirs)
    for name, options in OPTIONS.items():
        convert(source, tmp_path / name, **options)
        # the matrices lie differently in memory, which may change the order of float32 sums
        np.testing.assert_allclose(load(tmp_path / name)(tokens), expected, rtol=2e-5, atol=2e-5)
