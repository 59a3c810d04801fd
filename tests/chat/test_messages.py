"""Names of channels, and what the contents of system and developer messages may hold."""

from __future__ import annotations

import pytest

from gptoss_ref.chat import DeveloperContent, Message, SystemContent, Tool, ToolNamespace, python
from gptoss_ref.chat.messages import meant_channel, place_of
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


def test_what_a_role_needs_and_may_not_hold() -> None:
    with pytest.raises(HarmonyError, match=r"^tool message without a name: expected the name of t"):
        Message("tool", "1")
    with pytest.raises(HarmonyError, match=r"^SystemContent in a user message: it belongs in a sy"):
        Message("user", SystemContent())
    with pytest.raises(HarmonyError, match=r"^DeveloperContent in a user message: it belongs in a"):
        Message("user", DeveloperContent())


def test_a_message_without_content_is_empty() -> None:
    assert Message.from_dict({"role": "user", "name": "a"}) == Message("user", "", name="a")


def test_fields_that_are_filled_in() -> None:
    assert SystemContent(tools=[python()]).tools == (python(),)
    assert SystemContent(channels=["final"]).channels == ("final",)
    assert DeveloperContent(tools=[python()]).tools == (python(),)
    assert DeveloperContent.with_functions("x").tools == ()
    assert ToolNamespace("f", None, [Tool("g")]).tools == (Tool("g"),)
    assert Message.call("f", "{}").content_type == "<|constrain|>json"
    assert Message.tool("f", "1").recipient == "assistant"
    assert place_of(Message("assistant", "x", content_type="json")) == "final"
    assert place_of(Message("assistant", "x", content_type="analysis")) == "analysis"


def test_functions_beside_namespaces() -> None:
    content = {"tools": [{"name": "files", "tools": []}], "functions": [{"name": "f"}]}
    (part,) = Message.from_dict({"role": "developer", "content": content}).parts
    assert isinstance(part, DeveloperContent)
    assert [space.name for space in part.tools] == ["files", "functions"]
