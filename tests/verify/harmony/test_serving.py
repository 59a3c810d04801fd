"""A served model's behaviour: a correct server passes, each fault is found by its name."""

from __future__ import annotations

import json

import pytest

from gptoss_ref.cli import main
from gptoss_ref.errors import EndpointError
from gptoss_ref.verify.serving import LAWS, check_live
from tests.support.harmony_server import FAULTS, serving


def test_a_correct_server_passes():
    with serving() as server:
        report = check_live(server.url, timeout=10)
    assert report.ok, str(report)
    assert report.apis == ("/v1/chat/completions", "/v1/responses")
    assert report.to_json()["faults"] == []


def test_every_law_has_a_server_that_breaks_it():
    assert {fault.partition(":")[0] for fault in FAULTS} == set(LAWS)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault):
    law = fault.partition(":")[0]
    with serving(fault=fault) as server:
        report = check_live(server.url, timeout=10)
    assert not report.ok
    broken = {found.name for found in report.faults}
    assert law in broken
    # what a fault brings with it: a text that differs in a stream, or ends otherwise
    allowed = {"stream-differs", "answer-form", "finish-reason"}
    assert broken <= {law, *allowed}, str(report)


def test_the_command_line(capsys):
    with serving() as server:
        assert main(["harmony", "check", "--server", server.url, "--live", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ok"]
    with serving(fault="stop-token-shown") as server:
        assert main(["harmony", "check", "--server", server.url, "--live"]) == 1
        assert "stop-token-shown" in capsys.readouterr().out
    assert main(["harmony", "check", "--live", "--template", "x"]) == 2


@pytest.mark.parametrize(
    ("failing", "says"),
    [
        ("silent", "no complete answer within 0.3 seconds"),
        ("redirecting", "redirects elsewhere"),
        ("html", "not JSON"),
        ("gigabyte", "exceeds 64 MiB"),
        ("half-json", "not JSON, or was cut off"),
    ],
)
def test_a_failing_server_is_one_error(failing, says):
    with serving(failing=failing) as server, pytest.raises(EndpointError, match=says):
        check_live(server.url, timeout=0.3)


def test_a_server_without_either_api():
    with (
        serving(way="none") as server,
        pytest.raises(EndpointError, match=r"no server|has neither"),
    ):
        check_live(f"{server.url}/elsewhere", timeout=5)
