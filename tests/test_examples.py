"""What the README shows is what happens, and the examples can be started."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from readme import README, commands, rerun

ROOT = README.parent
SCRIPTS = sorted(
    file.relative_to(ROOT).as_posix()
    for folder in ("examples", "benches")
    for file in (ROOT / folder).rglob("*.py")
    if '__name__ == "__main__"' in file.read_text()
)


@pytest.mark.usefixtures("warm_kernels")
def test_the_readme_shows_what_happens() -> None:
    """To bring it up to date: python tests/readme.py."""
    text = README.read_text()
    assert commands(text)
    assert rerun(text).splitlines() == text.splitlines()


def test_rerunning_notices_a_wrong_output() -> None:
    text = "```console\n$ gptoss-ref info 20b\nnothing\n```\n```pycon\n>>> 6 * 7\n41\n```\n"
    fresh = rerun(text)
    assert "nothing" not in fresh
    assert "20.91 B" in fresh
    assert ">>> 6 * 7\n42\n" in fresh


@pytest.mark.parametrize("pattern", ["*.md", "docs/**/*.md", "benches/*.md"])
def test_links_lead_somewhere(pattern: str) -> None:
    for document in ROOT.glob(pattern):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document}: {target}"


def test_contributing_names_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"(?:gptoss_ref|tests|examples)/[\w/*.<>-]+", text):
        assert list(ROOT.glob(name.replace("<layer>", "rope").replace("<command>", "chat"))), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_explain_themselves(script: str) -> None:
    done = subprocess.run(
        [sys.executable, script, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # from a checkout that is not installed, too
    )
    assert done.stdout.startswith("usage: ")


def test_the_benches_readme_names_every_bench() -> None:
    text = (ROOT / "benches/README.md").read_text()
    for script in SCRIPTS:
        if script.startswith("benches/"):
            assert script in text


def test_the_first_line_answers_85(capsys: pytest.CaptureFixture[str]) -> None:
    from gptoss_ref.cli import main

    line = next(line for line in README.read_text().splitlines() if '".[cli]"' in line)
    command = shlex.split(line.partition("&&")[2])
    assert command[0] == "gptoss-ref"
    assert main(command[1:]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "85"


def test_scripts_were_found() -> None:
    assert {Path(script).parts[0] for script in SCRIPTS} == {"examples", "benches"}
