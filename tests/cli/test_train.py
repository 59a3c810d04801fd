"""`gptoss-ref train`: an adapter, its evaluation, Ctrl-C and --resume, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gptoss_ref as gr
from gptoss_ref.checkpoint.peft import CONFIG, TENSORS
from gptoss_ref.checkpoint.reader import SafetensorsFile
from gptoss_ref.cli import main
from gptoss_ref.training.state import STATE, write_state

pytestmark = pytest.mark.usefixtures("warm_kernels")

LORA = ["--rank", "2", "--alpha", "4", "--targets", "*.attn.q_weight", "--rate", "0.01"]


def lines(*words: str) -> str:
    return "".join(
        json.dumps({"prompt": f"Spell {word}:", "completion": " ".join(word)}) + "\n"
        for word in words
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text(lines("cloud", "river", "stone", "maple", "lemon"))
    return file


def run(data: Path, out: Path, *more: str) -> int:
    return main(["train", "tiny", str(data), "-o", str(out), *LORA, "--batch", "2", *more])


def test_a_run_and_its_files(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, out, plot = tmp_path / "test.jsonl", tmp_path / "out", tmp_path / "loss.svg"
    test.write_text(lines("tiger"))
    steps = ["--steps", "4", "--evaluate-every", "2", "--held-out", str(test)]
    assert run(data, out, *steps, "--plot", str(plot), "--json") == 0
    said, notes = capsys.readouterr()
    result = json.loads(said)
    assert sorted(path.name for path in out.iterdir()) == sorted([CONFIG, TENSORS, STATE])
    assert result["steps"] == 4
    assert result["examples"] == 5
    assert result["parameters"] == 5 * 2 * (160 + 192)
    held_out = [e["step"] for e in result["history"] if "held_out_loss" in e]
    assert held_out == [0, 2, 4]
    assert "step 3 of 4: loss " in notes
    assert "step 4 of 4: held out: loss " in notes
    assert plot.read_text().count("<svg") == 1
    assert json.loads((out / CONFIG).read_text())["base_model_name_or_path"] == "tiny"


def test_epochs_and_a_summary(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path / "out", "--epochs", "1") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'out'}: 3520 parameters, 3 steps over 5 examples, loss ")


def test_the_folder_stands_for_the_model_in_every_command(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--steps", "3") == 0
    assert main(["generate", "Spell tiger:", "--model", str(out), "--max-tokens", "2"]) == 0
    assert main(["convert", str(out), str(tmp_path / "merged"), "--json"]) == 0
    merged = json.loads(capsys.readouterr().out.splitlines()[-1])["merged"]
    assert [m["weight"] for m in merged] == [f"block.{n}.attn.q_weight" for n in range(5)]
    tokens = gr.load("tiny").tokenizer.encode("Spell tiger:")
    exact, rounded = gr.load(out)(tokens), gr.load(tmp_path / "merged")(tokens)
    assert abs(exact - rounded).max() < 0.1 * abs(exact - gr.load("tiny")(tokens)).max()


def interrupted(data: Path, out: Path, number: signal.Signals) -> None:
    """Runs the command, sends it a signal after its second step, and checks how it ends."""
    command = [sys.executable, "-m", "gptoss_ref", "train", "tiny", str(data), "-o", str(out)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # `sh -c "… &"` ignores it
    try:
        process = subprocess.Popen(
            [*command, *LORA, "--batch", "2", "--steps", "24"], stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    while "step 2 of 24" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    rest = process.communicate()[1]
    assert process.returncode == 130
    assert "--resume continues" in rest
    assert "Traceback" not in rest


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM between processes")
def test_sigterm_saves_the_last_complete_step(data: Path, tmp_path: Path) -> None:
    """As `timeout`, batch systems and containers end a process."""
    out = tmp_path / "out"
    interrupted(data, out, signal.SIGTERM)
    assert (out / TENSORS).exists()
    assert 2 <= json.loads(SafetensorsFile(out / STATE).metadata["run"])["step"] < 24


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM between processes")
def test_a_second_sigterm_while_saving_is_ignored(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeout` sends one to the process and one to its group: the first one saves."""
    sent = []

    def terminate(*_: object, **__: object) -> None:
        sent.append(signal.getsignal(signal.SIGTERM))
        os.kill(os.getpid(), signal.SIGTERM)

    def saving(*arguments: Any, **options: Any) -> None:
        terminate()
        write_state(*arguments, **options)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("gptoss_ref.cli.train.line", terminate)  # called after a step
    monkeypatch.setattr("gptoss_ref.training.loop.write_state", saving)
    assert run(data, tmp_path / "out", "--steps", "3") == 130
    assert "--resume continues" in capsys.readouterr().err
    assert len(sent) == 2
    assert sent[1] == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == before
    saved = json.loads(SafetensorsFile(tmp_path / "out" / STATE).metadata["run"])
    assert saved["step"] == 1
    assert (tmp_path / "out" / TENSORS).exists()


