"""Everything that writes a file or a folder, and what a whole one is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gptoss_ref as gr
from gptoss_ref.cli import main
from gptoss_ref.verify.vectors import write_vectors
from gptoss_ref.viz import inspector

TOKENS = list(range(60, 100))


@dataclass(frozen=True)
class Writer:
    """One of the package's writers.

    Attributes:
        write: writes to this path, the same every time.
        replaces: whether it may replace what is there; else it needs a new folder.
    """

    write: Callable[[Path], Any]
    replaces: bool


@cache
def model() -> gr.Model:
    """tiny without kernels, which must not be compiled in a process that is about to be killed."""
    return gr.load("tiny", backend="numpy")


@cache
def trace() -> gr.Trace:
    """A trace in memory."""
    return gr.trace(model(), TOKENS)


@cache
def page() -> str:
    """The inspector's page."""
    return inspector.page(model(), TOKENS)


@cache
def report() -> Any:
    """A comparison of two traces that differ."""
    from gptoss_ref.verify import compare

    other = gr.trace(gr.load("tiny", backend="numpy", policy="bfloat16"), TOKENS)
    return compare(trace(), other)


def _convert_by_command(path: Path) -> None:
    if main(["convert", "tiny", str(path), "--layout", "openai"]) != 0:
        raise gr.errors.GptOssError("the command failed")


WRITERS: dict[str, Writer] = {
    "convert": Writer(lambda path: gr.convert("tiny", path, max_shard_bytes=500_000), False),
    "convert-command": Writer(_convert_by_command, False),
    "vectors": Writer(write_vectors, False),
    "trace": Writer(lambda path: gr.trace(model(), TOKENS, path=path), True),
    "trace-save": Writer(lambda path: trace().save(path), True),
    "inspect": Writer(lambda path: inspector.write(path, page()), True),
    "report": Writer(lambda path: report().to_html(path), True),
}


def prime() -> None:
    """Compute once what every child of this process needs."""
    from gptoss_ref.verify.vectors.suite import suite_files

    trace(), page(), report().to_html(), suite_files()


def content(path: Path) -> str | None:
    """A digest of a file, or of a folder's files and their names; None if there is nothing."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.is_dir():
        return None
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            total.update(file.relative_to(path).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()
