"""What the commands print with: streamed text, tables and progress, with or without rich.

Rich draws only where a person looks, on a terminal. In a pipe, and where rich is not installed, the
same content is plain text without escape codes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# Text from a model is untrusted: on a terminal, control characters are shown and not obeyed.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (9, 10)}


class Screen:
    """One output stream.

    Args:
        stream: where to write; rich is used if this is a terminal and rich is installed.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_terminal = stream.isatty()
        self._rich: Console | None = None
        if self.is_terminal:
            try:
                from rich.console import Console
            except ImportError:
                pass
            else:
                self._rich = Console(file=stream, highlight=False, markup=False, emoji=False)

    def write(self, text: str, *, dim: bool = False) -> None:
        """Writes text as it comes, without a line end, and shows it at once."""
        if self.is_terminal:
            text = text.translate(_VISIBLE)
        if self._rich is not None:
            self._rich.print(text, style="dim" if dim else None, end="", soft_wrap=True)
        else:
            self.stream.write(text)
        self.stream.flush()

    def line(self, text: str = "", *, dim: bool = False) -> None:
        """Writes one line."""
        self.write(text + "\n", dim=dim)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table: the first column flush left, the others flush right."""
        if self._rich is not None:
            from rich.table import Table

            table = Table(title=title, title_justify="left", title_style="bold")
            for index, name in enumerate(header):
                table.add_column(name, justify="right" if index else "left")
            for row in rows:
                table.add_row(*row)
            self._rich.print(table)
            return
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        self.line(title)
        for row in (header, *rows):
            first, *others = (
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            self.line("  ".join((first, *others)).rstrip())

    @contextmanager
    def progress(self, description: str) -> Iterator[Callable[[int, int], None] | None]:
        """Shows a bar while its body runs; gives the callback (done, total), or None without one."""
        if self._rich is None:
            yield None
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._rich) as bars:
            task = bars.add_task(description, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def output() -> Screen:
    """The screen for results: standard output."""
    return Screen(sys.stdout)


def notes() -> Screen:
    """The screen for what is not a result: standard error."""
    return Screen(sys.stderr)
