"""What the mutation run mutates, and the tests that should notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Room:
    """What is mutated, and the tests that should notice; ``{}`` is the name of the file."""

    code: str
    tests: tuple[str, ...]


ROOMS = {
    "layers": Room("gptoss_ref/layers/*.py", ("tests/layers/test_{}.py",)),
    "numerics": Room("gptoss_ref/numerics.py", ("tests/model/test_numerics.py",)),
    "chat": Room("gptoss_ref/chat/*.py", ("tests/chat",)),
    "checkpoint": Room("gptoss_ref/checkpoint/*.py", ("tests/checkpoint",)),
}


def files(room: Room) -> list[Path]:
    """What of a room is mutated, by their names from the root."""
    found = [path.relative_to(ROOT) for path in sorted(ROOT.glob(room.code))]
    return [path for path in found if path.name != "__init__.py"]


def own_tests(room: Room, file: Path) -> list[str]:
    """The tests that should notice a mutant of a file."""
    return [name.format(file.stem) for name in room.tests]
