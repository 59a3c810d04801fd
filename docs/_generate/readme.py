"""The README's examples, run: `python -m docs._generate.readme` writes what they print back into
it.

A ```console block holds commands after `$ `, a ```pycon block Python after `>>> `; the lines
after each are its output. Only `gptoss-ref` commands are run. All Python is one session.
"""

from __future__ import annotations

import code
import contextlib
import doctest
import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest import mock

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"```(console|pycon)\n(.*?)```", re.DOTALL)


def rerun(text: str) -> str:
    """The same document with every block's output as it is now."""
    session: dict[str, Any] = {}

    def block(match: re.Match[str]) -> str:
        kind, body = match.groups()
        fresh = _console(body) if kind == "console" else _python(body, session)
        return f"```{kind}\n{fresh}```"

    return BLOCK.sub(block, text)


def commands(text: str) -> list[str]:
    """The shell commands in the document's console blocks."""
    blocks = (body for kind, body in BLOCK.findall(text) if kind == "console")
    return [line[2:] for body in blocks for line in body.splitlines() if line.startswith("$ ")]


def _console(body: str) -> str:
    from gptoss_ref.cli import main

    result = []
    for command in commands(f"```console\n{body}```"):
        program, *arguments = shlex.split(command)
        assert program == "gptoss-ref", command
        screen = io.StringIO()  # thoughts and answers on one screen, as at a terminal
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            status = main(arguments)
        assert status == 0, screen.getvalue()
        result.append(f"$ {command}\n{screen.getvalue()}")
    return "".join(result)


def _python(body: str, session: dict[str, Any]) -> str:
    result = []
    for example in doctest.DocTestParser().get_examples(body):
        screen = io.StringIO()
        with (
            contextlib.redirect_stdout(screen),
            mock.patch.object(sys, "displayhook", sys.__displayhook__),
        ):
            compiled = code.compile_command(example.source, symbol="single")
            assert compiled is not None, example.source
            exec(compiled, session)
        first, *more = example.source.rstrip("\n").split("\n")
        lines = [f">>> {first}", *(f"... {line}".rstrip() for line in more)]
        result.append("\n".join(lines) + "\n" + screen.getvalue())
    return "".join(result)


if __name__ == "__main__":
    README.write_text(rerun(README.read_text()))
