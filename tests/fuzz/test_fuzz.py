"""A fast part of the fuzzing, and every crash that it has found. The whole: ``nox -s fuzz``."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import pytest

from gptoss_ref.errors import GptOssError
from tests.fuzz.__main__ import NAMES, fuzz
from tests.fuzz.targets import targets


def npz_with_header(header: bytes) -> bytes:
    """An .npz file of one array, whose .npy header is that text."""
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        length = struct.pack("<H", len(header))
        archive.writestr("logits.npy", b"\x93NUMPY\x01\x00" + length + header + bytes(12))
    return stored.getvalue()


CRASHES: dict[str, tuple[str, bytes]] = {
    "npz: a bracket of the header is not closed": (
        "npz",
        npz_with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, \n"),
    ),
    "http: the size of a chunk is negative and no index": (
        "http",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'f\r\n{"choices": []}\r\n-19223372036854775808',
    ),
}
"""Name of a case: target and input."""


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_inputs_of_each_target(name: str) -> None:
    outcome = fuzz(name, 1000, seed=2)
    assert outcome.crashes == []
    assert outcome.accepted > 0  # else the inputs would get no further than the first check
    if name != "harmony":  # of which a tolerant parser refuses nothing
        assert outcome.accepted < 500


@pytest.mark.parametrize("case", CRASHES)
def test_crashes_of_the_past(case: str) -> None:
    name, data = CRASHES[case]
    with pytest.raises(GptOssError):
        targets()[name].run(data)


def test_a_crash_is_noticed_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader with a bug: it fails for inputs of an odd number of bytes."""
    from dataclasses import replace

    from tests.fuzz import targets as module

    def run(data: bytes) -> None:
        if len(data) % 2:
            raise KeyError("odd")

    seeds = (b'{"a": 1}',)
    broken: Any = {"index": replace(targets()["index"], seeds=seeds, run=run)}
    monkeypatch.setattr(module, "targets", lambda: broken)
    first, again = fuzz("index", 100, seed=5), fuzz("index", 100, seed=5)
    assert len(first.crashes) == 10
    assert first.crashes == again.crashes
    assert all(crash.startswith("KeyError: 'odd'") for crash in first.crashes)
