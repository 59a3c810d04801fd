"""The first answer: which backend ``auto`` is, and kernels that compile behind a conversation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import gptoss_ref as gr
from gptoss_ref import backend
from gptoss_ref.backend import get_backend
from gptoss_ref.chat import Chat
from gptoss_ref.cli import compiling
from gptoss_ref.cli.chat import Talk


@pytest.mark.parametrize(
    ("compiled", "small", "name"),
    [(False, True, "numpy"), (True, True, "numba"), (False, False, "numba")],
)
def test_auto(compiled: bool, small: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(backend, "compiled", lambda width: asked.append(width) or compiled)
    if not small:
        monkeypatch.setattr(backend, "SMALL", 1000)
    assert gr.load("tiny").backend.name == name
    assert asked == [96] * small
    assert gr.load("tiny", policy="float64").backend.name == "numpy"


def test_weights_are_counted(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the bundled file nearly all bytes are weights, and each is counted once."""
    size = (tiny.path / "model.safetensors").stat().st_size
    monkeypatch.setattr(backend, "SMALL", size)
    assert backend.is_small(tiny.weights)
    monkeypatch.setattr(backend, "SMALL", 0.98 * size)
    assert not backend.is_small(tiny.weights)


class Process:
    """Stands for the process that compiles: runs until it is told otherwise."""

    returncode: int | None = None
    terminated = False

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.terminated = True

    def wait(self) -> None:
        assert self.terminated


@pytest.mark.parametrize("failed", [False, True])
def test_kernels_take_over_between_messages(
    failed: bool, monkeypatch: pytest.MonkeyPatch, warm_kernels: None
) -> None:
    started: list[Process] = []

    def start(command: tuple[str, ...], **options: Any) -> Process:
        assert command[-3:] == ("warmup", "--width", "96")
        started.append(Process())
        return started[0]

    monkeypatch.setattr(compiling, "subprocess", SimpleNamespace(Popen=start, DEVNULL=None))
    chat = Chat(gr.load("tiny", backend="numpy"), max_new_tokens=2)
    talk = Talk(chat, as_json=False, may_compile=True)
    talk.interactive = True
    names: list[str] = []

    def ask(prompt: str) -> str:
        names.append(chat.model.backend.name)
        if len(names) == 3:
            started[0].returncode = int(failed)
        if len(names) == 5:
            raise EOFError
        return "What is 27 + 58?"

    monkeypatch.setattr(talk, "_ask", ask)
    talk.loop()
    last = "numpy" if failed else "numba"
    assert names == ["numpy", "numpy", "numpy", last, last]
    assert chat.model.backend is get_backend(last)
    assert not started[0].terminated


def test_a_conversation_that_ends_stops_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    fake = SimpleNamespace(Popen=lambda *command, **options: process, DEVNULL=None)
    monkeypatch.setattr(compiling, "subprocess", fake)
    talk = Talk(Chat(gr.load("tiny", backend="numpy")), as_json=False, may_compile=True)
    talk.interactive = True

    def ask(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(talk, "_ask", ask)
    talk.loop()
    assert process.terminated


def test_nothing_compiles_for_a_pipe_or_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*command: Any, **options: Any) -> Process:
        raise AssertionError("a process was started")

    monkeypatch.setattr(compiling, "subprocess", SimpleNamespace(Popen=fail, DEVNULL=None))
    for name, interactive in (("numpy", False), ("numba", True)):
        talk = Talk(Chat(gr.load("tiny", backend=name)), as_json=False, may_compile=True)
        talk.interactive = interactive

        def ask(prompt: str) -> str:
            raise EOFError

        monkeypatch.setattr(talk, "_ask", ask)
        talk.loop()
