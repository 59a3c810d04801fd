"""Help, near names, spellings of formats, and the line that installs an extra."""

from __future__ import annotations

import argparse
import json
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptoss_ref import _extras
from gptoss_ref.cli import main
from gptoss_ref.cli.help import EXAMPLES
from gptoss_ref.cli.parser import build_parser


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command and verb, such as ``harmony check``."""

    def below(parser: argparse.ArgumentParser, name: str) -> dict[str, argparse.ArgumentParser]:
        found = {}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for verb, one in action.choices.items():
                    whole = f"{name} {verb}".strip()
                    found |= {whole: one, **below(one, whole)}
        return found

    return below(build_parser(), "")


def test_alone_it_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: gptoss-ref")


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_ends_with_two_examples_that_parse(name: str) -> None:
    text = commands()[name].format_help()
    lines = [line.strip() for line in text[text.index("examples:") :].splitlines()[1:] if line]
    assert lines == list(EXAMPLES[name])
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"gptoss-ref {name}")
        build_parser().parse_args(shlex.split(line)[1:])


def test_help_shows_defaults() -> None:
    text = " ".join(commands()["chat"].format_help().split())
    assert "(default: 1024)" in text
    assert "(default: medium)" in text
    assert "(default: False)" not in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("chatt", "unknown command 'chatt': did you mean chat?"),
        ("diagnos tiny x.npz", "unknown command 'diagnos': did you mean diagnose?"),
        ("zzzz", "unknown command 'zzzz': expected one of chat, generate"),
        ("trace tiny --promt x -o y", "unknown option --promt: did you mean --prompt?"),
        ("convert tiny x --layout hff", "unknown --layout 'hff': did you mean hf?"),
        ("convert tiny ./tiny", "expected another name for the new folder"),
        ("convert tiny other-constants", "expected another name for the new folder"),
    ],
)
def test_near_names(line: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "20B", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "gpt-oss-20b"
    assert main(["generate", "x", "--max-tokens", "1", "--policy", "BF16", "--json"]) == 0


DIRECT = {
    "a checkout that is not installed": (None, f"{Path(_extras.__file__).parents[1]}[viz]"),
    "the index": ("null", "gptoss-ref[viz]"),
    "a folder": ('{"url": "file:///a%20b/c", "dir_info": {}}', "/a b/c[viz]"),
    "a repository": (
        '{"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "1"}}',
        "gptoss-ref[viz] @ git+https://example.org/r.git",
    ),
    "a wheel": (
        '{"url": "file:///w/g-1-py3-none-any.whl", "archive_info": {}}',
        "gptoss-ref[viz] @ file:///w/g-1-py3-none-any.whl",
    ),
}


@pytest.mark.parametrize("origin", DIRECT)
def test_an_extra_comes_from_where_the_package_came(
    origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, expected = DIRECT[origin]

    def distribution(name: str) -> Any:
        if text is None:
            raise PackageNotFoundError(name)
        return SimpleNamespace(read_text=lambda _: text)

    monkeypatch.setattr(_extras, "distribution", distribution)
    assert _extras.install_line("viz") == f'python -m pip install "{expected}"'


def test_one_place_knows_how_to_install() -> None:
    package = Path(_extras.__file__).parent
    naming = [f.name for f in package.rglob("*.py") if "pip install" in f.read_text("utf-8")]
    assert naming == ["_extras.py"]


def test_a_wrong_signature_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from math import sqrt\ndef swiglu(x): return x\ndef other(): pass\n")
    assert main(["check", f"{file}:swiglu", "swiglu"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "swiglu(x) does not take these arguments" in said
    assert "expected swiglu(" in said
    assert main(["check", f"{file}:missing", "swiglu"]) == 2
    assert "its functions are swiglu, other" in capsys.readouterr().err


def test_the_folder_that_vectors_wrote_is_judged_without_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "suite"
    assert main(["vectors", str(folder)]) == 0
    capsys.readouterr()
    assert main(["vectors", "--check", str(folder)]) == 0
    assert "no case has" not in capsys.readouterr().out
