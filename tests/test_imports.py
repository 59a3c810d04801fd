"""Modules of the package import each other without circles, inside functions too."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import gptoss_ref

PACKAGE = Path(gptoss_ref.__file__).parent


def _modules() -> dict[str, Path]:
    """Names and files of all modules."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


class _Imports(ast.NodeVisitor):
    """The modules that a module imports when it runs: not those for type checkers alone."""

    def __init__(self, modules: dict[str, Path]) -> None:
        self.modules, self.found = modules, set[str]()

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {name.name for name in node.names if name.name in self.modules}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for name in node.names:
            whole = f"{node.module}.{name.name}"
            self.found |= {whole if whole in self.modules else str(node.module)}


def test_no_circular_imports() -> None:
    modules, graph = _modules(), {}
    for name, path in modules.items():
        imports = _Imports(modules)
        imports.visit(ast.parse(path.read_text("utf-8")))
        graph[name] = (imports.found & modules.keys()) - {name}
    assert len(graph) > 300
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle
