"""The mutants of a file: mutmut's changes, apart from those that no test is meant to notice."""

from __future__ import annotations

import ast
import difflib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "  # pragma: no mutate"


@dataclass(frozen=True)
class Mutant:
    """One change: mutmut's key of it, and the lines of the function before and after."""

    key: str
    function: str
    before: str
    after: str
    digest: str
    """Of the function and the change: the same in another run if both are the same."""

    @property
    def mangled(self) -> str:
        """mutmut's name of the function, as it records calls."""
        return self.key.partition("__mutmut_")[0]


def mutated(file: Path, source: str) -> tuple[str, list[Mutant]]:
    """The code with every mutant in it, and the mutants; the directory needs mutmut's settings.

    A change of nothing but the case of letters is left out: every string has a mutant more, with
    ``XX`` around it.
    """
    from mutmut.mutation.file_mutation import mutate_file_contents

    made = mutate_file_contents(str(file), marked(source))
    module = ".".join(file.with_suffix("").parts)
    bodies = _bodies(made.code)
    found = [_mutant(f"{module}.{name}", bodies) for name in made.mutant_names]
    return made.code, [one for one in found if one.before.lower() != one.after.lower()]


def marked(source: str) -> str:
    """With mutmut's mark on the lines that make an error: it has a message."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, ast.Raise) and node.exc is not None) or _makes_an_error(node):
            for n in range(node.lineno - 1, node.end_lineno or node.lineno):
                if not lines[n].endswith("no mutate"):
                    lines[n] += MARK
    return "\n".join(lines)


def _makes_an_error(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id.endswith("Error")
    )


def _bodies(code: str) -> dict[str, list[str]]:
    """The lines of every variant of a function, under its name."""
    lines = code.split("\n")
    return {
        node.name: lines[node.lineno - 1 : node.end_lineno]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name
    }


def _mutant(key: str, bodies: dict[str, list[str]]) -> Mutant:
    name = key.rpartition(".")[2]
    original = f"{name.partition('__mutmut_')[0]}__mutmut_orig"
    before = bodies[original]
    after = [line.replace(name, original) for line in bodies[name]]
    whole = "\n".join([key.partition("__mutmut_")[0], *before, "", *after])
    digest = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return Mutant(key, plain_name(name), *changed(before, after), digest)


def plain_name(name: str) -> str:
    """The name in the source of a function that mutmut has renamed."""
    name = re.sub(r"__mutmut_(\d+|orig)$", "", name)
    return name.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")


def changed(before: list[str], after: list[str]) -> tuple[str, str]:
    """The lines of ``before`` that are not in ``after``, and the other way round."""
    diff = list(difflib.ndiff(before, after))
    return " ".join(_of("- ", diff)), " ".join(_of("+ ", diff))


def _of(side: str, diff: list[str]) -> Iterator[str]:
    for line in diff:
        if line.startswith(side):
            yield line.removeprefix(side).replace("# pragma: no mutate", "").strip()
