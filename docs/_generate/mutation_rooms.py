"""What the mutation run mutates, and the tests that should notice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Room:
    """What is mutated, and the tests that should notice.

    Attributes:
        code: the files, as a pattern.
        tests: the tests of a file; ``{}`` is its name.
        own: for some files, by their name, those of the tests that are about them.
    """

    code: str
    tests: tuple[str, ...]
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _in(folder: str, **tests: str) -> dict[str, tuple[str, ...]]:
    """By file, its tests in a folder, given as names separated by spaces."""
    return {
        file: tuple(f"{folder}/test_{name}.py" for name in names.split())
        for file, names in tests.items()
    }


ROOMS = {
    "layers": Room("gptoss_ref/layers/*.py", ("tests/layers/test_{}.py",)),
    "numerics": Room("gptoss_ref/numerics.py", ("tests/model/test_numerics.py",)),
    "chat": Room(
        "gptoss_ref/chat/*.py",
        ("tests/chat",),
        _in(
            "tests/chat",
            header="header parser law",
            hf_tokenizer="tokenizer",
            pack_ranks="tokenizer",
            parser="parser law",
            render="render",
            split="tokenizer",
            tokenizer="tokenizer",
            tool_data="tool_data",
            tools="render tool_data",
            typescript="typescript render",
            unfinished="unfinished parser respond",
        ),
    ),
    "checkpoint": Room(
        "gptoss_ref/checkpoint/*.py",
        ("tests/checkpoint",),
        _in(
            "tests/checkpoint",
            convert="convert",
            locate="locate",
            made="made",
            merge="merge",
            peft="peft merge",
            reader="reader",
            summary="summary",
            writer="convert",
        ),
    ),
}


def files(room: Room) -> list[Path]:
    """What of a room is mutated, by their names from the root."""
    found = [path.relative_to(ROOT) for path in sorted(ROOT.glob(room.code))]
    return [path for path in found if path.name != "__init__.py"]


def own_tests(room: Room, file: Path) -> list[str]:
    """The tests that should notice a mutant of a file."""
    return [name.format(file.stem) for name in room.own.get(file.stem, room.tests)]
