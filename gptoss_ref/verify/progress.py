"""How far a diagnosis has come, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all as far as known, and what is being done."""


def unwatched(done: int, total: int, what: str) -> None:
    """The progress of what nobody watches."""


class Steps:
    """Counts steps, and those still to come.

    What is to come is not all known at the start: every divergence that is found brings further
    steps, which are announced with :meth:`expect`.

    Args:
        progress: is told of every step.
        ahead: steps that are sure to come.
    """

    def __init__(self, progress: Progress, ahead: int = 0) -> None:
        self._progress = progress
        self._done, self._ahead, self._what = 0, ahead, ""

    def expect(self, more: int) -> None:
        """So many steps more are to come."""
        self._ahead += more

    def say(self, what: str) -> None:
        """What the next steps are about."""
        self._what = what

    def tick(self) -> None:
        """One step is done."""
        self._done += 1
        self._ahead = max(0, self._ahead - 1)
        self._progress(self._done, self._done + self._ahead, self._what)

    def finish(self) -> None:
        """Nothing more is to come."""
        self._ahead = 0
        self._progress(self._done, self._done, self._what)
