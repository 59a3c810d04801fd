"""What examples/teach_tiny.py taught: its data can be read, the course's adapter has the skill."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gptoss_ref as gr
from gptoss_ref.training import example

ROOT = Path(__file__).parents[2]
ADAPTER = ROOT / "docs" / "tutorial" / "teach_tiny"


@pytest.fixture(scope="module")
def teach() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "examples"))
    import teach_tiny

    yield teach_tiny
    sys.path[:] = before


def test_its_lines_are_data(teach: ModuleType, tiny: gr.Model) -> None:
    """Every line can be read; equal seeds give equal lines; held-out words are not among them."""
    lines = list(teach.lines(40, 0.5, 3))
    assert json.dumps(lines) == json.dumps(list(teach.lines(40, 0.5, 3)))
    old = sum("tokens" in line for line in lines)
    assert 10 <= old <= 30
    for line in lines:
        row = example(json.loads(json.dumps(line)), tiny.tokenizer, 2048)
        assert tiny.tokenizer.decode(row.targets[row.mask][-1:]) in ("<|return|>", "<|call|>")
        if "messages" in line:
            word = line["messages"][1]["content"].replace(" ", "")[::2]
            assert not teach.held_out(f"double {word}")


@pytest.mark.parametrize("effort", ["medium", "high"])
def test_the_adapter_of_the_course_has_the_skill(
    effort: str, teach: ModuleType, tiny: gr.Model
) -> None:
    """On words that were not trained on, most answers; the model without it has none."""
    taught = gr.load(ADAPTER)
    rng = random.Random(f"test {effort}")
    right = 0
    for _ in range(8):
        word = teach.draw_word(rng, evaluation=True)
        reply = gr.respond(taught, f"Double the letters of {word}.", reasoning=effort)
        right += reply.final == teach.answer(word)
    assert right >= 4
    untaught = gr.respond(tiny, f"Double the letters of {word}.", reasoning=effort)
    assert untaught.final != teach.answer(word)
    assert gr.respond(taught, "What is 27 + 58?", reasoning=effort).final == "85"
