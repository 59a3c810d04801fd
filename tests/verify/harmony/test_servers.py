"""How servers render: each way to ask, bugs by name, and servers that fail or lie."""

from __future__ import annotations

import pytest

from gptoss_ref.chat import small_harmony
from gptoss_ref.cli import main
from gptoss_ref.errors import EndpointError
from gptoss_ref.verify.rendering import conversation_from_data
from gptoss_ref.verify.rendering.conversations import check_conversations
from gptoss_ref.verify.rendering.server import check_server
from tests.support.harmony_server import serving

FEW = [
    one for one in check_conversations() if one.title in ("instructions", "a call and its result")
]


@pytest.mark.parametrize("way", ["llama.cpp", "vllm", "echo", "echo-logprobs"])
def test_every_way_to_ask(way):
    with serving(way=way) as server:
        report = check_server(server.url, FEW, timeout=10)
        assert report.ok, str(report)
        assert report.equal == len(FEW)
    with serving(way=way, bug="effort-ignored") as server:
        report = check_server(f"{server.url}/v1", FEW, timeout=10)
        assert [cause.name for cause in report.causes] == ["effort-ignored"]


def test_all_conversations_and_the_command_line(capsys):
    with serving(bug="return-in-history") as server:
        assert main(["harmony", "check", "--server", server.url]) == 1
    out = capsys.readouterr().out
    assert "return-in-history: " in out
    assert "openai/harmony#57" in out


def test_a_server_that_shows_no_prompts():
    with (
        serving(way="none") as server,
        pytest.raises(EndpointError, match="does not show its prompts"),
    ):
        check_server(server.url, FEW, timeout=10)


@pytest.mark.parametrize(
    ("failing", "says"),
    [
        ("silent", "no complete answer within"),
        ("redirecting", "redirects elsewhere"),
        ("html", "not JSON"),
        ("gigabyte", "exceeds 64 MiB"),
        ("half-json", "not JSON, or was cut off"),
        ("lying", "expected a prompt"),
        ("half-characters", "no such token|expected an id"),
    ],
)
def test_servers_that_fail_or_lie(failing, says):
    with serving(failing=failing) as server, pytest.raises(EndpointError, match=says):
        check_server(server.url, FEW, timeout=0.3)


def test_a_conversation_of_another_day():
    """A server is not told the date, so its own is right."""
    said = conversation_from_data({**FEW[0].chat, "date": "1999-12-31"})
    with serving() as server:
        report = check_server(server.url, [said], timeout=10)
    assert report.ok, str(report)


def test_ids_of_another_vocabulary(monkeypatch):
    """Tiny's ids are ids of o200k too, of other texts."""
    tiny = small_harmony(512)
    monkeypatch.setattr("tests.support.harmony_server.o200k_harmony", lambda: tiny)
    with serving(way="vllm") as server:
        report = check_server(server.url, FEW, timeout=10)
        assert not report.ok
        assert any("--tokenizer FOLDER" in note for note in report.notes)
        report = check_server(server.url, FEW, timeout=10, tokenizer=tiny)
        assert report.ok, str(report)


def test_no_server_and_no_address(capsys):
    assert main(["harmony", "check", "--server", "http://127.0.0.1:9"]) == 2
    assert main(["harmony", "check", "--server", "ftp://x"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
