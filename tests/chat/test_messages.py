"""Names of channels, and what the contents of system and developer messages may hold."""

from __future__ import annotations

import pytest

from gptoss_ref.chat import DeveloperContent, Message, SystemContent
from gptoss_ref.chat.messages import meant_channel
from gptoss_ref.errors import HarmonyError


@pytest.mark.parametrize(
    ("name", "channel"),
    [
        *(("a.n-a l_y:s.i.s", "analysis"), ("Final!", "final"), ("comentary", "commentary")),
        *(("fine", "commentary"), ("final_answer", "final"), ("analysisfinal", "analysis")),
        *(("finl", "final"), ("anlysis", "analysis"), ("answer", "final"), (None, "final")),
    ],
)
def test_marks_and_misspellings_in_a_channels_name(name: str | None, channel: str) -> None:
    assert meant_channel(name) == channel


def test_fields_that_are_no_text() -> None:
    with pytest.raises(HarmonyError, match=r"^developer message: instructions 3: expected text"):
        DeveloperContent(3)  # type: ignore[arg-type]
    for field in ("model_identity", "conversation_start_date", "knowledge_cutoff"):
        with pytest.raises(HarmonyError, match=rf"^system message: {field} 3: expected text or No"):
            SystemContent(**{field: 3})  # type: ignore[arg-type]
    for channels in ("final", ["final", 3]):
        with pytest.raises(HarmonyError, match=r"^system message: channels .*: expected a list of"):
            SystemContent(channels=channels)  # type: ignore[arg-type]


def test_a_message_without_content_is_empty() -> None:
    assert Message.from_dict({"role": "user", "name": "a"}) == Message("user", "", name="a")
