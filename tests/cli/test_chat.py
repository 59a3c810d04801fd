"""`gptoss-ref chat`: what it shows where, the prompt loop, tool calls, interruptions, JSON."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss_ref.cli import main
from tests.support.scripted import INTERRUPT, ScriptedModel

pytestmark = pytest.mark.usefixtures("warm_kernels")

ROOT = Path(__file__).resolve().parents[2]
THOUGHT = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>{}<|return|>"
CALL = "<|channel|>commentary to=functions.calc <|constrain|>json<|message|>{}<|call|>"
SUM = THOUGHT.format("7+8=15") + ANSWER.format("85")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ScriptedModel]:
    """Makes every loaded model say the given texts."""

    def install(*script: str, context: int = 131_072) -> ScriptedModel:
        model = ScriptedModel(*script, context=context)
        monkeypatch.setattr("gptoss_ref.cli.chat.load_model", lambda *_, **__: model)
        return model

    return install


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts lines on standard input, from a person at a terminal or from a pipe."""

    def install(*lines: str, terminal: bool = False) -> None:
        text = "".join(line + "\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", Terminal(text) if terminal else io.StringIO(text))

    return install


@pytest.fixture
def tools_file(tmp_path: Path) -> str:
    file = tmp_path / "tools.json"
    schema = {"type": "object", "properties": {"expression": {"type": "string"}}}
    tool = {"name": "calc", "description": "Calculates.", "parameters": schema}
    file.write_text(json.dumps([{"type": "function", "function": tool}]))
    return str(file)


Says = Callable[..., ScriptedModel]
Types = Callable[..., None]
Captured = pytest.CaptureFixture[str]


def test_a_pipe_gets_the_answer_alone(says: Says, capsys: Captured) -> None:
    says(SUM)
    assert main(["chat", "What is 27 + 58?"]) == 0
    assert capsys.readouterr() == ("85\n", "7+8=15\n")


