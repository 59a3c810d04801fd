"""The other commands: generate, info, convert, selfcheck; and what all commands share."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import gptoss_ref
from gptoss_ref.cli import main
from gptoss_ref.cli.parser import build_parser
from gptoss_ref.kernels.runtime.isa import path_name
from gptoss_ref.kernels.runtime.warmup import Progress
from gptoss_ref.verify.published import Check, SelfCheck

pytestmark = pytest.mark.usefixtures("warm_kernels")

Captured = pytest.CaptureFixture[str]
COMMANDS = ["chat", "generate", "info", "convert", "selfcheck", "warmup", "doctor"]
PROMPT = "What is 27 + 58?"


def test_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"gptoss-ref {gptoss_ref.__version__}\n"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(command: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    assert capsys.readouterr().out.startswith(" ".join(["usage: gptoss-ref", *command]))


def test_every_command_is_listed() -> None:
    text = build_parser().format_help()
    assert all(f"    {name}" in text for name in COMMANDS)


def test_help_loads_nothing() -> None:
    code = (
        "import sys\n"
        "from gptoss_ref.cli import main\n"
        "try: main(['chat', '--help'])\n"
        "except SystemExit: print('numpy' in sys.modules, 'rich' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False"


# --- generate ----------------------------------------------------------------------------------


def test_generate_in_json_is_what_the_library_generates(capsys: Captured) -> None:
    model = gptoss_ref.load("tiny")
    prompt = model.tokenizer.encode(PROMPT)
    tokens = list(gptoss_ref.generate(model, prompt, max_new_tokens=9))
    assert main(["generate", PROMPT, "--max-tokens", "9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompt"] == prompt
    assert [token["id"] for token in result["tokens"]] == tokens
    np.testing.assert_allclose(
        [token["logprob"] for token in result["tokens"]], [token.logprob for token in tokens]
    )
    assert result["tokens_per_second"] == pytest.approx(len(tokens) / result["seconds"], rel=1e-3)


def test_generate_streams_the_same_text(capsys: Captured) -> None:
    arguments = ["generate", PROMPT, "--max-tokens", "9", "--temperature", "1.5", "--seed", "7"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert text == result["text"] + "\n"


def test_generate_of_no_tokens(capsys: Captured) -> None:
    assert main(["generate", PROMPT, "--max-tokens", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == []
    assert result["tokens_per_second"] == 0


@pytest.mark.parametrize("room", [1, 4])
def test_generate_ends_where_the_context_is_full(
    room: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """The last of the new tokens is never computed: a full prompt still has one."""
    model = gptoss_ref.load("tiny")
    context = len(model.tokenizer.encode(PROMPT)) + room - 1
    model.config = dataclasses.replace(model.config, max_position_embeddings=context)
    monkeypatch.setattr(gptoss_ref.Model, "stop_tokens", ())
    monkeypatch.setattr("gptoss_ref.cli.generate.load_model", lambda *_, **__: model)
    assert main(["generate", PROMPT, "--max-tokens", "50", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["tokens"]) == room
    assert main(["generate", PROMPT, "--max-tokens", "50"]) == 0
    assert capsys.readouterr() == (result["text"] + "\n", "")


@pytest.mark.parametrize("option", ["temperature=2", "top-k=5", "top-p=0.5", "seed=3"])
def test_generate_passes_sampling_options_on(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, value = option.partition("=")
    given = {}

    def spy(model: object, tokens: object, **options: object) -> list[int]:
        given.update(options)
        return []

    monkeypatch.setattr("gptoss_ref.cli.generate.generate", spy)
    assert main(["generate", PROMPT, f"--{name}", value]) == 0
    assert given[name.replace("-", "_")] == float(value)


def test_policy_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(model: gptoss_ref.Model, *_: object, **__: object) -> list[int]:
        seen.append((model.policy.name, model.backend.name))
        return []

    monkeypatch.setattr("gptoss_ref.cli.generate.generate", spy)
    assert main(["generate", PROMPT, "--policy", "bfloat16", "--backend", "numpy"]) == 0
    assert seen == [("bfloat16", "numpy")]


# --- info --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "figures"),
    [
        ("20b", ["20.91 B", "3.61 B", "19.12 B", "0.64 B", "1.16 B", "12.8 GiB"]),
        ("120b", ["116.83 B", "5.13 B", "114.71 B", "0.96 B", "1.16 B", "60.8 GiB"]),
    ],
)
def test_info_agrees_with_the_model_card(model: str, figures: list[str], capsys: Captured) -> None:
    """arXiv 2508.10925, table 1: total, active, MLP, attention, embed and unembed, checkpoint."""
    assert main(["info", model]) == 0
    text = capsys.readouterr().out
    assert all(figure in text for figure in figures)


def test_info_in_json(capsys: Captured) -> None:
    assert main(["info", "20b", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["parameters"] == 20_914_757_184
    assert info["config"]["num_hidden_layers"] == 24


def test_info_of_the_bundled_model(capsys: Captured) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert main(["info", "tiny", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert f"{info['parameters']:,}" in text
    folder = Path(info["path"])
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert 0 <= on_disk - info["bytes"] < 50_000  # the difference is the files' headers


# --- convert -----------------------------------------------------------------------------------


def test_convert_there_and_back(tmp_path: Path, capsys: Captured) -> None:
    # Dense experts lie transposed in memory, where a matrix product may sum in another order.
    rounding = 1e-12
    tokens = gptoss_ref.load("tiny").tokenizer.encode(PROMPT)
    expected = gptoss_ref.load("tiny", policy="float64")(tokens)
    for source, target, options in (
        ("tiny", "openai", ["--layout", "openai"]),
        (str(tmp_path / "openai"), "hf", ["--layout", "hf"]),
        (str(tmp_path / "hf"), "dense", ["--experts", "bfloat16"]),
    ):
        folder = tmp_path / target
        assert main(["convert", source, str(folder), *options, "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert json.loads(out)["path"] == str(folder)
        logits = gptoss_ref.load(folder, policy="float64")(tokens)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=rounding * np.ptp(expected))


def test_convert_says_what_it_wrote(tmp_path: Path, capsys: Captured) -> None:
    assert main(["convert", "tiny", str(tmp_path / "openai"), "--layout", "openai"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'openai'}: openai layout")


# --- selfcheck ---------------------------------------------------------------------------------


@pytest.mark.parametrize("passed", [True, False])
def test_selfchecks_verdict_is_the_exit_status(
    passed: bool, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    verdict = SelfCheck("gpt-oss-20b", "float32", (Check("text", passed, "2 of 2", "a source"),))
    monkeypatch.setattr("gptoss_ref.cli.selfcheck.load_model", lambda *_, **__: None)
    monkeypatch.setattr("gptoss_ref.cli.selfcheck.selfcheck", lambda *_, **__: verdict)
    assert main(["selfcheck", "folder"]) == (0 if passed else 1)
    assert capsys.readouterr().out == f"{verdict}\n"
    assert main(["selfcheck", "folder", "--json"]) == (0 if passed else 1)
    assert json.loads(capsys.readouterr().out)["passed"] is passed


# --- kernels -----------------------------------------------------------------------------------


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing seems to be compiled; what would be compiled is noted."""
    compiled: list[str] = []

    def warmup(progress: Progress, *, width: int | None = None) -> None:
        for done, name in enumerate(("attention", "experts")):
            progress(name, done, 2)
            compiled.append(f"{name}, {width}")

    monkeypatch.setattr("gptoss_ref.kernels.runtime.warmup.is_warm", lambda width=None: False)
    monkeypatch.setattr("gptoss_ref.kernels.runtime.warmup.warmup", warmup)
    return compiled


