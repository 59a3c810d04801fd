"""What the commands print with: escape codes only on a terminal, plain text without rich."""

from __future__ import annotations

import io
import sys

import pytest

from gptoss_ref.cli.console import Lines, Screen


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


ROWS = [["embedding", "1.16 B"], ["attention", "0.64 B"]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)  # importing it raises ImportError
    monkeypatch.setitem(sys.modules, "rich", None)


def test_dim_text_on_a_terminal(terminal: Terminal) -> None:
    screen = Screen(terminal)
    screen.write("thinking", dim=True)
    screen.write("answer")
    assert terminal.getvalue() == "\x1b[2mthinking\x1b[0manswer"


def test_a_pipe_gets_no_escape_codes() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.write("thinking", dim=True)
    assert not screen.is_rich
    assert stream.getvalue() == "thinking"


@pytest.mark.usefixtures("without_rich")
def test_a_terminal_without_rich_gets_plain_text(terminal: Terminal) -> None:
    screen = Screen(terminal)
    screen.write("thinking\n", dim=True)
    with screen.progress("copying") as progress:
        progress(1, 2, "quick work says nothing")
    assert not screen.is_rich
    assert terminal.getvalue() == "thinking\n"


def test_long_lines_are_not_broken(terminal: Terminal) -> None:
    Screen(terminal).write("word " * 100 + "end")
    assert terminal.getvalue() == "word " * 100 + "end"


@pytest.mark.parametrize("text", ["[bold]x[/bold]", ":smile:", "[/]", "a\nb", "π ≈ 3.14159 日本"])
def test_text_is_shown_as_it_is(terminal: Terminal, text: str) -> None:
    Screen(terminal).write(text)
    assert terminal.getvalue() == text


@pytest.mark.parametrize("rich", [True, False])
def test_control_characters_are_shown_not_obeyed(
    terminal: Terminal, request: pytest.FixtureRequest, rich: bool
) -> None:
    if not rich:
        request.getfixturevalue("without_rich")
    Screen(terminal).write("a\x1b]0;title\x07b\r\x9b2Jc")
    assert terminal.getvalue() == "a\\x1b]0;title\\x07b\\x0d\\x9b2Jc"


def test_a_pipe_gets_the_exact_text() -> None:
    stream = io.StringIO()
    Screen(stream).write("a\x1bb\r")
    assert stream.getvalue() == "a\x1bb\r"


def test_table_on_a_terminal_is_drawn(terminal: Terminal) -> None:
    Screen(terminal).table(["part", "count"], ROWS)
    drawn = terminal.getvalue()
    assert "─" in drawn
    assert "embedding" in drawn
    assert "1.16 B" in drawn


def test_progress_on_a_terminal_reaches_the_end(terminal: Terminal) -> None:
    with Screen(terminal).progress("writing") as progress:
        assert progress is not None
        for done in range(0, 101, 10):
            progress(done * 1000, 100_000, "tensor")
    assert "100.0/100.0 kB" in terminal.getvalue()


def test_long_work_in_a_pipe_says_a_line_every_ten_seconds() -> None:
    stream, now = io.StringIO(), [100.0]
    say = Lines(Screen(stream), "diagnosing", of_bytes=False, clock=lambda: now[0])
    for step in range(1, 5):
        now[0] += 4
        say(step, 8, "replaying norm")
    say = Lines(Screen(stream), "writing", of_bytes=True, clock=lambda: now[0])
    now[0] += 600
    say(1_000_000, 4_000_000, "")
    say(4_000_000, 4_000_000, "")
    assert stream.getvalue().splitlines() == [
        "diagnosing: 3 of 8, replaying norm, about 20 s left",
        "writing: 1 MB of 4 MB, about 30 min left",
    ]


def test_status_in_a_pipe_is_one_line() -> None:
    stream = io.StringIO()
    with Screen(stream).status("compiling") as status:
        status("the first")
        status("the second")
    assert stream.getvalue() == "compiling\n"


def test_status_on_a_terminal_goes_away(terminal: Terminal) -> None:
    with Screen(terminal).status("compiling") as status:
        status("the first")
    drawn = terminal.getvalue()
    assert "compiling" in drawn
    assert drawn.endswith("\x1b[2K")
