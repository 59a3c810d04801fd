"""Bad input at the command line: status 2 and one line that names the thing, never a traceback."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")  # checkpoint_files writes the checkpoints with it

import torch

from gptoss_ref.chat import small_harmony, tokenizer_json
from gptoss_ref.cli import main
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import ConfigError
from tests.support.checkpoint_files import (
    Tensors,
    hf_config,
    hf_tensors,
    openai_tensors,
    write,
    write_hf,
)

pytestmark = pytest.mark.usefixtures("warm_kernels")

TOKENIZER = small_harmony(256)  # one token a byte, and the special tokens


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail as bad input; gives its one line."""

    def run(*argv: str) -> str:
        assert main(list(argv)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("gptoss-ref: error: ")
        assert captured.err.count("\n") == 1
        assert captured.err.endswith("\n")
        return captured.err.removeprefix("gptoss-ref: error: ").rstrip("\n")

    return run


def checkpoint(
    folder: Path, change: Callable[[Tensors], None] | None = None, **config: Any
) -> Path:
    """A random checkpoint with a tokenizer, its tensors or config.json changed."""
    tensors = hf_tensors(openai_tensors())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.arange(TOKENIZER.vocab_size) % len(tensors[name])
        tensors[name] = tensors[name][rows]
    if change is not None:
        change(tensors)
    sizes = {"vocab_size": TOKENIZER.vocab_size, "eos_token_id": list(TOKENIZER.stop_tokens)}
    write(folder, tensors, hf_config(**(sizes | config)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(TOKENIZER)))
    return folder


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the header of a safetensors file and leaves its data as they are."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


# --- the command line itself -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["chatt"], "unknown command 'chatt': did you mean chat"),
        (["chat", "hello", "--loud"], "unknown option --loud"),
        (["chat", "hello", "there"], "unexpected: there"),
        (["chat", "hello", "--temperature", "warm"], "--temperature: invalid float value: 'warm'"),
        (["chat", "hello", "--max-tokens", "1.5"], "--max-tokens: invalid int value: '1.5'"),
        (["chat", "hello", "--seed", "-1"], "--seed: expected an integer of 0 or more, not '-1'"),
        (["chat", "hello", "--model"], "--model: expected one argument"),
        (["generate"], "PROMPT"),
        (["convert", "tiny"], "DST"),
        (
            ["convert", "tiny", "out", "--layout", "gguf"],
            "unknown --layout 'gguf': expected one of hf, openai",
        ),
        (["convert", "tiny", "out", "--experts", "int4"], "unknown --experts 'int4'"),
        (["selfcheck"], "MODEL"),
        (["warmup", "now"], "unexpected: now"),
        (["warmup", "--width", "0"], "--width: expected an integer of 1 or more"),
        (["doctor", "--megabytes", "63"], "--megabytes: expected an integer of 64 or more"),
        (["doctor", "--megabytes", "x"], "--megabytes: expected an integer of 64 or more"),
    ],
)
def test_command_line(fails: Callable[..., str], argv: list[str], message: str) -> None:
    line = fails(*argv)
    assert message in line
    assert "--help" in line


NINES = 5000 * "9"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate", "hello", "--max-tokens", NINES], "--max-tokens: invalid int value:"),
        (["chat", "hello", "--temperature", NINES + "x"], "--temperature: invalid float value:"),
        (["chat", "hello", "--seed", NINES], "--seed: expected an integer of 0 or more"),
        (["trace", "tiny", "-o", "x", "--tokens", NINES], "--tokens: expected token ids such as"),
        (["doctor", "--megabytes", NINES], "--megabytes: expected an integer of 64 or more"),
        (["generate", "hello", "--model", NINES], "File name too long"),
    ],
)
def test_a_very_long_number_is_cut(
    fails: Callable[..., str], argv: list[str], message: str
) -> None:
    line = fails(*argv)
    assert message in line
    assert "999999999999… (5000 digits)" in line
    assert len(line) < 300


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "temperature is -1.0: expected 0 or more"),
        (["--temperature", "nan"], "temperature is nan: expected 0 or more"),
        (["--temperature", "inf"], "temperature is inf: expected 0 or more"),
        (["--top-p", "0"], "top_p is 0.0: expected over 0 and at most 1"),
        (["--top-p", "1.5"], "top_p is 1.5: expected over 0 and at most 1"),
        (["--top-k", "-3"], "top_k is -3: expected a whole number, 0 (all) or more"),
        (["--policy", "float16"], "unknown policy 'float16': expected one of float64, float32"),
        (["--backend", "cuda"], "unknown backend 'cuda': expected one of auto, numba, numpy"),
        (["--model", "no/such/folder"], "no/such/folder: no such folder"),
    ],
)
def test_options(fails: Callable[..., str], command: str, options: list[str], message: str) -> None:
    assert message in fails(command, "hello", *options)


