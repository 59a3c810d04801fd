"""Loading: three layouts give the same weights, and each kind of bad folder one clear error."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_ref import GPT_OSS_20B, ModelConfig, load, load_checkpoint
from gptoss_ref.checkpoint import LAYOUTS
from gptoss_ref.checkpoint.names import detect_layout
from gptoss_ref.checkpoint.shards import parse_weight_map
from gptoss_ref.errors import CheckpointError, ConfigError, GptOssError
from gptoss_ref.weights import MXFP4
from tests.support.checkpoint_files import (
    SIZES,
    dequantise,
    hf_bfloat16_tensors,
    hf_config,
    hf_tensors,
    openai_tensors,
    write,
    write_hf,
    write_hf_bfloat16,
    write_openai,
)

WRITERS = {"openai": write_openai, "hf": write_hf, "hf-bfloat16": write_hf_bfloat16}
INDEX = "model.safetensors.index.json"
CONFIG = ModelConfig(**SIZES, max_position_embeddings=256)
Q, K = SIZES["num_attention_heads"] * SIZES["head_dim"], SIZES["num_key_value_heads"] * 12


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as the package holds it: bfloat16 as uint16 bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def expected_weights(seed: int, dense: bool) -> dict[str, np.ndarray]:
    """The package's weights by dotted name, from the tensors themselves."""
    tensors = openai_tensors(seed)
    result = {}
    for name, tensor in tensors.items():
        parts = (
            name.replace("block.", "blocks.").replace(".scale", "_scale").replace(".bias", "_bias")
        )
        key = parts.replace(".weight", "_weight").replace("_scales", ".scales")
        if key in ("embedding_weight", "unembedding_weight"):
            key = key.removesuffix("_weight")
        if "qkv" in key:
            for head, rows in (
                ("q", slice(0, Q)),
                ("k", slice(Q, Q + K)),
                ("v", slice(Q + K, None)),
            ):
                result[key.replace("qkv", head)] = bits(tensor[rows].contiguous())
        elif dense and key.endswith(".blocks"):
            scales = tensors[name.replace(".blocks", ".scales")]
            values = torch.from_numpy(dequantise(tensor, scales)).to(torch.bfloat16)
            result[key.removesuffix(".blocks")] = bits(values)
        elif not (dense and key.endswith(".scales")):
            result[key] = bits(tensor)
    return result


