"""Resident memory of this process, split as the kernel splits it, with peaks (Linux)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

_FIELDS = {"VmRSS": "total", "RssAnon": "anonymous", "RssFile": "file"}


@dataclass
class Resident:
    """Bytes resident. `anonymous` was allocated by the program, `file` belongs to mapped files."""

    total: int = 0
    anonymous: int = 0
    file: int = 0


def resident() -> Resident:
    """What is resident now."""
    now = Resident()
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in _FIELDS:
            setattr(now, _FIELDS[key], int(value.removesuffix("kB")) * 1024)
    return now


class PeakMemory:
    """Context manager: the highest of each figure while its body ran, read every `interval` s."""

    def __init__(self, interval: float = 0.005) -> None:
        self.interval = interval
        self.before = Resident()
        self.peak = Resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self.before = resident()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            self._read()

    def _read(self) -> None:
        now = resident()
        for name in _FIELDS.values():
            setattr(self.peak, name, max(getattr(self.peak, name), getattr(now, name)))