def test_numbers_of_tokens(fails: Callable[..., str]) -> None:
    """A chat says at least something; a continuation may be empty."""
    for wrong in ("0", "-1"):
        line = fails("chat", "hello", "--max-tokens", wrong)
        assert line == f"--max-tokens is {wrong}: expected 1 or more"
    line = fails("generate", "hello", "--max-tokens", "-1")
    assert line == "max_new_tokens is -1: expected a whole number, 0 or more"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reasoning", "extreme"], "'extreme': expected one of low, medium, high"),
        (["--tools", "no/such/tools.json"], "no/such/tools.json: No such file"),
        (["--date", "yesterday"], "yesterday"),
    ],
)
def test_chat_options(fails: Callable[..., str], options: list[str], message: str) -> None:
    assert message in fails("chat", "hello", *options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"", "not JSON"),
        (b"3", "expected an object with name"),
        (b"[{}]", "expected an object with name"),
        (b'[{"name": 7}]', "expected an object with name"),
        (b'[{"name": ""}]', "expected a non-empty text"),
        (b'[{"name": "add", "parameters": [1]}]', "parameters must be a JSON schema object"),
        (b'[{"name": "add", "description": 5}]', "description must be text"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_tools_file(
    fails: Callable[..., str], tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "tools.json"
    file.write_bytes(content)
    line = fails("chat", "hello", "--tools", str(file))
    assert message in line
    assert str(file) in line


@pytest.mark.parametrize("message", ["", "  \n"])
def test_empty_message(fails: Callable[..., str], message: str) -> None:
    assert "MESSAGE is empty" in fails("chat", message)


def test_empty_prompt(fails: Callable[..., str]) -> None:
    assert fails("generate", "") == "the prompt is empty: expected at least one token"


# --- checkpoints -------------------------------------------------------------------------------


def missing_tensor(tensors: Tensors) -> None:
    del tensors["model.layers.2.self_attn.sinks"]


def unknown_tensor(tensors: Tensors) -> None:
    tensors["model.layers.2.self_attn.sink"] = torch.zeros(3)


def wrong_dtype(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int16)


def wrong_shape(tensors: Tensors) -> None:
    name = "model.layers.1.mlp.router.weight"
    tensors[name] = tensors[name].T.contiguous()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (missing_tensor, ["'model.layers.2.self_attn.sinks' is missing"]),
        (unknown_tensor, ["model.safetensors", "unknown", "'model.layers.2.self_attn.sink'"]),
        (wrong_dtype, ["model.safetensors", "'model.norm.weight' is I16", "expected BF16"]),
        (wrong_shape, ["'model.layers.1.mlp.router.weight' has shape (64, 5)", "(5, 64)"]),
    ],
)
@pytest.mark.parametrize("command", ["info", "generate", "convert"])
def test_tensors(
    fails: Callable[..., str],
    tmp_path: Path,
    command: str,
    change: Callable[[Tensors], None],
    expected: list[str],
) -> None:
    folder = str(checkpoint(tmp_path / "model", change))
    arguments = {
        "info": [folder],
        "generate": ["HI", "--model", folder],
        "convert": [folder, str(tmp_path / "converted")],
    }
    line = fails(command, *arguments[command])
    assert all(part in line for part in expected), line
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("hidden_size", None, ["hidden_size"]),
        ("rope_scaling", None, ["rope_scaling"]),
        ("num_hidden_layers", 3, ["layer_types has 4 entries", "num_hidden_layers 3"]),
        ("num_attention_heads", 4, ["q_proj", "shape"]),
        ("num_key_value_heads", 4, ["num_attention_heads (6)", "num_key_value_heads (4)"]),
        ("vocab_size", "277", ["vocab_size", "integer", "'277'"]),
        ("tie_word_embeddings", True, ["tie_word_embeddings", "False"]),
    ],
)
def test_configuration(
    fails: Callable[..., str], tmp_path: Path, key: str, value: Any, expected: list[str]
) -> None:
    folder = checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    if value is None:
        del config[key]
    else:
        config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    line = fails("info", str(folder))
    assert all(part in line for part in [*expected, "config.json"]), line


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"hidden_size": 1, "hidden_size": 1}'])
def test_configuration_that_is_no_object(
    fails: Callable[..., str], tmp_path: Path, text: str
) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "config.json").write_text(text)
    assert "config.json" in fails("info", str(folder))


def test_missing_configuration(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "config.json").unlink()
    assert "config.json: no such file" in fails("info", str(folder))