def flat_weights(value: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Every array of a ModelWeights by dotted name."""
    if isinstance(value, np.ndarray):
        return {prefix: value}
    if isinstance(value, MXFP4):
        return {prefix + ".blocks": value.blocks, prefix + ".scales": value.scales}
    items = (
        enumerate(value)
        if isinstance(value, tuple)
        else ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    )
    dot = "." if prefix else ""
    return {k: v for n, item in items for k, v in flat_weights(item, f"{prefix}{dot}{n}").items()}


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(tmp_path: Path, layout: str, shards: int) -> None:
    folder = WRITERS[layout](tmp_path / "c", seed=3, shards=shards)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.layout == layout
    assert checkpoint.config == CONFIG
    assert checkpoint.path == checkpoint.root == folder
    assert checkpoint.experts == ("bfloat16" if layout == "hf-bfloat16" else "mxfp4")
    assert len(checkpoint.shards.files) == shards
    ours = flat_weights(checkpoint.weights)
    expected = expected_weights(3, dense=layout == "hf-bfloat16")
    assert set(ours) == set(expected)
    for name, array in expected.items():
        assert ours[name].dtype == array.dtype, name
        assert np.array_equal(ours[name], array), name
        assert not ours[name].flags.writeable, name
    files = folder.glob("*.safetensors")
    assert checkpoint.nbytes == sum(t.nbytes for f in files for t in load_file(f).values())


def test_weights_are_views_of_the_files(tmp_path: Path) -> None:
    """Not even the transposed experts of the dequantised layout are copied."""
    checkpoint = load_checkpoint(write_hf_bfloat16(tmp_path / "c"))
    matrix = checkpoint.weights.blocks[1].mlp.mlp1_weight
    stored = checkpoint.shards.array("model.layers.1.mlp.experts.gate_up_proj")
    assert np.shares_memory(matrix, stored)
    assert matrix.shape == (5, 192, 64)
    assert stored.shape == (5, 64, 192)


def test_mxfp4_is_named_for_its_errors(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_hf(tmp_path / "c"))
    name = checkpoint.weights.blocks[2].mlp.mlp2_weight.name
    assert "model.layers.2.mlp.experts.down_proj_scales" in name
    assert "model.safetensors" in name


def test_shards_without_an_index(tmp_path: Path) -> None:
    """The OpenAI layout needs none: every .safetensors file counts."""
    folder = write_openai(tmp_path / "c", shards=3)
    (folder / INDEX).unlink()
    assert len(load_checkpoint(folder).shards.files) == 3


def test_original_inside_a_repository(tmp_path: Path) -> None:
    """A repository that holds only `original/` stands for it; its root has the companions."""
    write_openai(tmp_path / "repo" / "original")
    (tmp_path / "repo" / "tokenizer.json").write_text("{}")
    (tmp_path / "repo" / "generation_config.json").write_text('{"eos_token_id": [102, 112]}')
    (tmp_path / "repo" / "original" / "dtypes.json").write_text('{"block.0.attn.sinks": "BF16"}')
    for path in (tmp_path / "repo", tmp_path / "repo" / "original"):
        checkpoint = load_checkpoint(path)
        assert checkpoint.layout == "openai"
        assert checkpoint.path == tmp_path / "repo" / "original"
        assert checkpoint.root == tmp_path / "repo"
        assert checkpoint.companion("tokenizer.json") == tmp_path / "repo" / "tokenizer.json"
        assert checkpoint.companion("merges.txt") is None
        assert checkpoint.generation == {"eos_token_id": [102, 112]}
        assert checkpoint.config.eos_token_ids == (102, 112)


def test_repository_with_both_layouts_means_the_hugging_face_one(tmp_path: Path) -> None:
    write_hf(tmp_path / "repo")
    write_openai(tmp_path / "repo" / "original", seed=1)
    assert load_checkpoint(tmp_path / "repo").layout == "hf"
    assert load_checkpoint(tmp_path / "repo" / "original").layout == "openai"


def test_generation_config_does_not_override_the_config(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c")
    (folder / "generation_config.json").write_text('{"eos_token_id": [101, 102]}')
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config.eos_token_ids == (102,)
    assert checkpoint.generation["eos_token_id"] == [101, 102]


def test_float32_and_float64_tensors_load(tmp_path: Path) -> None:
    tensors = hf_bfloat16_tensors(openai_tensors())
    for dtype, kind in ((torch.float32, np.float32), (torch.float64, np.float64)):
        wide = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        folder = write(tmp_path / str(dtype), wide, hf_config("bfloat16"))
        weights = load_checkpoint(folder).weights
        assert weights.embedding.dtype == kind
        expected = tensors["model.embed_tokens.weight"].double().numpy()
        assert np.array_equal(weights.embedding, expected)


def test_dequantised_sizes_need_not_be_multiples_of_32(tmp_path: Path) -> None:
    """Blocks of 32 are MXFP4's; a dequantised checkpoint may have any size."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GptOssConfig(
        **hf_config("bfloat16", hidden_size=20, intermediate_size=14)
    )
    model = transformers.GptOssForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "c")
    checkpoint = load_checkpoint(tmp_path / "c")
    assert checkpoint.layout == "hf-bfloat16"
    assert checkpoint.weights.blocks[0].mlp.mlp1_weight.shape == (5, 28, 20)
    theirs = model.state_dict()["model.layers.0.mlp.experts.down_proj"].to(torch.bfloat16)
    ours = checkpoint.weights.blocks[0].mlp.mlp2_weight
    assert np.array_equal(ours, bits(theirs).swapaxes(1, 2))


