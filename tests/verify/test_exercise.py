"""`gptoss-ref check`: a learner's function, right, wrong in a known way, and broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gptoss_ref.cli import main

RMSNORM = """
import numpy as np

def right(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale

def without_eps(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True)) * scale

def transposed(x, scale, eps):
    return right(x, scale, eps).T

def nothing(x, scale, eps):
    pass

def two(x, scale, eps):
    return right(x, scale, eps), eps

def broken(x, scale, eps):
    return x + scale[:3]

def ragged(x, scale, eps):
    return [[1.0], [1.0, 2.0]]

def words(x, scale, eps):
    return {"y": right(x, scale, eps)}

def leaving(x, scale, eps):
    raise SystemExit(0)

def printing(x, scale, eps):
    print("x is", x.shape)
    return right(x, scale, eps)

def first(x, weight, bias, experts_per_token):
    return x @ weight.T + bias

def swiglu(x, alpha, limit):
    gate, up = np.split(x, 2, axis=-1)
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate / (1 + np.exp(-alpha * gate)) * (up + 1)

def router(x, weight, bias, experts_per_token):
    logits = x @ weight.T + bias
    indices = np.argsort(-logits, axis=-1, kind="stable")[:, :experts_per_token]
    chosen = np.take_along_axis(logits, indices, -1)
    exp = np.exp(chosen - chosen.max(-1, keepdims=True))
    return logits, indices, exp / exp.sum(-1, keepdims=True)

not_a_function = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(RMSNORM)
    return str(path)


def check(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    status = main(["check", *argv])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_right_functions(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, f"{file}:right", "rmsnorm")[0] == 0
    status, said = check(capsys, f"{file}:router", "router")
    assert status == 0, said


def test_the_flag_says_why(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = check(capsys, f"{file}:without_eps", "rmsnorm")
    assert status == 1
    assert "Epsilon: The values are small, so that the result depends on epsilon" in said
    assert "rmsnorm-02" in said
    assert "rmsnorm-01" not in said


def test_a_known_bug_is_named(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = check(capsys, f"{file}:swiglu", "swiglu", "--json")
    assert status == 1
    wrong = [f for f in json.loads(said)["findings"] if f["verdict"] == "wrong"]
    assert ["gate-up-concatenated"] in [f["causes"] for f in wrong]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("transposed", "with its axes in another order"),
        ("nothing", "returned None for y"),
        ("broken", "raised ValueError"),
        ("two", "returned 2 values: expected 1 (y)"),
        ("ragged", "did not return an array for y: ValueError"),
        ("words", "y has dtype object: expected numbers"),
        ("leaving", "raised SystemExit"),
    ],
)
def test_broken_functions(
    file: str, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = check(capsys, f"{file}:{name}", "rmsnorm")
    assert status == 1
    assert said in printed
    if name == "broken":
        line = RMSNORM.splitlines().index("    return x + scale[:3]") + 1
        assert f"(line {line})" in printed


def test_one_value_where_there_are_more(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = check(capsys, f"{file}:first", "router")
    assert status == 1
    assert "returned 1 value: expected 3 (logits, indices, weights)" in said


@pytest.mark.parametrize("when", ["import helper\n", ""])
def test_a_module_beside_the_file(
    when: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Imported with the file or when the function runs; the next folder has one of its own."""
    before = list(sys.path)
    for name, eps in (("one", "eps"), ("two", "0.5")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "helper.py").write_text(f"def least(eps):\n    return {eps}\n")
        text = RMSNORM.replace("+ eps)", "+ helper.least(eps))")
        text = text.replace("):\n    return x", "):\n    import helper\n    return x", 1)
        (folder / "mine.py").write_text(when + text)
        status, said = check(capsys, f"{folder / 'mine.py'}:right", "rmsnorm")
        assert status == (name == "two"), said
    assert "No module" not in said
    assert sys.path == before
    assert "helper" not in sys.modules


def test_what_a_function_prints_is_no_result(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{file}:printing", "rmsnorm", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"]
    assert "x is" in err


def test_a_file_with_a_dataclass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose annotations are looked up in the module, by its name."""
    path = tmp_path / "mine.py"
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    path.write_text(head + "@dataclass\nclass Norm:\n    eps: float\n" + RMSNORM)
    status, said = check(capsys, f"{path}:right", "rmsnorm")
    assert status == 0, said


def test_the_list_of_operations(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = check(capsys)
    assert status == 0
    assert "rmsnorm(x, scale, eps) -> y" in said
    assert "model(tokens) -> residual, logits" in said


def test_a_function_alone_is_not_judged(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = check(capsys, f"{file}:right")
    assert status == 2
    assert "expected OPERATION after" in said


@pytest.mark.parametrize(
    ("place", "operation", "said"),
    [
        ("mine.py", "rmsnorm", "expected FILE.py:FUNCTION\n"),
        ("{}", "rmsnorm", "expected FILE.py:FUNCTION, such as {}:right"),
        ("nowhere.py:f", "rmsnorm", "no such file"),
        ("{}:rigth", "rmsnorm", "has no function rigth (nearest: right)"),
        ("{}:not_a_function", "rmsnorm", "has no function not_a_function"),
        ("{}:right", "rmsnrm", "unknown operation 'rmsnrm': did you mean rmsnorm?"),
    ],
)
def test_bad_input(
    file: str, place: str, operation: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = check(capsys, place.format(file), operation)
    assert status == 2
    assert said.format(file) in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("content", ["def f(:", "raise KeyError('x')", "import nowhere_at_all"])
def test_a_file_that_does_not_run(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.py"
    path.write_text(content)
    status, said = check(capsys, f"{path}:f", "rmsnorm")
    assert status == 2
    assert "bad.py" in said
