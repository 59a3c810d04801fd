"""Signatures as the source writes them, and names that resolve however they are reached.

Autodoc shows types as Python evaluates them: ``Array`` would read ``ndarray[tuple[Any, …], …]``.
Here a signature is read from the source, each name in it as the module that uses it understands it.

One object has several names (``gptoss_ref.load`` is ``gptoss_ref.model.load``) and is described
once, under one of them. A reference by any other name leads there too: it resolves if it is the
same object.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import pkgutil
import re
import textwrap
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

PACKAGE = "gptoss_ref"


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("doctree-read", without_long_values)
    app.connect("missing-reference", same_object)
    app.add_directive("remaining-modules", RemainingModules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# Signatures


def signature_as_written(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    shown: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Arguments and return type of a function, method or class, from its source."""
    if shown is None or what not in ("class", "exception", "function", "method"):
        return None
    obj = inspect.unwrap(getattr(obj, "py_func", obj))
    if inspect.isclass(obj):
        if dataclasses.is_dataclass(obj) and "__init__" in vars(obj):
            return fields_as_written(obj), None
        init = vars(obj).get("__init__") or vars(obj).get("__new__")
        obj = getattr(init, "__func__", init)
    if isinstance(obj, classmethod | staticmethod):
        obj = obj.__func__
    if not inspect.isfunction(obj) or not obj.__module__.startswith(PACKAGE):
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        return None
    arguments = tree.args
    bound = what in ("class", "exception") or (
        what == "method"
        and not isinstance(inspect.getattr_static(owner(name), obj.__name__, None), staticmethod)
    )
    if bound:
        (arguments.posonlyargs or arguments.args).pop(0)
    scope = scope_of(obj.__module__)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg) and argument.annotation:
            argument.annotation = scope.visit(argument.annotation)
    result = (
        None
        if what in ("class", "exception") or tree.returns is None
        else ast.unparse(scope.visit(tree.returns))
    )
    return f"({ast.unparse(arguments)})", result


def fields_as_written(cls: type) -> str:
    """The arguments of a dataclass."""
    written = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and base.__module__.startswith(PACKAGE):
            scope = scope_of(base.__module__)
            tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            assert isinstance(tree, ast.ClassDef)
            for line in tree.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    written[line.target.id] = (
                        ast.unparse(scope.visit(line.annotation)),
                        line.value,
                    )
    parts = []
    keyword_only = False
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if field.kw_only and not keyword_only:
            keyword_only = True
            parts.append("*")
        annotation, value = written[field.name]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            parts.append(f"{field.name}: {annotation}")
        else:
            given = ast.unparse(value) if value is not None else "..."
            if field.default_factory is not dataclasses.MISSING:
                given = f"{getattr(field.default_factory, '__name__', '...')}()"
            parts.append(f"{field.name}: {annotation} = {given}")
    return f"({', '.join(parts)})"


def owner(name: str) -> Any:
    """The class that ``module.Class.method`` belongs to."""
    return resolve(name.rpartition(".")[0])


class Scope(ast.NodeTransformer):
    """Names of a module as full names that show their last part: ``~gptoss_ref.cache.KVCache``."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        full = self.names.get(node.id)
        return alias(full) or tilde(full) if full else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        parts = ast.unparse(node).split(".")
        full = self.names.get(parts[0])
        return tilde(".".join([full, *parts[1:]])) if full else node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):  # a name in quotes
            return self.visit(ast.parse(node.value, mode="eval").body)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if ast.unparse(node.value).rpartition(".")[2] != "Literal":
            node.slice = self.visit(node.slice)
        node.value = self.visit(node.value)
        return node


def tilde(full: str) -> ast.expr:
    return ast.UnaryOp(ast.Invert(), ast.parse(full, mode="eval").body)


def alias(full: str) -> ast.expr | None:
    """What an alias stands for, if it has no docstring and so is described nowhere."""
    module, _, name = full.rpartition(".")
    if not module.startswith(PACKAGE + "."):
        return None
    body = tree_of(module).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != name:
            continue
        described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node.value, ast.Subscript | ast.BinOp) and not described:
            return scope_of(module).visit(ast.parse(ast.unparse(node.value), mode="eval").body)
    return None


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(import_module(module)))


@cache
def scope_of(module: str) -> Scope:
    """What the names of a module stand for: its imports, also those for types only, and its own."""
    loaded: Any = import_module(module)
    tree = tree_of(module)
    package = module if hasattr(loaded, "__path__") else module.rpartition(".")[0]
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module
            names |= {a.asname or a.name: f"{source}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                a.asname or a.name.partition(".")[0]: a.name
                if a.asname
                else a.name.partition(".")[0]
                for a in node.names
            }
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        own = [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
        names |= {name: f"{module}.{name}" for name in own if name and not hasattr(builtins, name)}
    return Scope(names)


LONGEST_VALUE = 60


def without_long_values(app: Sphinx, page: nodes.document) -> None:
    """Leaves the value of a constant out where it is longer than a line: the source has it."""
    for signature in page.findall(addnodes.desc_signature):
        for part in list(signature.children):
            text = part.astext() if isinstance(part, addnodes.desc_annotation) else ""
            if len(text) > LONGEST_VALUE and text.lstrip().startswith("="):
                signature.remove(part)


# Modules


class RemainingModules(SphinxDirective):
    """Describes the modules of the named packages that no page of the reference describes."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        pages = Path(self.env.srcdir, "reference").glob("*.md")
        described = set(re.findall(r"automodule:: (\S+)", "\n".join(p.read_text() for p in pages)))
        lines = []
        for package in self.content:
            found = import_module(package)
            for module in pkgutil.iter_modules(found.__path__, package + "."):
                self.env.note_dependency(module.module_finder.find_spec(module.name).origin)
                if module.name not in described and "._" not in module.name and not module.ispkg:
                    title = module.name.removeprefix(PACKAGE + ".")
                    lines += [title, "-" * len(title), ""]
                    lines += [f".. automodule:: {module.name}", "   :members:", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


# References


def same_object(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.TextElement
) -> nodes.reference | None:
    """A reference to an object that is described under another name."""
    if node.get("refdomain") != "py":
        return None
    module, cls, target = node.get("py:module"), node.get("py:class"), node["reftarget"]
    objects = env.domains.python_domain.objects
    first, dot, rest = target.partition(".")
    imported = scope_of(module).names.get(first, first) + dot + rest if module else target
    for name in (f"{module}.{cls}.{target}", f"{module}.{target}", imported, target):
        found = resolve(name) if name.startswith(PACKAGE) else None
        described = name if name in objects else index(app).get(id(found))
        if described is not None:
            entry = objects[described]
            return make_refnode(
                app.builder, node["refdoc"], entry.docname, entry.node_id, content, described
            )
    node["reftarget"] = imported  # np.int64 is numpy.int64: for intersphinx, which goes on
    return None


def index(app: Sphinx) -> dict[int, str]:
    """The name under which each object is described, by identity."""
    known = getattr(app, "_described", None)
    if known is None:
        known = {}
        for name, entry in app.env.domains.python_domain.objects.items():
            found = resolve(name) if entry.objtype not in ("module", "attribute") else None
            if found is not None and not isinstance(found, int | float | str | tuple):
                known.setdefault(id(found), name)
        app._described = known  # type: ignore[attr-defined]
    return known


@cache
def resolve(name: str) -> Any:
    """The object of a full name, or None. A submodule hides no function of the same name."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
            if found is None:
                break
        if found is not None and not isinstance(found, ModuleType):
            return found
    return None
