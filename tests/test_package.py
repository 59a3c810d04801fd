"""The package: what importing it does, what it exports, what it ships, who imports whom."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptoss_ref

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gptoss_ref"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def modules_after(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter that ran one statement."""
    code = f"{statement}\nimport json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_loads_no_dependency() -> None:
    loaded = modules_after("import gptoss_ref")
    assert loaded.isdisjoint({"numpy", "numba", "safetensors", "tiktoken", "torch", "rich"})


def test_public_names_but_the_kernels_need_neither_numba_nor_an_extra() -> None:
    loaded = modules_after(
        "import gptoss_ref\n"
        "for name in {*gptoss_ref.__all__} - {'kernels', 'threads'}: getattr(gptoss_ref, name)"
    )
    assert "numpy" in loaded
    assert loaded.isdisjoint({"numba", "torch", "transformers", "rich", "tiktoken"})


def test_a_chat_loads_what_it_needs() -> None:
    """Numba with its backend, and never torch."""
    for backend in ("numba", "numpy"):
        loaded = modules_after(
            "from gptoss_ref.cli import main\n"
            f"assert main(['chat', 'What is 27 + 58?', '--backend', '{backend}']) == 0"
        )
        assert {"numba", "tiktoken"} & loaded == ({"tiktoken"} | {backend} - {"numpy"})
        assert loaded.isdisjoint({"torch", "transformers"})


def test_every_public_name_resolves_and_is_listed() -> None:
    for name in gptoss_ref.__all__:
        assert getattr(gptoss_ref, name) is not None
        assert name in dir(gptoss_ref)
    assert sorted({*gptoss_ref._HOMES, "__version__"}) == sorted(gptoss_ref.__all__)


def test_dir_hides_what_is_not_public() -> None:
    public = {name for name in dir(gptoss_ref) if not name.startswith("_")}
    assert public == set(gptoss_ref.__all__) - {"__version__"}


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'gptoss_ref' has no attribute 'lode'"):
        gptoss_ref.lode  # noqa: B018


@pytest.mark.parametrize(
    "first",
    [
        "import gptoss_ref.generate",
        "import gptoss_ref; gptoss_ref.respond",
        "from gptoss_ref.generation import Token",
        "import gptoss_ref; gptoss_ref.generate",
        "from gptoss_ref.tracing.trace import Trace",
        "from gptoss_ref.kernels.runtime.threads import available_threads",
    ],
)
def test_functions_named_like_modules_are_functions_whatever_was_imported_first(first: str) -> None:
    code = f"""{first}
import gptoss_ref as gr
print({{type(function).__name__ for function in (gr.generate, gr.trace, gr.threads)}})"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "{'function'}\n"


def test_one_version_everywhere() -> None:
    version = gptoss_ref.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def imported(module: str) -> set[str]:
    """The packages of others that a file imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    packages = {name.partition(".")[0] for name in names}
    return packages - {*sys.stdlib_module_names, "gptoss_ref"}


def test_what_is_imported_is_declared_and_the_other_way_round(
    setup_cfg: configparser.ConfigParser,
) -> None:
    """Every declared package is imported, and every imported package is declared."""
    needed = set().union(*(imported(file.read_text("utf-8")) for file in PACKAGE.rglob("*.py")))
    extras = setup_cfg["options.extras_require"]
    lines = [setup_cfg["options"]["install_requires"]]
    lines += [extras[name] for name in ("cli", "verify", "viz", "hub")]
    declared = {name for text in lines for name in re.findall(r"^[a-z_0-9]+", text, re.MULTILINE)}
    assert needed == declared | {"llvmlite"}  # a part of Numba


def test_package_data_covers_every_file_that_is_not_code(
    setup_cfg: configparser.ConfigParser,
) -> None:
    patterns = setup_cfg["options.package_data"]["gptoss_ref"].split()
    shipped = {file for pattern in patterns for file in PACKAGE.glob(pattern)}
    others = {
        file
        for file in PACKAGE.rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert others
    assert others <= shipped


def test_installed_distribution_holds_the_data() -> None:
    try:
        files = importlib.metadata.files("gptoss-ref") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("running from a checkout that is not installed")
    installed = {str(file) for file in files}
    if not any(name.startswith("gptoss_ref/") for name in installed):
        pytest.skip("installed in editable mode: nothing was copied")
    for file in PACKAGE.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert file.relative_to(ROOT).as_posix() in installed


def test_import_rules_hold() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


def test_ci_runs_the_lines_at_the_top_of_the_readme() -> None:
    lines = [
        line.strip() for line in (ROOT / "README.md").read_text().splitlines() if "    " in line[:4]
    ]
    chat, test = lines[:2]
    assert chat == 'python -m pip install ".[cli]" && gptoss-ref chat "What is 27 + 58?"'
    # every test, in one process or several
    assert re.fullmatch(r'python -m pip install "\.\[test\]" && python -m pytest( -n \w+)?', test)
