"""The picture of the whole model: up to date, and its links lead somewhere."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from docs._generate.model_picture import OPERATIONS, PAGE, picture
from gptoss_ref.tracing.taps import TAPS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_picture_is_the_generated_one() -> None:
    """Otherwise: python -m docs._generate.model_picture"""
    assert PAGE.read_text("utf-8") == picture()


def test_it_shows_every_tap_point_once_in_order() -> None:
    shown = [tap for op in OPERATIONS for tap in op.taps]
    assert shown == [name.removeprefix("block.{n}.") for name in TAPS]


def test_its_links_lead_somewhere() -> None:
    targets = set(re.findall(r'href="\.\./([^"]*)\.html"', picture()))
    for target in targets:
        if target.startswith("_modules/"):
            import_module(target.removeprefix("_modules/").replace("/", "."))
        else:
            assert (DOCS / f"{target}.md").is_file(), target
    assert len(targets) > 15
