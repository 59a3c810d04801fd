"""ARCHITECTURE.md holds against the code: its paths and names exist, its order is the imports'."""

from __future__ import annotations

import configparser
import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text("utf-8")


def test_every_path_exists() -> None:
    paths = set(re.findall(r"`(gptoss_ref/[\w/]+(?:\.py|/))`", TEXT))
    assert len(paths) > 20
    missing = [path for path in sorted(paths) if not (ROOT / path).exists()]
    assert not missing


def test_every_name_is_defined_there() -> None:
    named = re.findall(r"`(gptoss_ref/[\w/]+)\.py`: `(\w+)`", TEXT)
    assert len(named) > 4
    for path, name in named:
        assert hasattr(import_module(path.replace("/", ".")), name), f"{path}: {name}"


def test_every_room_of_the_package_is_mentioned() -> None:
    rooms = {p.parent.name for p in (ROOT / "gptoss_ref").glob("*/__init__.py")}
    unmentioned = [room for room in sorted(rooms - {"viz"}) if f"gptoss_ref/{room}/" not in TEXT]
    assert not unmentioned


def test_its_order_of_the_verifier_is_that_of_the_imports() -> None:
    contract = configparser.ConfigParser()
    contract.read(ROOT / "setup.cfg", "utf-8")
    lines = contract["importlinter:contract:verify"]["layers"].split()
    rows = re.findall(r"^\| \d \| `gptoss_ref/verify/(\w+)/` \|", TEXT, re.MULTILINE)
    assert len(rows) == 6
    assert [name for name in reversed(lines) if name in rows] == rows


def test_it_fits_on_a_page() -> None:
    assert len(TEXT.splitlines()) < 80
