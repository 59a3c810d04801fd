"""Progress of a diagnosis."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with the steps done, the total as far as known, and the current work in words."""


def unwatched(done: int, total: int, what: str) -> None:
    """A Progress that does nothing."""


class Steps:
    """Counts the steps that are done and the steps to come.

    The total is not known at the start: every divergence that is found adds steps, which
    :meth:`expect` announces.

    Args:
        progress: called for every step.
        ahead: steps that are known at the start.
    """

    def __init__(self, progress: Progress, ahead: int = 0) -> None:
        self._progress = progress
        self._done, self._ahead, self._what = 0, ahead, ""

    def expect(self, more: int) -> None:
        """Add ``more`` steps to the total."""
        self._ahead += more

    def say(self, what: str) -> None:
        """Set the description of the next steps."""
        self._what = what

    def tick(self) -> None:
        """Count one step as done."""
        self._done += 1
        self._ahead = max(0, self._ahead - 1)
        self._progress(self._done, self._done + self._ahead, self._what)

    def finish(self) -> None:
        """Set the total to the steps done."""
        self._ahead = 0
        self._progress(self._done, self._done, self._what)