def test_a_terminal_gets_everything_dimmed_and_plain(
    says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    says(SUM)
    assert main(["chat", "What is 27 + 58?"]) == 0
    dim, plain = "\x1b[2m", "\x1b[0m"
    thought, _, rest = screen.getvalue().rpartition(plain)
    assert thought.replace(dim, "").replace(plain, "").strip() == "7+8=15"
    assert thought.startswith(dim)
    assert rest.strip() == "85"
    assert dim not in rest


def test_settings_reach_the_prompt(says: Says, tools_file: str) -> None:
    model = says(SUM)
    options = f"--reasoning high --date 2026-01-31 --instructions Briefly. --tools {tools_file}"
    main(["chat", "hello", *options.split()])
    (prompt,) = model.prompts
    for part in (
        "Reasoning: high",
        "Current date: 2026-01-31",
        "Briefly.",
        "// Calculates.\ntype calc",
        "<|start|>user<|message|>hello<|end|>",
    ):
        assert part in prompt


def test_the_default_prompt_has_no_date_and_no_developer(says: Says) -> None:
    model = says(SUM)
    main(["chat", "hello"])
    (prompt,) = model.prompts
    assert "Reasoning: medium" in prompt
    assert "Current date" not in prompt
    assert "<|start|>developer" not in prompt


def test_json(says: Says, capsys: Captured) -> None:
    says(SUM)
    assert main(["chat", "What is 27 + 58?", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    reply = json.loads(out)
    assert reply["analysis"] == "7+8=15"
    assert reply["final"] == "85"
    assert reply["tool_calls"] == []
    assert reply["tokens"][-1] == 200002
    assert reply["seconds"] > 0
    assert reply["tokens_per_second"] == pytest.approx(len(reply["tokens"]) / reply["seconds"])


def test_a_tool_call_is_shown_and_ends_a_single_message(
    says: Says, tools_file: str, capsys: Captured
) -> None:
    says(CALL.format('{"expression": "27+58"}'))
    assert main(["chat", "What is 27 + 58?", "--tools", tools_file]) == 0
    assert capsys.readouterr().out == 'functions.calc({"expression": "27+58"})\n'


def test_a_tool_call_in_json(says: Says, tools_file: str, capsys: Captured) -> None:
    says(CALL.format('{"expression": "27+58"}'))
    assert main(["chat", "What is 27 + 58?", "--tools", tools_file, "--json"]) == 0
    (call,) = json.loads(capsys.readouterr().out)["tool_calls"]
    assert (call["recipient"], call["name"]) == ("functions.calc", "calc")
    assert call["arguments"] == {"expression": "27+58"}


def test_a_cut_answer_says_so(says: Says, capsys: Captured) -> None:
    says(SUM)
    assert main(["chat", "What is 27 + 58?", "--max-tokens", "4"]) == 0
    assert "cut off after 4 tokens" in capsys.readouterr().err


def test_another_role_is_no_answer(says: Says, capsys: Captured) -> None:
    model = says(
        ANSWER.format("85").replace("return", "end") + "<|start|>user<|message|>Thanks!<|end|>"
    )
    assert main(["chat", "What is 27 + 58?"]) == 0
    assert capsys.readouterr() == ("85\n", "(stopped: the model began a message of another role)\n")
    assert len(model.prompts) == 1


def test_what_is_in_no_message_is_a_note(says: Says, capsys: Captured) -> None:
    end = "<|end|> So it is.<|start|>assistant"
    says(THOUGHT.replace("<|end|><|start|>assistant", end).format("a") + ANSWER.format("85"))
    assert main(["chat", "What is 27 + 58?"]) == 0
    out, err = capsys.readouterr()
    assert out == "85\n"
    assert err.startswith("a\n(token ")
    assert err.endswith(": skipped: ' So it is.')\n")


def test_channels_of_other_names(says: Says, capsys: Captured) -> None:
    says(SUM.replace("analysis", "thought").replace("final", "Final"))
    assert main(["chat", "What is 27 + 58?"]) == 0
    assert capsys.readouterr() == ("85\n", "7+8=15\n")


def test_the_loop_keeps_the_history(says: Says, types: Types, capsys: Captured) -> None:
    model = says(SUM, ANSWER.format("86"))
    types("What is 27 + 58?", "", "   ", "One more.")
    assert main(["chat"]) == 0
    assert capsys.readouterr().out == "85\n86\n"
    assert len(model.prompts) == 2
    assert model.prompts[1].endswith(
        "<|start|>user<|message|>What is 27 + 58?<|end|>"
        "<|start|>assistant<|channel|>final<|message|>85<|end|>"
        "<|start|>user<|message|>One more.<|end|><|start|>assistant"
    )


def test_the_loop_writes_an_object_per_answer(says: Says, types: Types, capsys: Captured) -> None:
    says(SUM, ANSWER.format("86"))
    types("What is 27 + 58?", "One more.")
    assert main(["chat", "--json"]) == 0
    finals = [json.loads(line)["final"] for line in capsys.readouterr().out.splitlines()]
    assert finals == ["85", "86"]


def test_the_loop_asks_for_a_tools_result(
    says: Says, types: Types, tools_file: str, capsys: Captured
) -> None:
    call = '{"expression": "27+58"}'
    model = says(CALL.format(call), ANSWER.format("85"))
    types("What is 27 + 58?", "85")
    assert main(["chat", "--tools", tools_file]) == 0
    assert capsys.readouterr().out == f"functions.calc({call})\n85\n"
    result = "<|start|>functions.calc to=assistant<|channel|>commentary<|message|>85<|end|>"
    assert result in "".join(model.prompts)


def test_a_person_is_prompted(says: Says, types: Types, tools_file: str, capsys: Captured) -> None:
    says(CALL.format("{}"), ANSWER.format("85"))
    types("What is 27 + 58?", "85", terminal=True)
    assert main(["chat", "--tools", tools_file]) == 0
    out = capsys.readouterr().out
    assert out == "> functions.calc({})\nresult of functions.calc: 85\n> "


def test_ctrl_c_takes_back_the_message_it_interrupts(
    says: Says, types: Types, capsys: Captured
) -> None:
    model = says(SUM, THOUGHT.format("Let me") + INTERRUPT, ANSWER.format("86"))
    types("What is 27 + 58?", "Lost.", "One more.", terminal=True)
    assert main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert "interrupted" in err
    assert out.endswith("86\n> ")
    assert "Lost." in model.prompts[1]
    assert "Lost." not in model.prompts[2]
    assert "Let me" not in model.prompts[2]
    assert "85<|end|><|start|>user<|message|>One more.<|end|>" in model.prompts[2]


def test_ctrl_c_inside_tool_calls_takes_back_the_whole_message(
    says: Says, types: Types, tools_file: str
) -> None:
    model = says(CALL.format("{}"), INTERRUPT, ANSWER.format("86"))
    types("Lost.", "85", "One more.", terminal=True)
    assert main(["chat", "--tools", tools_file]) == 0
    last = model.prompts[-1]
    assert "Lost." not in last
    assert "functions.calc to=" not in last
    assert "One more." in last


@pytest.mark.parametrize("message", [["hello"], []])
def test_ctrl_c_elsewhere_ends_the_command(says: Says, types: Types, message: list[str]) -> None:
    says(INTERRUPT)
    types("hello")
    assert main(["chat", *message]) == 130


def test_an_error_does_not_end_a_persons_loop(says: Says, types: Types, capsys: Captured) -> None:
    says(ANSWER.format("85"), context=300)
    types("word " * 500, "What is 27 + 58?", terminal=True)
    assert main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert "error: the context is full" in err
    assert out.endswith("85\n> ")


def test_an_error_ends_a_pipes_loop(says: Says, types: Types, capsys: Captured) -> None:
    says(ANSWER.format("85"), context=300)
    types("word " * 500, "What is 27 + 58?")
    assert main(["chat"]) == 2
    assert capsys.readouterr() == ("", "gptoss-ref: error: the context is full\n")


def test_what_the_output_cannot_encode_is_replaced() -> None:
    code = (
        "import sys; sys.argv[1:] = ['chat', 'hello']\n"
        "import gptoss_ref.cli.chat as chat\n"
        "from gptoss_ref.cli import entry_point\n"
        "from tests.support.scripted import ScriptedModel\n"
        f"chat.load_model = lambda *_, **__: ScriptedModel({ANSWER.format('2π')!r})\n"
        "entry_point()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
    )
    assert done.stdout == b"2?\n"


def test_a_person_at_a_real_terminal() -> None:
    """Through a pseudo-terminal: streaming, Ctrl-C in an answer, another message, Ctrl-D."""
    script = [THOUGHT.format("so " * 5000), ANSWER.format("85")]
    code = (
        "import signal, sys\n"
        "import gptoss_ref.cli.chat as chat\n"
        "from gptoss_ref.cli import main\n"
        "from tests.support.scripted import ScriptedModel\n"
        # a run in the background passes on an ignored Ctrl-C
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"chat.load_model = lambda *_, **__: ScriptedModel(*{script!r}, seconds=0.01)\n"
        "sys.exit(main(['chat', '--max-tokens', '9999']))\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONUNBUFFERED": "1"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    seen = ""

    def wait_for(text: str, seconds: float = 60) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while text not in seen:
            assert time.monotonic() < end, f"no {text!r} in {seen[-500:]!r}"
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
        seen = seen.partition(text)[2]

    try:
        wait_for("> ")
        os.write(ours, b"Think.\n")
        wait_for(" so")
        os.write(ours, b"\x03")
        wait_for("(interrupted")
        wait_for("> ")
        os.write(ours, b"What is 27 + 58?\n")
        wait_for("85")
        wait_for("> ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(ours)
