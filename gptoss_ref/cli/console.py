"""Output of the commands: streamed text, tables and progress, with or without rich.

rich is used on a terminal only. In a pipe, or if rich is not installed, the same content is plain
text without escape codes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# Text from a model or a file is untrusted: control characters are shown as codes.
_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n")}
_VISIBLE = {code: f"\\x{code:02x}" for code in _CONTROLS}


def visible(text: str) -> str:
    """The text with control characters as codes, except tabs and line ends."""
    return text.translate(_VISIBLE)


EVERY = 10.0
"""Seconds between two progress lines if there is no terminal."""


class Lines:
    """A callback (done, total, what) that prints a line about the progress now and then.

    Args:
        screen: the output.
        description: of the work.
        of_bytes: whether steps are bytes.
        clock: seconds.
    """

    def __init__(
        self,
        screen: Screen,
        description: str,
        *,
        of_bytes: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._screen, self._description, self._of_bytes = screen, description, of_bytes
        self._clock = clock
        self._start = self._said = clock()

    def __call__(self, done: int, total: int, what: str) -> None:
        now = self._clock()
        if now - self._said < EVERY:
            return
        self._said = now
        count = f"{done / 1e6:.0f} MB" if self._of_bytes else str(done)
        if total:
            count += f" of {total / 1e6:.0f} MB" if self._of_bytes else f" of {total}"
        text = f"{self._description}: {count}"
        if what:
            text += f", {what}"
        if 0 < done < total:
            left = (now - self._start) * (total - done) / done
            text += f", about {_duration(left)} left"
        self._screen.line(text)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


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

    def write(self, text: str, *, dim: bool = False, style: str = "") -> None:
        """Writes text without a line end, and flushes it.

        `style` is one of rich's, such as "bold red"; without rich, text has none.
        """
        if self.is_terminal:
            text = visible(text)
        if self._rich is not None:
            self._rich.print(text, style=style or ("dim" if dim else None), end="", soft_wrap=True)
        else:
            self.stream.write(text)
        self.stream.flush()

    def line(self, text: str = "", *, dim: bool = False, style: str = "") -> None:
        """Writes one line."""
        self.write(text + "\n", dim=dim, style=style)

    @property
    def is_rich(self) -> bool:
        """Whether tables and progress bars can be drawn."""
        return self._rich is not None

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Draws a table, first column left-aligned, others right-aligned; only if `is_rich`."""
        from rich.table import Table

        assert self._rich is not None
        table = Table()
        for index, name in enumerate(header):
            table.add_column(name, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        self._rich.print(table)

    @contextmanager
    def progress(
        self, description: str, *, of_bytes: bool = True
    ) -> Iterator[Callable[[int, int, str], None]]:
        """Shows a progress bar while its body runs; yields its callback (done, total, what).

        A total of 0 means unknown. Unless it counts bytes, the bar also shows the current work.
        Without a terminal there is a line every ten seconds instead.
        """
        if self._rich is None:
            yield Lines(self, description, of_bytes=of_bytes)
            return
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        text = TextColumn("{task.description}")
        counter = DownloadColumn() if of_bytes else MofNCompleteColumn()
        with Progress(
            text, BarColumn(), counter, TimeRemainingColumn(), console=self._rich
        ) as bars:
            task = bars.add_task(description, total=None)

            def show(done: int, total: int, what: str) -> None:
                label = description if of_bytes else f"{description}: {what}"
                bars.update(task, completed=done, total=total or None, description=label)

            yield show

    @contextmanager
    def status(self, text: str) -> Iterator[Callable[[str], None]]:
        """Shows one line while its body runs, with a spinner on a terminal.

        It yields a function that sets the current work, which only the spinner's line shows.
        """
        if self._rich is None:
            self.line(text)
            yield lambda _: None
            return
        with self._rich.status(text) as spinner:
            yield lambda detail: spinner.update(f"{text}: {detail}")


def output() -> Screen:
    """The screen for results: standard output."""
    return Screen(sys.stdout)


def notes() -> Screen:
    """The screen for all other messages: standard error."""
    return Screen(sys.stderr)