def test_missing_shard(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in fails("info", str(folder))


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_truncated_shard(fails: Callable[..., str], tmp_path: Path, kept: int) -> None:
    file = checkpoint(tmp_path / "model") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "model.safetensors" in fails("info", str(tmp_path / "model"))


def test_overlapping_tensors(fails: Callable[..., str], tmp_path: Path) -> None:
    name = "model.layers.1.input_layernorm.weight"

    def overlap(header: dict[str, Any]) -> None:
        header[name]["data_offsets"] = [offset - 2 for offset in header[name]["data_offsets"]]

    folder = checkpoint(tmp_path / "model")
    rewrite_header(folder / "model.safetensors", overlap)
    line = fails("info", str(folder))
    assert "model.safetensors" in line
    assert name in line
    assert "overlap" in line


def test_tensor_in_two_shards(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", shards=2)
    shutil.copy(
        folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    )
    assert "model-0000" in fails("info", str(folder))


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", 7])
def test_index_that_names_another_place(
    fails: Callable[..., str], tmp_path: Path, shard: Any
) -> None:
    folder = write_hf(tmp_path / "model", shards=2)
    shutil.copy(folder / "model-00001-of-00002.safetensors", tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for name, file in content["weight_map"].items():
        if file.startswith("model-00001"):
            content["weight_map"][name] = shard
    index.write_text(json.dumps(content))
    line = fails("info", str(folder))
    assert "model.safetensors.index.json" in line
    assert str(shard) in line


def test_empty_folder(fails: Callable[..., str], tmp_path: Path) -> None:
    line = fails("info", str(tmp_path))
    assert line.startswith(f"{tmp_path}: holds neither config.json nor .safetensors files")
    assert "expected a checkpoint folder" in line


@pytest.mark.parametrize(
    "argv", [["info", ""], ["generate", "HI", "--model", ""], ["convert", "", "out"]]
)
def test_empty_path(fails: Callable[..., str], argv: list[str]) -> None:
    assert "the path of the checkpoint is empty; expected a checkpoint" in fails(*argv)


def test_conversion_to_an_empty_path(fails: Callable[..., str]) -> None:
    assert fails("convert", "tiny", "").startswith("the path of the result is empty; expected")


def test_empty_path_of_a_configuration() -> None:
    with pytest.raises(ConfigError, match=r"the path of config\.json is empty"):
        ModelConfig.from_json("")


def test_folder_for_a_configuration(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    line = fails("info", str(tmp_path))
    assert line == f"{tmp_path / 'config.json'}: cannot be read: it is a folder"


def test_released_name_for_weights(fails: Callable[..., str]) -> None:
    assert "a configuration without weights" in fails("generate", "HI", "--model", "20b")


def test_file_for_a_folder(fails: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "expected a checkpoint folder" in fails("info", str(file))


def test_missing_tokenizer(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in fails("generate", "HI", "--model", str(folder))


def test_context_too_long(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", max_position_embeddings=40)
    line = fails("generate", "A" + "+B" * 30, "--model", str(folder))
    assert "exceed the context: expected at most 40 (max_position_embeddings)" in line


def test_scale_of_255(fails: Callable[..., str], tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["model.layers.1.mlp.experts.down_proj_scales"][:, 3, 1] = 255

    folder = str(checkpoint(tmp_path / "model", spoil))
    for line in (
        fails("generate", "HI", "--model", folder),
        fails("convert", folder, str(tmp_path / "dense"), "--experts", "bfloat16"),
    ):
        assert "model.layers.1.mlp.experts.down_proj_scales" in line
        assert "model.safetensors" in line
        assert "255" in line
    assert not (tmp_path / "dense").exists()


def test_conversion_onto_something(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (tmp_path / "there").mkdir()
    assert "there: already exists" in fails("convert", str(folder), str(tmp_path / "there"))


def test_conversion_into_nowhere(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    target = tmp_path / "no" / "such" / "folder"
    assert str(target.parent) in fails("convert", str(folder), str(target))


def test_options_that_exclude_each_other(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    line = fails(
        "convert", str(folder), str(tmp_path / "out"), "--layout", "openai", "--experts", "bfloat16"
    )
    assert "the OpenAI layout stores experts as MXFP4 only" in line


def test_selfcheck_of_another_model(fails: Callable[..., str]) -> None:
    assert "20b" in fails("selfcheck", "tiny")


def test_download_of_no_hub_id(fails: Callable[..., str]) -> None:
    assert "not a Hub id" in fails("info", "here", "--download")


def test_download_without_its_extra(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "[hub]" in fails("info", "openai/gpt-oss-20b", "--download")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train tiny {} -o {}.out", "line 1"),
        ("trace tiny --tokens 1,999 -o {}.trace --backend numba", "token 999 at position 1"),
        ("generate  --backend numba", "the prompt is empty"),
    ],
)
def test_bad_input_does_not_wait_for_the_compiler(
    line: str, said: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(width: int) -> bool:
        raise AssertionError("compiled before the input was checked")

    monkeypatch.setattr("gptoss_ref.cli.compiling.compile_once", compiled)
    file = tmp_path / "file"
    file.write_text("not JSON\n")
    assert said in fails(*line.replace("{}", str(file)).split(" "))
    with pytest.raises(AssertionError, match="compiled before"):
        main(["trace", "tiny", "--tokens", "1", "-o", str(file), "--backend", "numba"])


def test_a_real_process_shows_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gptoss_ref", "info", str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gptoss-ref: error: ")
    assert done.stderr.count("\n") == 1