def test_the_first_use_says_that_kernels_compile(cold: list[str], capsys: Captured) -> None:
    assert main(["generate", PROMPT, "--max-tokens", "1", "--backend", "numba"]) == 0
    assert cold == ["attention, 96", "experts, 96"]
    assert capsys.readouterr().err == "compiling kernels, once\n"


@pytest.mark.parametrize("options", [["--backend", "numpy"], ["--policy", "float64"]])
def test_what_needs_no_kernels_compiles_none(
    options: list[str], cold: list[str], capsys: Captured
) -> None:
    assert main(["generate", PROMPT, "--max-tokens", "1", *options]) == 0
    assert cold == []
    assert capsys.readouterr().err == ""


def test_a_small_model_answers_before_kernels_compile(
    cold: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("gptoss_ref.backend.compiled", lambda size: False)
    assert main(["generate", PROMPT, "--max-tokens", "1"]) == 0
    assert cold == []
    assert capsys.readouterr().err == ""


def test_bad_input_comes_before_compiling(cold: list[str]) -> None:
    """Nobody waits for kernels to be told of a mistake."""
    for command in (["generate", "x", "--temperature", "-1"], ["chat", "x", "--top-p", "2"],
                    ["chat", "x", "--model", "no/such"], ["selfcheck", "no/such"]):  # fmt: skip
        assert main(command) == 2
    assert cold == []


def test_where_kernels_cannot_be_kept_a_warning_says_so(
    cold: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def is_warm(width: int | None = None) -> bool:
        warnings.warn("cannot write to the kernel cache", RuntimeWarning, stacklevel=1)
        return False

    monkeypatch.setattr("gptoss_ref.kernels.runtime.warmup.is_warm", is_warm)
    monkeypatch.setattr("gptoss_ref.kernels.runtime.jit.cache_folder", lambda: None)
    assert main(["generate", PROMPT, "--max-tokens", "1", "--backend", "numba"]) == 0
    expected = "warning: cannot write to the kernel cache\ncompiling kernels\n"
    assert capsys.readouterr().err == expected


def test_warmup(cold: list[str], capsys: Captured) -> None:
    assert main(["warmup", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["compiled"] is True
    assert result["instruction_path"] == path_name()
    assert Path(result["cache_folder"]).is_dir()
    assert result["width"] is None
    assert main(["warmup", "--width", "2880"]) == 0
    said = f"kernels for {path_name()} and models like those of width 2880: compiled in "
    assert capsys.readouterr().out.startswith(said)
    assert cold == ["attention, None", "experts, None", "attention, 2880", "experts, 2880"]


def test_warmup_of_what_is_compiled(capsys: Captured) -> None:
    assert main(["warmup", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compiled"] is False
    assert capsys.readouterr().err == ""


def test_doctor(capsys: Captured) -> None:
    assert main(["doctor", "--megabytes", "64", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["predicted_tokens_per_second"]) == {"20b", "120b"}
    assert main(["doctor", "--megabytes", "64"]) == 0
    text = capsys.readouterr().out
    for key in ("cpu", "instruction_path", "threading_layer", "cache_folder"):
        assert report[key] in text
    assert f"numba {report['versions']['numba']}" in text
    for words in ("GB/s", "tokens/s of 20b", "tokens/s of 120b"):
        assert words in text


# --- --download --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["info"], ["generate", "x", "--model"], ["selfcheck"]])
def test_download_comes_first(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    asked = []

    def fetch(hub_id: str) -> Path:
        asked.append(hub_id)
        return tmp_path / "snapshot"

    monkeypatch.setattr("gptoss_ref.checkpoint.download", fetch)
    assert main([*command, "someone/something", "--download"]) == 2
    assert asked == ["someone/something"]
    assert f"{tmp_path / 'snapshot'}: no such folder" in capsys.readouterr().err


# --- processes ---------------------------------------------------------------------------------


def test_as_a_module_and_as_a_script() -> None:
    code = "from gptoss_ref.cli import entry_point; entry_point()"
    module, script = (
        subprocess.run([sys.executable, *start, "info", "20b"], capture_output=True, check=True)
        for start in (["-m", "gptoss_ref"], ["-c", code])
    )
    assert module.stdout == script.stdout != b""
    assert module.stderr == script.stderr == b""


def test_a_reader_that_leaves_ends_the_command_silently() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gptoss_ref", "generate", PROMPT, "--max-tokens", "300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 141
    assert errors == b""


def test_an_argument_that_is_not_utf8() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gptoss_ref", "generate", b"caf\xe9", "--max-tokens", "2"],
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 2)
