"""A fast part of the faults. The whole: ``nox -s faults``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gptoss_ref.errors import GptOssError
from tests.faults import scenarios
from tests.faults.writers import WRITERS, content

on_posix = pytest.mark.skipif(os.name == "nt", reason="SIGKILL and forked processes")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files")


@on_posix
@pytest.mark.parametrize("name", ["convert", "trace"])  # a new folder; a file that is replaced
def test_a_killed_writer_leaves_the_old_or_the_new(name: str) -> None:
    outcome = scenarios.killed(name, 3, seed=1)
    assert outcome.failures == []
    assert outcome.times == outcome.held == 3


@on_linux
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "convert-command"])
def test_a_writer_without_room_leaves_the_old(name: str, tmp_path: Path) -> None:
    """No file may grow beyond 1000 bytes; a full disk itself needs a file system of its own."""
    import resource

    writer, target = WRITERS[name], tmp_path / "result"
    if writer.replaces:
        target.write_text("old")
    before = content(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(GptOssError, match="cannot be written: File too large"):
            writer.write(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(tmp_path) == before


@on_posix
def test_a_reader_beside_a_writer_sees_all_or_nothing() -> None:
    for outcome in (
        scenarios.read_while_converting(3, seed=1),
        scenarios.read_while_replacing(30, seed=1),
    ):
        assert outcome.failures == []
        assert outcome.held == outcome.times > 0


def test_a_clock_that_jumps() -> None:
    assert scenarios.clock_jumps(10, seed=1).failures == []


def test_threads_with_caches_of_their_own() -> None:
    outcome = scenarios.many_threads(1 / 60, seed=1)
    assert outcome.failures == []
    assert outcome.times >= 16


@on_posix
def test_a_writer_that_is_not_atomic_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faults themselves: a writer in two steps, slowly, is seen half done."""
    monkeypatch.setitem(WRITERS, "slow", scenarios.WRITERS["inspect"])
    killer = scenarios.Killer
    monkeypatch.setattr(killer, "write", _half_written)
    assert scenarios.killed("slow", 3, seed=1).failures != []


def _half_written(self: scenarios.Killer, name: str, path: Path, after: float | None) -> float:
    path.write_text("new" if after is None else "n")
    return 0.1
