"""A bound on work that is the same on every machine: calls are counted, and no clock is read."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def at_most_calls(limit: int) -> Iterator[None]:
    """An AssertionError as soon as this thread has called ``limit`` Python functions.

    So what would go on for hours ends, too.
    """
    left = limit

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal left
        if event == "call":
            left -= 1
            assert left >= 0, f"more than {limit} calls, now in {frame.f_code.co_qualname}"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