def test_ctrl_c_saves_and_resume_has_the_same_bits(data: Path, tmp_path: Path) -> None:
    """SIGINT to the command after its second step."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(data, whole, "--steps", "24") == 0
    interrupted(data, out, signal.SIGINT)
    assert run(data, out, "--steps", "24", "--resume") == 0
    for name in (TENSORS, STATE):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_ctrl_c_before_the_first_step_of_a_resumed_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say that the run stopped after step 0."""
    assert run(data, tmp_path / "out", "--steps", "1") == 0
    capsys.readouterr()

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gptoss_ref.training.train", interrupted)
    assert run(data, tmp_path / "out", "--steps", "1", "--resume") == 130
    assert f"stopped; saved in {tmp_path / 'out'}; --resume" in capsys.readouterr().err


@pytest.fixture
def fails(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a training that must fail as bad input; gives its one line."""

    def failing(*more: str) -> str:
        capsys.readouterr()
        assert run(data, tmp_path / "out", *more) == 2
        said, error = capsys.readouterr()
        assert said == ""
        assert error.startswith("gptoss-ref: error: ")
        assert error.count("\n") == 1
        return error.removeprefix("gptoss-ref: error: ").rstrip("\n")

    return failing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps is 0: expected an integer of 1 or more"),
        (["--batch", "0"], "batch_size is 0"),
        (["--rate", "nan"], "learning_rate is nan: expected a number above 0"),
        (["--schedule", "cosin"], "unknown schedule 'cosin'"),
        (["--rank", "0"], "nothing to train: expected LoRA, or patterns of whole weights"),
        (["--targets", "q_proj"], "LoRA target 'q_proj' matches no matrix"),
        (["--whole", "*.sink"], "no weight matches '*.sink'"),
        (["--held-out", "no/where"], "no/where: cannot be read: No such file or directory"),
        (["--resume"], "expected the state of a run to resume"),
        (
            ["--evaluate-every", "2"],
            "--evaluate-every needs data for the evaluation: expected --he",
        ),
        (["--plot", "loss.txt"], "--plot loss.txt: expected a file that ends with .svg"),
        (["--plot", "no/where.svg"], "--plot no/where.svg: its folder does not exist"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], message: str, fails: Callable[..., str], tmp_path: Path
) -> None:
    assert message in fails(*options)
    assert not (tmp_path / "out" / STATE).exists()


def test_a_broken_line_has_its_number(
    data: Path, fails: Callable[..., str], tmp_path: Path
) -> None:
    data.write_text(data.read_text() + '{"prompt": "a", "completio": "b"}\n')
    assert fails() == f"{data}: line 6: unknown key 'completio': expected completion, prompt"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_run(fails: Callable[..., str], data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "out", "--steps", "1") == 0
    assert "already holds a run: resume it, or choose another folder" in fails("--steps", "1")
    assert "steps was 1 and is 2" in fails("--steps", "2", "--resume")


def test_an_adapter_is_not_trained_further(data: Path, tmp_path: Path) -> None:
    """What it would be added to is no checkpoint's."""
    assert run(data, tmp_path / "first", "--steps", "1") == 0
    argv: list[Any] = ["train", tmp_path / "first", data, "-o", tmp_path / "second", *LORA]
    assert main([str(word) for word in argv]) == 2
    assert not (tmp_path / "second").exists()
