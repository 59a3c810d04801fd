"""The documentation as files: what the build itself would not notice. CI builds it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gptoss_ref.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
MODULES = tuple(re.findall(r"automodule:: (\S+)", PAGES))
ALONE = tuple(re.findall(r"auto(?:function|class|data|exception):: (\S+)", PAGES))
PUBLIC = tuple(
    f"gptoss_ref{room}"
    for room in (
        "",
        ".chat",
        ".checkpoint",
        ".gradients",
        ".kernels",
        ".layers",
        ".verify",
        ".verify.adapters",
        ".verify.mutants",
        ".verify.vectors",
        ".viz",
    )
)


def named(full: str) -> Any:
    """The object of ``package.module.name``, where a function may hide a module."""
    module, _, name = full.rpartition(".")
    return getattr(import_module(module), name)


def trees() -> list[tuple[str, ast.Module]]:
    sources = []
    for name in MODULES:
        module = import_module(name)
        assert isinstance(module, ModuleType)
        assert module.__file__
        sources.append((name, ast.parse(Path(module.__file__).read_text())))
    return sources


def described() -> set[int]:
    """The objects that the reference describes, by identity."""
    found = {
        id(named(name if name.startswith("gptoss_ref") else f"gptoss_ref.{name}")) for name in ALONE
    }
    for name, tree in trees():
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [node]
            for target in targets:
                for field in ("name", "id", "target"):
                    label = getattr(target, field, None)
                    label = getattr(label, "id", label)
                    if isinstance(label, str):
                        found.add(id(getattr(import_module(name), label, None)))
    return found


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_is_described(room: str) -> None:
    module, known = import_module(room), described()
    missing = [
        name
        for name in module.__all__
        if id(value := getattr(module, name)) not in known
        and name != "__version__"
        and not (isinstance(value, ModuleType) and value.__name__ in MODULES)
    ]
    assert not missing, f"docs/reference describes no {room}.{missing}"


def test_every_command_is_described() -> None:
    page = (DOCS / "reference" / "command_line.md").read_text()
    actions = build_parser()._actions
    commands = next(action.choices for action in actions if isinstance(action.choices, dict))
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == list(commands)
    assert re.findall(r'^show\("(\S+)"\)$', page, re.MULTILINE) == list(commands)


def without_docstring(body: list[ast.stmt], path: str) -> list[str]:
    """Public functions and classes that say nothing, or not what they raise."""
    found = []
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name, text = f"{path}.{node.name}", ast.get_docstring(node) or ""
        if not text:
            found.append(name)
        if isinstance(node, ast.ClassDef):
            found += without_docstring(node.body, name)
        elif any(isinstance(inner, ast.Raise) and inner.exc for inner in ast.walk(node)):
            kinds = {
                ast.unparse(inner.exc.func)
                for inner in ast.walk(node)
                if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call)
            } - {"AssertionError"}
            says = any(kind in text for kind in kinds) or re.search("raise|rror", text)
            if kinds and not says:
                found.append(f"{name} (raises {', '.join(sorted(kinds))})")
    return found


def test_every_described_function_says_what_it_does_and_raises() -> None:
    silent = [name for module, tree in trees() for name in without_docstring(tree.body, module)]
    assert not silent


ARRAY = re.compile(r"(Array|NDArray\[.*\]|ExpertMatrix)( \| None)?")
SHAPE = re.compile(
    r"\((…|\d?[A-Z](/\d+|\*[A-Z])?)(, [^()]*|,)?\)"  # (T, D), (…, M/32, 16), (V,)
    r"|(any|same|its own|this) shape|shape of"
)


def arrays_of(node: ast.FunctionDef) -> dict[str, str]:
    """The arguments that are arrays, and ``return`` where the result is one."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    types = {given.arg: given.annotation for given in arguments} | {"return": node.returns}
    written = {name: ast.unparse(kind) for name, kind in types.items() if kind is not None}
    return {name: kind for name, kind in written.items() if ARRAY.fullmatch(kind)}


def without_shape(body: list[ast.stmt], path: str) -> list[str]:
    """Public functions of arrays whose docstring names no shape."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += without_shape(node.body, f"{path}.{node.name}")
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        if arrays_of(node) and not SHAPE.search(ast.get_docstring(node) or ""):
            found.append(f"{path}.{node.name}")
    return found


def test_every_described_function_of_arrays_says_their_shapes() -> None:
    silent = [name for module, tree in trees() for name in without_shape(tree.body, module)]
    assert not silent


def test_a_missing_shape_is_found() -> None:
    said = ast.parse('def f(x: Array) -> Array:\n    """Half of ``x`` (T, D): (T, D/2)."""')
    unsaid = ast.parse('def f(x: Array | None = None) -> int:\n    """Of ``x`` (see NumPy)."""')
    assert not without_shape(said.body, "m")
    assert without_shape(unsaid.body, "m") == ["m.f"]


@pytest.mark.parametrize("room", ["layers", "gradients", "kernels"])
def test_every_array_of_a_layer_is_named_with_its_shape(room: str) -> None:
    package = import_module(f"gptoss_ref.{room}")
    for name in package.__all__:
        function = getattr(package, name)
        if not inspect.isfunction(function):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        text = ast.get_docstring(tree) or ""
        if "rguments as :func:" in text:  # of another, which is read here too
            continue
        for array in arrays_of(tree).keys() - {"return"}:
            named = re.search(rf"``{array}``|^ +(\w+, )*{array}(, \w+)*:", text, re.MULTILINE)
            assert named, f"{room}.{name} says nothing of {array}"
            assert SHAPE.search(text, named.end()), f"{room}.{name}: {array} of what shape?"


def test_pages_keep_no_outputs_and_load_nothing_from_elsewhere() -> None:
    built = {DOCS / "_build", DOCS / "jupyter_execute"}
    assert not [path for path in DOCS.rglob("*.ipynb") if built.isdisjoint(path.parents)]
    for style in (DOCS / "_static").glob("*.css"):
        assert "http" not in style.read_text()
    conf = (DOCS / "conf.py").read_text()
    assert re.findall(r"https?://[^\"]*", conf) == [
        "https://docs.python.org/3",  # what links lead to, not what is loaded
        "https://numpy.org/doc/stable",
        "https://matplotlib.org/stable",
    ]


def test_every_type_of_number_is_in_the_inventory() -> None:
    """The build refuses a type that it cannot link to; it takes four minutes to say so."""
    listed = (DOCS / "inventories" / "numpy.txt").read_text()
    used = {
        name
        for file in (ROOT / "gptoss_ref").rglob("*.py")
        for name in re.findall(r"NDArray\[np\.(\w+)\]", file.read_text())
    }
    assert "float64" in used
    assert {name for name in used if f"\nnumpy.{name} class " not in listed} == set()


def test_every_decision_is_listed() -> None:
    folder = DOCS / "decisions"
    notes = sorted(note.name for note in folder.glob("0*.md"))
    listed = re.findall(r"^\| \[(\d+)\]\((.+?)\)", (folder / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [(name[:4], name) for name in notes]


def test_the_bundle_of_mathjax_and_its_licence_travel_together() -> None:
    bundle = DOCS / "_static" / "mathjax" / "tex-svg.js"
    assert 'VERSION="3.2.2"' in bundle.read_text()
    assert "Apache License" in (bundle.parent / "LICENSE").read_text()
    assert "docs/_static/mathjax/tex-svg.js: MathJax 3.2.2" in (ROOT / "NOTICE").read_text()
