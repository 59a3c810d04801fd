"""The parameter table: the model card's figures, and counts that agree with the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gptoss_ref import GPT_OSS_20B, ModelConfig, load, load_checkpoint
from gptoss_ref.checkpoint.summary import Info, describe, short, size
from gptoss_ref.errors import CheckpointError, ConfigError
from tests.support.checkpoint_files import (
    SIZES,
    openai_tensors,
    write_hf,
    write_hf_bfloat16,
    write_openai,
)

WRITERS = {"openai": write_openai, "hf": write_hf, "hf-bfloat16": write_hf_bfloat16}

# arXiv 2508.10925, table 1, as printed: billions of parameters, and GiB.
MODEL_CARD = {
    "20b": ("19.12", "0.64", "1.16", "3.61", "20.91", "12.8"),
    "120b": ("114.71", "0.96", "1.16", "5.13", "116.83", "60.8"),
}


@pytest.mark.parametrize("name", sorted(MODEL_CARD))
def test_model_card(name: str) -> None:
    info = describe(name)
    *parameters, gib = MODEL_CARD[name]
    rows = ["MLP", "attention", "embed + unembed", "active", "total"]
    assert [f"{info.card[row] / 1e9:.2f}" for row in rows] == parameters
    assert f"{info.card['checkpoint'] / 2**30:.1f}" == gib
    text = str(info)
    for figure in parameters:
        assert f"{figure} B" in text
    assert f"{gib} GiB" in text
    assert info.layout is None
    assert info.path is None
    assert describe(f"gpt-oss-{name}") == info
    assert info.name == f"gpt-oss-{name}"


def test_rows_add_up() -> None:
    info = describe(GPT_OSS_20B)
    assert info.component("embedding").total == info.component("unembedding").total == 201088 * 2880
    assert info.component("embedding").active == 0
    assert info.component("experts").active * 8 == info.component("experts").total
    assert info.component("router").total == 24 * 32 * 2881
    assert info.component("norms").total == (2 * 24 + 1) * 2880
    assert info.card["MLP"] == info.component("experts").total + info.component("router").total
    # q, k, v and out with their biases, and one sink a head
    per_layer = 5120 * 2881 + 2880 * 4097 + 64
    assert info.component("attention").total == 24 * per_layer


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_checkpoint_is_counted_from_its_files(tmp_path: Path, layout: str) -> None:
    """Parameters and bytes of every layout, against the tensors themselves."""
    folder = WRITERS[layout](tmp_path / "c", shards=2)
    info = describe(folder)
    experts = "bfloat16" if layout == "hf-bfloat16" else "mxfp4"
    assert (info.layout, info.experts) == (layout.removesuffix("-bfloat16"), experts)
    assert info.path == str(folder)
    assert f"{info.layout} layout, {experts} experts, {folder}" in str(info)
    files = [load_file(f) for f in folder.glob("*.safetensors")]
    assert info.nbytes == sum(t.nbytes for tensors in files for t in tensors.values())
    expected = sum(
        2 * tensor.numel() if name.endswith(".blocks") else tensor.numel()
        for name, tensor in openai_tensors().items()
        if not name.endswith(".scales")
    )
    assert info.total == expected
    assert describe(str(folder)) == describe(folder)
    assert describe(load_checkpoint(folder)) == info
    assert info.name == str(folder)
    for file in folder.glob("*.safetensors"):  # bytes are those of the stored dtype
        wide = {n: t.float() if t.is_floating_point() else t for n, t in load_file(file).items()}
        save_file(wide, file)
    wider = describe(folder)
    assert (wider.total, wider.active) == (info.total, info.active)
    files = [load_file(f) for f in folder.glob("*.safetensors")]
    assert (
        wider.nbytes == sum(t.nbytes for tensors in files for t in tensors.values()) > info.nbytes
    )


def test_configuration_alone_gives_the_size_of_the_files(tmp_path: Path) -> None:
    info = describe(ModelConfig(**SIZES, max_position_embeddings=256))
    assert info.components == describe(write_hf(tmp_path / "c")).components
    odd = ModelConfig(**{**SIZES, "hidden_size": 63}, max_position_embeddings=256)
    assert describe(odd).nbytes == 2 * describe(odd).total
    assert (describe(odd).experts, info.experts) == ("bfloat16", "mxfp4")
    assert (info.name, info.path, info.layout) == ("configuration", None, None)


def test_active_is_what_one_token_reads() -> None:
    """Changing the number of experts changes the total, and of the active count only the router."""
    small = describe(ModelConfig(**SIZES))
    more = describe(ModelConfig(**{**SIZES, "num_experts": 10}))
    added = 5 * (SIZES["hidden_size"] + 1) * SIZES["num_hidden_layers"]
    assert more.active - small.active == added
    assert more.component("experts").total == 2 * small.component("experts").total


@given(st.integers(0, 30))
def test_kv_cache_grows_on_full_layers_only(tokens: int) -> None:
    """Two full layers and two with a window of 7, which have room for twice that."""
    info = describe(ModelConfig(**SIZES))
    per_token = 2 * SIZES["num_key_value_heads"] * SIZES["head_dim"] * 4
    room = 14 if tokens else 0
    assert info.kv_cache_bytes(tokens) == 2 * per_token * (tokens + room)
    assert info.kv_cache_bytes(tokens, 8) == 2 * info.kv_cache_bytes(tokens)


def test_kv_cache_of_the_released_models() -> None:
    """12 and 18 full layers of 8 heads of 64, keys and values, 4 bytes; as many with a window."""
    for name, layers in (("20b", 12), ("120b", 18)):
        info = describe(name)
        assert info.kv_cache_bytes_per_token() == layers * 4096
        assert info.kv_cache_windowed_bytes() == layers * 256 * 4096
        assert info.to_json()["kv_cache"]["bytes_at"] == {
            str(n): layers * 4096 * (n + 256) for n in (4096, 32768, 131072)
        }
    assert "48.0 KiB per token" in str(describe("20b"))
    assert "at 4,096" in str(describe("20b"))
    lengths = "204.0 MiB at 4,096, 1.5 GiB at 32,768, 6.0 GiB at 131,072"
    assert str(describe("20b")).endswith(lengths)


def test_kv_cache_bytes_agree_with_the_cache(tmp_path: Path) -> None:
    """64 positions are what a cache first reserves on a full layer, so it has no slack then."""
    model = load(write_hf(tmp_path / "c"))
    cache = model.new_cache()
    assert cache.nbytes == describe(model.config).kv_cache_bytes(0)
    model([7] * 64, cache=cache)
    assert describe(model.config).kv_cache_bytes(64) == cache.nbytes


def test_json(tmp_path: Path) -> None:
    for info in (describe("20b"), describe(write_hf(tmp_path / "c"))):
        value = json.loads(json.dumps(info.to_json()))
        assert set(value) == {
            *("name", "path", "layout", "experts", "config", "components", "parameters", "bytes"),
            *("active_parameters", "kv_cache", "model_card"),
        }
        assert (value["name"], value["path"]) == (info.name, info.path)
        assert value["experts"] == info.experts == "mxfp4"
        assert value["kv_cache"]["dtype"] == "float32"
        assert value["kv_cache"]["bytes_per_token"] == info.kv_cache_bytes_per_token()
        assert value["kv_cache"]["bytes_of_windowed_layers"] == info.kv_cache_windowed_bytes()
        assert value["model_card"] == info.card
        assert all(
            type(row[key]) is int for row in value["components"] for key in row if key != "name"
        )
        assert value["parameters"] == info.total
        assert value["active_parameters"] == info.active
        assert value["bytes"] == info.nbytes
        assert value["layout"] == info.layout
        assert sum(row["total"] for row in value["components"]) == info.total
        assert value["config"]["num_hidden_layers"] == info.config.num_hidden_layers


def test_text_has_every_row(tmp_path: Path) -> None:
    info: Info = describe(write_hf(tmp_path / "c"))
    text = str(info)
    for row in info.components:
        assert f"{row.total:,}" in text
        assert row.name in text
    assert "hf layout" in text
    assert "2 with a window of 7" in text


def test_the_whole_text() -> None:
    """Of a configuration without weights: D 64, F 96, V 131, E 5, …; the counts are by hand."""
    attention = 4 * ((72 + 24 + 24) * 65 + 64 * 73 + 6)
    router, experts, norms = 4 * 5 * 65, 4 * 5 * (192 * 65 + 64 * 97), 9 * 64
    blocks = 4 * 5 * (192 * 64 + 64 * 96) * 17 // 32 + 2 * 4 * 5 * (192 + 64)
    rows = [
        ("attention", attention, attention, 2 * attention),
        ("router", router, router, 2 * router),
        ("experts", experts, experts * 2 // 5, blocks),
        ("norms", norms, norms, 2 * norms),
        ("embedding", 131 * 64, 0, 2 * 131 * 64),
        ("unembedding", 131 * 64, 131 * 64, 2 * 131 * 64),
    ]
    total = ("total", *(sum(row[n] for row in rows) for n in (1, 2, 3)))
    assert str(describe(ModelConfig(**SIZES, max_position_embeddings=256))).splitlines() == [
        "configuration: mxfp4 experts, no weights",
        "4 layers (2 with a window of 7), D 64, F 96, V 131",
        "heads H 6 / K 2, size C 12; experts E 5, A 2 per token; context 256",
        "",
        "                    parameters          active             bytes",
        *(f"{n:<12}{t:>18,}{a:>16,}{b:>18,}" for n, t, a, b in [*rows, total]),
        "",
        f"{total[1] / 1e3:.2f} K parameters, {total[2] / 1e3:.2f} K active; "
        f"MLP {(experts + router) / 1e3:.2f} K, attention {attention / 1e3:.2f} K, "
        f"embed + unembed {2 * 131 * 64 / 1e3:.2f} K; {total[3] / 1024:.1f} KiB",
        "key/value cache, float32: 384 B per token, and 5.2 KiB for the windowed layers at any "
        "length: 101.2 KiB at 256",
    ]


def test_units() -> None:
    assert [short(n) for n in (7, 1500, 2_340_000, 636_000_000)] == [
        "7", "1.50 K", "2.34 M", "0.64 B",
    ]  # fmt: skip
    edges = (999, 1000, 999_999, 10**6, 10**8 - 1, 10**8, 2 * 10**8, 10**9)
    assert [short(n) for n in edges] == [
        "999", "1.00 K", "1000.00 K", "1.00 M", "100.00 M", "0.10 B", "0.20 B", "1.00 B",
    ]  # fmt: skip
    assert [size(n) for n in (1023, 1024, 2**20 - 1, 2**20, 2**30)] == [
        "1023 B", "1.0 KiB", "1024.0 KiB", "1.0 MiB", "1.0 GiB",
    ]  # fmt: skip
    assert [size(n) for n in (7, 1536, 3 << 20, 5 << 30)] == [
        "7 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]


def test_a_folder_wins_over_the_name_of_a_released_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hf(tmp_path / "gpt-oss-20b")
    assert describe("gpt-oss-20b").path is None
    monkeypatch.chdir(tmp_path)
    assert describe("gpt-oss-20b").path is not None


def test_a_hub_id_is_no_misspelt_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for model in ("openai/gpt-oss-20b", "./gpt-os-20b"):
        with pytest.raises(CheckpointError, match=f"^{model}: no such folder") as caught:
            describe(model)
        assert "did you mean" not in str(caught.value)


def test_bad_input(tmp_path: Path) -> None:
    for name, meant in (("21b", "20b"), ("gpt-os-120B", "gpt-oss-120b"), ("tinny", "tiny")):
        with pytest.raises(CheckpointError, match=f"^{name}: no such folder: did you mean {meant}"):
            describe(name)
    with pytest.raises(CheckpointError, match="no such folder; expected"):
        describe("neither")
    folder = write_hf(tmp_path / "c")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json: the key 'num_hidden_layers' is missing"):
        describe(folder)
