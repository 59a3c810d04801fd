"""What the README shows is what happens, and the examples can be started."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from docs._generate.examples_readme import ONE_THREAD, run_all, shown
from docs._generate.examples_readme import README as EXAMPLES
from docs._generate.readme import README, commands, rerun

ROOT = README.parent
SCRIPTS = sorted(
    file.relative_to(ROOT).as_posix()
    for folder in ("examples", "benches")
    for file in (ROOT / folder).rglob("*.py")
    if '__name__ == "__main__"' in file.read_text()
)


@pytest.mark.usefixtures("warm_kernels")
def test_the_readme_shows_what_happens() -> None:
    """To bring it up to date: python -m docs._generate.readme."""
    text = README.read_text()
    assert commands(text)
    assert rerun(text).splitlines() == text.splitlines()


def test_the_layer_in_the_readme_is_the_layer() -> None:
    shown = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    source = (ROOT / "gptoss_ref" / "layers" / "attention.py").read_text()
    assert shown
    assert all(code in source for code in shown)


def test_rerunning_notices_a_wrong_output() -> None:
    text = "```console\n$ gptoss-ref info 20b\nnothing\n```\n```pycon\n>>> 6 * 7\n41\n```\n"
    fresh = rerun(text)
    assert "nothing" not in fresh
    assert "20.91 B" in fresh
    assert ">>> 6 * 7\n42\n" in fresh


@pytest.mark.parametrize("pattern", ["*.md", "docs/**/*.md", "benches/*.md", "examples/*.md"])
def test_links_lead_somewhere(pattern: str) -> None:
    for document in ROOT.glob(pattern):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document}: {target}"


def test_contributing_names_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"(?:gptoss_ref|tests|examples)/[\w/*.<>-]+", text):
        assert list(ROOT.glob(name.replace("<layer>", "rope").replace("<command>", "chat"))), name


HELP = """
import json, os, runpy, sys, tempfile
import transformers  # with torch: imported once, and not by each script again
told = {}
for script in sys.argv[1:]:
    with tempfile.TemporaryFile() as printed:
        if (child := os.fork()) == 0:
            os.dup2(printed.fileno(), 1)
            sys.argv = [script, "--help"]
            sys.path.insert(0, os.path.dirname(script))
            try:
                runpy.run_path(script, run_name="__main__")
            finally:
                sys.stdout.flush()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        told[script] = status, printed.read().decode()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    """Exit status and output of each script with --help, run as a script in a fork."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, *SCRIPTS],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)},  # not installed, perhaps
    )
    told: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_explain_themselves(script: str, helps: dict[str, tuple[int, str]]) -> None:
    status, printed = helps[script]
    assert status == 0, printed
    assert printed.startswith("usage: ")


WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing them fails
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize(
    "script",
    ["diagnose_transformers.py", "train_tiny/train.py", "train_tiny/export.py"],
)
def test_an_example_without_torch_says_so_in_one_line(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, f"examples/{script}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert re.fullmatch(r"this needs torch.*: python -m pip install torch.*\n", done.stderr)


def test_the_benches_readme_names_every_bench() -> None:
    text = (ROOT / "benches/README.md").read_text()
    for script in SCRIPTS:
        if script.startswith("benches/"):
            assert script in text


# How far the numbers may be from the README's on another machine, which sums in another order: by a
# factor, or by that amount. Texts are equal, and so are the numbers of scripts not named here.
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
FREEDOM = {
    "load_and_generate": (1.0, 0.02),  # probabilities, two decimals
    "trace_and_compare": (1.5, 0.0),
    "replace_a_layer": (5.0, 2.0),  # errors made of float32 rounding; positions
    "ablate_sinks": (1.0, 4.0),  # answers of 60, per cent
    "reasoning_effort": (1.2, 8.0),  # per cent of 25, tokens
    "diagnose_transformers": (2.0, 0.0),  # a noise floor: 1.5 times, of which one digit shows
}


def same(name: str, line: str, printed: str) -> bool:
    """Whether two lines are equal except for the freedom that the numbers have."""
    factor, plus = FREEDOM.get(name, (1.0, 0.0))
    pairs = zip(map(float, NUMBER.findall(line)), map(float, NUMBER.findall(printed)), strict=False)
    texts = [re.sub(r"\s+", " ", NUMBER.sub("0", text)) for text in (line, printed)]
    return texts[0] == texts[1] and all(
        abs(a - b) <= plus or max(a, b) <= factor * min(a, b) for a, b in pairs
    )


@pytest.fixture(scope="module")
def printed(warm_kernels: None) -> dict[str, str]:
    """What each script of the two READMEs prints, by its name."""
    commands = [*shown(README), *shown()]
    return {Path(c.split()[0]).stem: output for c, output in run_all(commands).items()}


def test_the_examples_print_what_their_readme_shows(printed: dict[str, str]) -> None:
    """To bring it up to date: python -m docs._generate.examples_readme."""
    for command, text in shown().items():
        name = Path(command).stem
        for line, fresh in zip_longest(text.splitlines(), printed[name].splitlines(), fillvalue=""):
            assert same(name, line, fresh), f"{name}: {fresh!r}, the README has {line!r}"


def test_the_bug_in_transformers_is_found_as_the_readme_shows(printed: dict[str, str]) -> None:
    """The README breaks lines where the command does not."""
    (text,) = shown(README).values()
    shown_words, words = (" ".join(t.split()) for t in (text, printed["diagnose_transformers"]))
    assert same("diagnose_transformers", shown_words, words), printed["diagnose_transformers"]


def test_a_changed_number_or_text_is_noticed() -> None:
    assert same("ablate_sinks", "as trained    54", "as trained    53")
    assert not same("ablate_sinks", "as trained    54", "as trained    44")
    assert not same("stream_chat", "final: 1023", "final: 1022")
    assert not same("stream_chat", "final: 1023", "answer: 1023")


def test_without_sinks_accuracy_falls(printed: dict[str, str]) -> None:
    rows = re.findall(r"^(as trained|no sinks) +(\d+) +(\d+)$", printed["ablate_sinks"], re.M)
    counts = {who: int(subtract) + int(multiply) for who, subtract, multiply in rows}
    assert counts["no sinks"] <= counts["as trained"] - 5  # it is 12; one product is 0.8 per cent


def test_effort_buys_accuracy_with_tokens(printed: dict[str, str]) -> None:
    (line,) = re.findall(r"^all .*", printed["reasoning_effort"], re.M)
    right, tokens = zip(*re.findall(r"(\d+)%, *(\d+)", line), strict=True)
    assert int(right[0]) + 30 < int(right[1]) <= int(right[2])
    assert int(tokens[0]) < int(tokens[1]) < int(tokens[2])


def test_the_examples_readme_names_every_example() -> None:
    text = EXAMPLES.read_text()
    for file in (ROOT / "examples").iterdir():
        if file.suffix in (".py", ".md") and file != EXAMPLES:
            assert f"[{file.name}]({file.name})" in text
            assert f"examples/{file.name}" in file.read_text(), "says how it is run"


def test_the_lecture_becomes_a_notebook_whose_cells_run(tmp_path: Path) -> None:
    """By the command that it names; the cells run in one fresh process, as in a notebook."""
    command = next(line for line in EXAMPLES.read_text().splitlines() if "--to ipynb" in line)
    assert command in (ROOT / "examples/lecture.md").read_text()
    notebook = tmp_path / "lecture.ipynb"
    module, *arguments = [*shlex.split(command), "-o", str(notebook)]
    assert importlib.util.find_spec(module)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, cwd=ROOT)
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 10
    program = "\n\n".join([*code, "assert np.array_equal(logits, model(tokens))"])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr
    assert "equal to the package's: True" in done.stdout
    assert "those of window-plus-one" in done.stdout
    assert list(tmp_path.iterdir()) == [notebook]


def test_the_first_line_answers_85(capsys: pytest.CaptureFixture[str]) -> None:
    from gptoss_ref.cli import main

    line = next(line for line in README.read_text().splitlines() if '".[cli]"' in line)
    command = shlex.split(line.partition("&&")[2])
    assert command[0] == "gptoss-ref"
    assert main(command[1:]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "85"


def test_scripts_were_found() -> None:
    assert {Path(script).parts[0] for script in SCRIPTS} == {"examples", "benches"}
