"""The conformance vectors from other languages: examples/vectors_js and examples/vectors_c."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gptoss_ref.cli import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOOLS = {"js": "node", "c": "cc"}

# A bug: what the judge says of it, and the right and the wrong text in each language.
BUGS = {
    "right": ("", {"js": ("", ""), "c": ("", "")}),
    "scale": (
        "scale-bias-128",
        {"js": ("byte - 127", "byte - 128"), "c": ("scales[g] - 127", "scales[g] - 128")},
    ),
    "epsilon": (
        "rmsnorm-02  wrong",
        {"js": ("meanSquare + eps", "meanSquare"), "c": ("sum / D + eps", "sum / D + 0 * eps")},
    ),
    "nibbles": (
        "nibbles-swapped",
        {
            "js": (
                "pair = blocks.data[16 * group + j]",
                "byte = blocks.data[16 * group + j], pair = (byte >> 4) | ((byte & 15) << 4)",
            ),
            "c": (
                "uint8_t pair = blocks[16 * g + j];",
                "uint8_t byte = blocks[16 * g + j], pair = (byte >> 4) | (byte & 15) << 4;",
            ),
        },
    ),
}


def program(language: str, folder: Path, right: str, wrong: str) -> list[str]:
    """The command that runs the program of a language, built in ``folder`` with ``right`` wrong."""
    tool = shutil.which(TOOLS[language])
    if tool is None:
        pytest.skip(f"needs {TOOLS[language]}")
    shutil.copytree(EXAMPLES / f"vectors_{language}", folder)
    (source,) = folder.glob("check.*")
    text = source.read_text(encoding="utf-8")
    assert right in text
    source.write_text(text.replace(right, wrong), encoding="utf-8")
    if language == "js":
        return [tool, str(source)]
    built = folder / "check"
    options = ["-std=c99", "-Wall", "-Wextra", "-O1"]
    subprocess.run([tool, *options, "-o", str(built), str(source), "-lm"], check=True)
    return [str(built)]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite, as the command writes it."""
    folder = tmp_path_factory.mktemp("suite") / "vectors"
    assert main(["vectors", str(folder)]) == 0
    return folder


def test_a_tool_is_there() -> None:
    """Continuous integration runs one of the two at least."""
    found = [tool for tool in TOOLS.values() if shutil.which(tool)]
    assert found or not os.environ.get("CI"), "neither node nor cc is installed"


@pytest.mark.parametrize("language", list(TOOLS))
@pytest.mark.parametrize("bug", BUGS)
def test_the_results_are_judged(
    language: str, bug: str, vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All right; and with a bug put into the program, wrong, with the bug's name."""
    said, texts = BUGS[bug]
    command = program(language, tmp_path / "program", *texts[language])
    results = tmp_path / "results"
    results.mkdir()
    done = subprocess.run(
        [*command, str(vectors), str(results)], capture_output=True, text=True, check=True
    )
    capsys.readouterr()
    assert main(["vectors", "--check", str(results)]) == (1 if said else 0)
    judged = capsys.readouterr().out
    assert said in judged
    own = dict(re.findall(r"^(\w+): (\d+ of \d+) right", done.stdout, re.M))
    assert own == dict(re.findall(r"^(\w+) +(\d+ of \d+) right", judged, re.M))
    backward = {"swiglu_backward", "router_backward"} if language == "c" else set()
    assert set(own) == {"mxfp4_decode", "rmsnorm"} | backward


@pytest.mark.parametrize("language", list(TOOLS))
def test_without_its_folders_it_says_how_it_is_used(language: str, tmp_path: Path) -> None:
    done = subprocess.run(
        program(language, tmp_path / "program", "", ""), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