def test_unaligned_files(tmp_path: Path) -> None:
    """A header of odd length puts bfloat16 values at odd addresses: same weights, same logits."""
    folder = write_hf(tmp_path / "c")
    straight = load_checkpoint(folder)
    tokens = [5, 17, 130, 0]
    expected = load(folder)(tokens)
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    shifted = tmp_path / "shifted"
    shifted.mkdir()
    (shifted / "config.json").write_text(json.dumps(hf_config()))
    (shifted / "model.safetensors").write_bytes(
        (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :]
    )
    checkpoint = load_checkpoint(shifted)
    assert not checkpoint.weights.embedding.flags.aligned
    ours, theirs = flat_weights(checkpoint.weights), flat_weights(straight.weights)
    for name, array in theirs.items():
        assert np.array_equal(ours[name], array), name
    assert np.array_equal(load(shifted)(tokens), expected)


def write_hollow_20b(folder: Path) -> None:
    """gpt-oss-20b in three shards of the real size, all zeros, which take no room on the disk."""
    d, v, e = 2880, 201088, 32
    shapes: dict[str, tuple[str, list[int]]] = {
        "model.embed_tokens.weight": ("BF16", [v, d]),
        "lm_head.weight": ("BF16", [v, d]),
        "model.norm.weight": ("BF16", [d]),
    }
    for n in range(24):
        layer = f"model.layers.{n}."
        for name, rows, columns in (("q", 4096, d), ("k", 512, d), ("v", 512, d), ("o", d, 4096)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = ("BF16", [rows, columns])
            shapes[f"{layer}self_attn.{name}_proj.bias"] = ("BF16", [rows])
        shapes[layer + "self_attn.sinks"] = ("BF16", [64])
        shapes[layer + "input_layernorm.weight"] = ("BF16", [d])
        shapes[layer + "post_attention_layernorm.weight"] = ("BF16", [d])
        shapes[layer + "mlp.router.weight"] = ("BF16", [e, d])
        shapes[layer + "mlp.router.bias"] = ("BF16", [e])
        for name, rows in (("gate_up_proj", 2 * d), ("down_proj", d)):
            shapes[f"{layer}mlp.experts.{name}_blocks"] = ("U8", [e, rows, 90, 16])
            shapes[f"{layer}mlp.experts.{name}_scales"] = ("U8", [e, rows, 90])
            shapes[f"{layer}mlp.experts.{name}_bias"] = ("BF16", [e, rows])
    folder.mkdir()
    names, weight_map = list(shapes), {}
    for shard in range(3):
        header, at = {}, 0
        for name in names[shard::3]:
            dtype, shape = shapes[name]
            end = at + math.prod(shape) * (2 if dtype == "BF16" else 1)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            weight_map[name] = f"model-{shard:05d}-of-00002.safetensors"  # as released: from 0
            at = end
        text = json.dumps(header).encode()
        with (folder / f"model-{shard:05d}-of-00002.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(GPT_OSS_20B.to_json("hf")))


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files and Linux's RSS")
def test_a_20b_loads_without_being_read(tmp_path: Path) -> None:
    """13.8 GB map in a few MB: the growth of resident memory beyond what the imports take."""
    write_hollow_20b(tmp_path / "c")
    code = textwrap.dedent("""
        import resource, sys
        import gptoss_ref.checkpoint
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        checkpoint = gptoss_ref.load_checkpoint(sys.argv[1])
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert checkpoint.config == gptoss_ref.GPT_OSS_20B
        assert not checkpoint.weights.blocks[23].mlp.mlp1_weight[31].blocks[-1].any()
        print(checkpoint.nbytes, grown)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c")],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    nbytes, kilobytes = map(int, done.stdout.split())
    assert nbytes == 13_761_264_768
    assert kilobytes < 50_000


# --- what is refused ------------------------------------------------------------------------------


def fails(path: Path | str, message: str, kind: type[GptOssError] = CheckpointError) -> str:
    with pytest.raises(kind, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_tensors(folder: Path, change: Callable[[dict], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def change_index(folder: Path, change: Callable[[dict], Any]) -> Path:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_no_such_folder(tmp_path: Path) -> None:
    fails(tmp_path / "none", "no such folder; expected a checkpoint folder, 'tiny', or a Hub id")
    (tmp_path / "file").write_text("")
    fails(tmp_path / "file", "expected a checkpoint folder, not a file")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", r"empty: holds neither config\.json nor \.safetensors files")
    (tmp_path / "empty" / "config.json").write_text(json.dumps(SIZES))
    fails(tmp_path / "empty", r"holds no \.safetensors file")


def test_missing_shard(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    fails(folder, "lists the shard 'model-00002-of-00003.safetensors', which does not exist.*1")


def test_missing_shard_without_an_index(tmp_path: Path) -> None:
    folder = write_openai(tmp_path / "c", shards=3)
    (folder / INDEX).unlink()
    (folder / "model-00002-of-00003.safetensors").unlink()
    fails(folder, r"the tensor '\S+' is missing \(and \d+ more\)")


def test_truncated_shard(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c", shards=3)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    fails(folder, r"model-00002-of-00003\.safetensors: truncated: the tensors need \d+ bytes")


def test_overlapping_shards(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c", shards=2)
    second = folder / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"model.norm.weight": torch.zeros(64).bfloat16()}, second)
    first = load_file(folder / "model-00001-of-00002.safetensors")
    assert "model.norm.weight" in first
    fails(folder, "the tensor 'model.norm.weight' is in two shards, 'model-00001.*'model-00002")


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors", "..", "",
     "config.json", "..\\x.safetensors", "C:x.safetensors", "x\0.safetensors"],
)  # fmt: skip
def test_index_may_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    write_hf(tmp_path / "secret")
    (tmp_path / "secret" / "model.safetensors").rename(tmp_path / "secret.safetensors")
    folder = write_hf(tmp_path / "c", shards=2)
    change_index(folder, lambda m: m.update({"model.norm.weight": name}))
    assert repr(name) in fails(folder, "is not the plain name of a .safetensors file")


def test_any_letter_may_be_in_the_name_of_a_shard() -> None:
    weight_map = {"a": "X-Y.safetensors"}
    assert parse_weight_map({"weight_map": weight_map}, Path("index")) == weight_map


def test_index_that_is_none(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c", shards=2)
    for content, message in (
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "weight_map must map"),
        ('{"weight_map": {}}', "weight_map must map"),
        ('{"weight_map": {"a": 3}}', "the file of 'a' must be a name, not 3"),
    ):
        (folder / INDEX).write_text(content)
        assert INDEX in fails(folder, message)


def test_index_that_disagrees_with_the_shards(tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    folder = write_hf(tmp_path / "a", shards=2)
    change_index(folder, lambda m: m.update({"model.norm.weight": two}))
    fails(folder, f"places the tensor 'model.norm.weight' in '{two}', but it is in '{one}'")
    folder = write_hf(tmp_path / "b", shards=2)
    change_index(folder, lambda m: m.update({"model.norm.wait": two}))
    fails(folder, f"places the tensor 'model.norm.wait' in '{two}', but no shard holds it")
    folder = write_hf(tmp_path / "c", shards=2)
    change_index(folder, lambda m: m.pop("model.norm.weight"))
    fails(folder, f"does not list the tensor 'model.norm.weight', which '{one}' holds")


def test_index_beside_a_file_it_does_not_name(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c", shards=2)
    (folder / "model.safetensors").write_bytes(b"")
    fails(folder, f"holds model.safetensors, and an {INDEX} that does not list it")


def test_link_out_of_the_folder(tmp_path: Path) -> None:
    outside = write_hf(tmp_path / "outside") / "model.safetensors"
    folder = write_hf(tmp_path / "c")
    (folder / "model.safetensors").unlink()
    os.symlink(outside, folder / "model.safetensors")
    fails(folder, f"^{folder}: the shard 'model.safetensors' is a link that leaves the folder")
    folder = write_hf(tmp_path / "indexed", shards=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    os.symlink(outside, folder / "model-00001-of-00002.safetensors")
    fails(folder, f"^{folder / INDEX}: the shard 'model-00001-of-00002.safetensors' is a link that")


@pytest.mark.parametrize(
    ("tensors", "layout"),
    [
        ({"block.0.mlp.mlp1_bias"}, "openai"),
        ({"model.layers.0.mlp.experts.gate_up_proj_blocks"}, "hf"),
        ({"model.layers.0.mlp.experts.gate_up_proj"}, "hf-bfloat16"),
        ({"model.layers.0.mlp.experts.down_proj"}, "hf-bfloat16"),
        ({"lm_head.weight"}, None),
    ],
)
def test_some_names_tell_the_layout(tensors: set[str], layout: str | None) -> None:
    assert detect_layout(tensors) == layout


def test_missing_tensor(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.router.bias"
    folder = change_tensors(write_hf(tmp_path / "a"), lambda t: t.pop(name))
    fails(folder, f"the tensor '{name}' is missing$")

    def misspell(tensors: dict) -> None:
        tensors["model.layers.2.mlp.routers.bias"] = tensors.pop(name)

    folder = change_tensors(write_hf(tmp_path / "b"), misspell)
    fails(folder, f"'{name}' is missing; the nearest unknown name is '.*routers.bias'")


def test_unknown_tensor(tmp_path: Path) -> None:
    extra = {"model.layers.2.mlp.router.biases": torch.zeros(5).bfloat16()}
    folder = change_tensors(write_hf(tmp_path / "c"), lambda t: t.update(extra))
    fails(folder, "unknown tensor '.*biases'; the nearest expected name is 'model.layers.2.*bias'")


def test_how_many_tensors_are_missing_or_unknown(tmp_path: Path) -> None:
    layer = "model.layers.2."
    names = [f"{layer}self_attn.sinks", f"{layer}mlp.router.bias", f"{layer}mlp.router.weight"]
    folder = write_hf(tmp_path / "a")
    for left, others in ((1, ""), (2, r" \(and 1 more\)"), (3, r" \(and 2 more\)")):
        change_tensors(folder, lambda t, n=names[left - 1]: t.pop(n))
        fails(folder, f"^{folder}: the tensor '{names[0]}' is missing{others}$")
    folder = write_hf(tmp_path / "b")
    for number, others in ((1, ""), (2, r" \(and 1 more\)")):
        change_tensors(folder, lambda t, n=number: t.update({f"{'?' * n}": torch.zeros(1)}))
        fails(folder, rf"^{folder}/model\.safetensors: unknown tensor '\?+'{others}$")


@pytest.mark.parametrize("layers", [3, 5, 10**9])
def test_more_or_fewer_layers_than_the_config_says(tmp_path: Path, layers: int) -> None:
    folder = write_hf(tmp_path / "c")
    config = hf_config(num_hidden_layers=layers, layer_types=None)
    (folder / "config.json").write_text(json.dumps(config))
    fails(folder, rf"holds tensors of 4 layers, but .*config\.json has num_hidden_layers {layers}")


def test_tensors_of_a_layer_that_is_not_numbered(tmp_path: Path) -> None:
    tensors = hf_tensors(openai_tensors())
    tensors["model.layers.x.mlp.router.bias"] = torch.zeros(5).bfloat16()
    fails(write(tmp_path / "c", tensors, hf_config()), "unknown tensor 'model.layers.x.mlp")


def test_names_of_another_model(tmp_path: Path) -> None:
    tensors = {"transformer.h.0.attn.weight": torch.zeros(3)}
    fails(
        write(tmp_path / "c", tensors, hf_config()), "not gpt-oss: tensors such as 'transformer.h.0"
    )
    fails(write(tmp_path / "d", {}, hf_config()), "not gpt-oss")


@pytest.mark.parametrize(
    ("tensor", "dtype", "message"),
    [
        ("model.norm.weight", torch.int16, r"is I16; expected BF16 \(F16, F32 and F64 load too"),
        ("model.norm.weight", torch.uint16, "is U16; expected BF16"),
        ("model.norm.weight", torch.uint8, "is U8; expected BF16"),
        ("model.layers.1.mlp.experts.down_proj_blocks", torch.int8, "is I8; expected U8"),
        ("model.layers.1.mlp.experts.down_proj_scales", torch.bfloat16, "is BF16; expected U8"),
    ],
)
def test_wrong_dtype(tmp_path: Path, tensor: str, dtype: torch.dtype, message: str) -> None:
    folder = change_tensors(
        write_hf(tmp_path / "c"), lambda t: t.update({tensor: t[tensor].to(dtype)})
    )
    assert "model.safetensors" in fails(folder, f"tensor '{tensor}' {message}")


@pytest.mark.parametrize(
    ("layout", "tensor", "message"),
    [
        ("hf", "lm_head.weight", r"\(131, 63\).*requires \(V, D\) = \(131, 64\)"),
        ("hf", "model.layers.0.self_attn.k_proj.weight", r"\(KC, D\) = \(24, 64\)"),
        (
            "hf",
            "model.layers.3.mlp.experts.gate_up_proj_blocks",
            r"\(E, 2F, D/32, 16\) = \(5, 192,",
        ),
        ("openai", "block.0.attn.qkv.weight", r"\(HC\+2KC, D\) = \(120, 64\)"),
        ("hf-bfloat16", "model.layers.0.mlp.experts.down_proj", r"\(E, F, D\) = \(5, 96, 64\)"),
    ],
)
def test_wrong_shape(tmp_path: Path, layout: str, tensor: str, message: str) -> None:
    folder = change_tensors(
        WRITERS[layout](tmp_path / "c"),
        lambda t: t.update({tensor: t[tensor][..., :-1].contiguous()}),
    )
    assert str(folder / "config.json") in fails(folder, f"tensor '{tensor}' has shape .*{message}")


def test_experts_stored_untransposed_are_noticed(tmp_path: Path) -> None:
    """The dequantised layout is (E, input, output); F differs from D, so the reverse shows."""
    name = "model.layers.0.mlp.experts.down_proj"
    folder = change_tensors(
        write_hf_bfloat16(tmp_path / "c"),
        lambda t: t.update({name: t[name].swapaxes(1, 2).contiguous()}),
    )
    fails(folder, r"has shape \(5, 64, 96\).*\(E, F, D\) = \(5, 96, 64\)")


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 132), ("hidden_size", 96), ("intermediate_size", 64), ("head_dim", 14),
     ("num_attention_heads", 4), ("num_key_value_heads", 3), ("num_local_experts", 6)],
)  # fmt: skip
def test_config_that_contradicts_the_tensors(tmp_path: Path, key: str, value: int) -> None:
    folder = write_hf(tmp_path / "c")
    (folder / "config.json").write_text(json.dumps(hf_config(**{key: value})))
    fails(folder, r"tensor '\S+' has shape \(.*config\.json requires \(")


def test_quantization_config_must_describe_the_tensors(tmp_path: Path) -> None:
    folder = write_hf_bfloat16(tmp_path / "a")
    (folder / "config.json").write_text(json.dumps(hf_config("mxfp4")))
    fails(folder, "quantization_config says mxfp4, but the expert tensors are dequantised")
    folder = write_hf(tmp_path / "b")
    config = hf_config(quantization_config={"quant_method": "gptq"})
    (folder / "config.json").write_text(json.dumps(config))
    fails(folder, "quant_method must be 'mxfp4', not 'gptq'", ConfigError)


def test_mxfp4_needs_multiples_of_32(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c")
    (folder / "config.json").write_text(json.dumps(hf_config(hidden_size=65)))
    said = fails(folder, r"hidden_size \(65\) must be a multiple of 32 for MXFP4", ConfigError)
    assert said.startswith(f"{folder / 'config.json'}: ")


def test_bad_generation_config(tmp_path: Path) -> None:
    folder = write_openai(tmp_path / "c")
    for eos in ('"x"', '["x"]', "[1.5]", "[99999]", "-1", "true"):
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {eos}}}')
        fails(folder, r"generation_config\.json: eos_token_id must hold token ids", ConfigError)
    (folder / "generation_config.json").write_text("{")
    fails(folder, r"generation_config\.json: not JSON", ConfigError)


def test_tensors_of_both_expert_forms(tmp_path: Path) -> None:
    tensors = hf_tensors(openai_tensors()) | hf_bfloat16_tensors(openai_tensors())
    fails(write(tmp_path / "c", tensors, hf_config("bfloat16")), "unknown tensor '.*_blocks'")


def test_a_null_stop_token_is_no_stop_token(tmp_path: Path) -> None:
    folder = write_openai(tmp_path / "c")
    (folder / "generation_config.json").write_text('{"eos_token_id": null}')
    assert load_checkpoint(folder).config.eos_token_ids == ()


def test_which_single_files_are_read(tmp_path: Path) -> None:
    """Beside model.safetensors, and without an index, other files are none of the checkpoint's."""
    folder = write_hf(tmp_path / "c")
    save_file({"other": torch.zeros(3)}, folder / "consolidated.safetensors")
    assert len(load_checkpoint(folder).shards.files) == 1


def test_a_checkpoint_with_an_adapters_settings_in_it(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c")
    (folder / "adapter_config.json").write_text("{}")
    assert load_checkpoint(folder).layout == "hf"


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_an_original_folder_that_is_whole(name: str, tmp_path: Path) -> None:
    folder = write_openai(tmp_path / "repo" / "original")
    assert load_checkpoint(folder).root == tmp_path / "repo"
    (folder / name).write_text("{}")
    assert load_checkpoint(folder).root == folder


def test_where_the_configuration_is(tmp_path: Path) -> None:
    folder = write_openai(tmp_path / "repo" / "original")
    (folder / "config.json").rename(tmp_path / "repo" / "config.json")
    assert load_checkpoint(tmp_path / "repo").config.hidden_size == SIZES["hidden_size"]
    (tmp_path / "repo" / "config.json").unlink()
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/repo/config\.json: "):
        load_checkpoint(tmp_path / "repo")


def test_a_companion_may_be_a_link_within_the_repository(tmp_path: Path) -> None:
    folder = write_openai(tmp_path / "repo" / "original")
    (folder / "config.json").rename(tmp_path / "repo" / "config.json")
    (folder / "config.json").symlink_to("../config.json")
    assert load_checkpoint(tmp_path / "repo").config.hidden_size == SIZES["hidden_size"]


def test_float16_is_widened_to_float32(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].to(torch.float16)
    save_file(tensors, folder / "model.safetensors")
    weight = load_checkpoint(folder).weights.blocks[1].attn.k_weight
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, tensors[name].float().numpy())


def test_the_first_token_may_end_an_answer(tmp_path: Path) -> None:
    folder = write_openai(tmp_path / "c")
    for stop in (0, [0, 130]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
        expected = tuple(stop) if isinstance(stop, list) else (stop,)
        assert load_checkpoint(folder).config.eos_token_ids == expected


def test_the_first_token_that_is_none(tmp_path: Path) -> None:
    folder = write_openai(tmp_path / "c")
    (folder / "generation_config.json").write_text('{"eos_token_id": 131}')
    with pytest.raises(
        ConfigError, match="eos_token_id must hold token ids from 0 to 130, not 131"
    ):
        load_checkpoint(folder)


def test_a_quantization_that_is_a_text(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": "int4"}))
    with pytest.raises(ConfigError, match="quant_method must be 'mxfp4', not 'int4'"):
        load_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": "mxfp4"}))
    assert load_checkpoint(folder).layout == "hf"


def test_a_layer_has_a_number_of_at_most_nine_digits(tmp_path: Path) -> None:
    """More digits are no layer: int() of very many is slow."""
    folder = write_openai(tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"block.7": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown tensor 'block\.7'"):
        load_checkpoint(folder)
    for digits, message in ((9, "holds tensors of 5 layers"), (10, "unknown tensor 'block.1")):
        more = {f"block.{'1' * digits}.x": torch.zeros(1)}
        save_file(tensors | more, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(folder)
