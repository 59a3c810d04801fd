"""Rendering against openai-harmony: the same tokens, conversation for conversation."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import openai_harmony as oh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_ref.chat import (
    DeveloperContent,
    Message,
    SystemContent,
    Tool,
    ToolNamespace,
    browser,
    drop_analysis,
    o200k_harmony,
    python,
    render_conversation,
    render_conversation_for_training,
    render_message,
    tool_from_dict,
    tools_from_data,
)
from gptoss_ref.chat.typescript import to_json
from gptoss_ref.errors import HarmonyError
from tests.support.harmony_oracle import (
    conversations,
    oracle,
    parameters,
    schemas,
    texts,
    to_oracle,
    words,
)


def same(ours: list[int], theirs: list[int]) -> None:
    """Equal tokens; on failure the texts are shown, which is what one can read."""
    text = o200k_harmony().decode
    assert text(ours) == text(theirs)
    assert ours == theirs


def test_the_fact_in_the_spec() -> None:
    tokens = render_conversation(
        [Message.system(), Message.user("Reply with exactly one short greeting.")], o200k_harmony()
    )
    text = o200k_harmony().decode(tokens)
    assert len(tokens) == 63
    assert hashlib.sha256(text.encode()).hexdigest().startswith("7aa26a600a0b")


@given(conversations, st.sampled_from(["assistant", "user", "tool"]))
@settings(max_examples=150)
def test_conversations(messages: list[Message], next_role: str) -> None:
    theirs = oracle().render_conversation_for_completion(to_oracle(messages), oh.Role(next_role))
    same(render_conversation(messages, o200k_harmony(), next_role), theirs)


@given(conversations)
@settings(max_examples=60)
def test_conversations_that_end(messages: list[Message]) -> None:
    keep = oh.RenderConversationConfig(auto_drop_analysis=False)
    asked = to_oracle(messages)
    same(render_conversation(messages, o200k_harmony(), None), oracle().render_conversation(asked))
    same(
        render_conversation(messages, o200k_harmony(), None, history="keep"),
        oracle().render_conversation(asked, keep),
    )
    same(
        render_conversation_for_training(messages, o200k_harmony()),
        oracle().render_conversation_for_training(asked),
    )


@given(
    st.lists(st.tuples(words, texts, parameters), max_size=3, unique_by=lambda spec: spec[0]),
    st.none() | texts,
)
@settings(max_examples=150)
def test_tools(specs: list[tuple[str, str, Any]], description: str | None) -> None:
    tools = [Tool(*spec) for spec in specs]
    developer = DeveloperContent(None, (ToolNamespace("functions", description, tools),))
    messages = [Message.system(), Message.developer(developer)]
    same(
        render_conversation(messages, o200k_harmony(), None),
        oracle().render_conversation(to_oracle(messages)),
    )


@given(schemas)
@settings(max_examples=150)
def test_schemas(schema: dict[str, Any]) -> None:
    messages = [Message.developer(DeveloperContent.with_functions(None, [Tool("f", "", schema)]))]
    same(
        render_conversation(messages, o200k_harmony(), None),
        oracle().render_conversation(to_oracle(messages)),
    )


def test_defaults_of_the_renderer() -> None:
    said = [USER, THINK, ANSWER, USER, THINK, ANSWER]
    assert drop_analysis(said) == drop_analysis(said, "openai-harmony") != said
    system = Message.system()
    same(render_message(system, o200k_harmony()), oracle().render(to_oracle([system]).messages[0]))


def test_functions_change_the_system_message() -> None:
    """One line more; and no functions are none."""
    for functions in ([Tool("f")], []):
        developer = DeveloperContent.with_functions("Be brief.", functions)
        messages = [Message.system(), Message.developer(developer), Message.user("?")]
        same(
            render_conversation(messages, o200k_harmony(), None),
            oracle().render_conversation(to_oracle(messages)),
        )


def test_builtin_tools() -> None:
    messages = [Message.system(SystemContent(tools=(python(), browser())))]
    theirs = oh.SystemContent.new().with_python_tool().with_browser_tool()
    same(
        render_conversation(messages, o200k_harmony(), None),
        oracle().render(oh.Message.from_role_and_content(oh.Role.SYSTEM, theirs)),
    )


@given(
    st.sampled_from(["user", "assistant", "tool"]),
    st.lists(texts, max_size=3),
    texts.filter(bool),
    st.none() | texts,
    st.none() | texts,
    st.none() | texts | st.just("<|constrain|>"),
)
@settings(max_examples=60)
def test_any_header(
    role: str,
    parts: list[str],
    name: str,
    recipient: str | None,
    channel: str | None,
    content_type: str | None,
) -> None:
    """Whatever the header fields and the parts of the content say, special tokens spelt out too."""
    message = Message(role, parts, name, recipient, channel, content_type)
    theirs = oracle().render(next(iter(to_oracle([message]))))
    same(render_message(message, o200k_harmony()), theirs)


@given(texts)
def test_text_never_becomes_a_special_token(text: str) -> None:
    tokens = render_message(Message.user(text), o200k_harmony())
    special = [token for token in tokens if o200k_harmony().is_special(token)]
    assert special == [o200k_harmony().special_id(name) for name in ("start", "message", "end")]


# --- history --------------------------------------------------------------------------------------

THINK, ANSWER = Message.assistant("hm", "analysis"), Message.assistant("so")
USER, CALL = Message.user("?"), Message.call("functions.f", "{}")
RESULT = Message.tool("functions.f", "1")


@pytest.mark.parametrize(
    ("messages", "answered", "harmony"),
    [
        ([THINK, USER], [0, 1], [0, 1]),
        ([USER, THINK], [0, 1], [0, 1]),
        ([USER, THINK, ANSWER], [0, 2], [0, 2]),
        ([USER, THINK, ANSWER, USER], [0, 2, 3], [0, 2, 3]),
        ([USER, THINK, CALL, RESULT], [0, 1, 2, 3], [0, 1, 2, 3]),
        ([USER, THINK, CALL, RESULT, THINK, ANSWER], [0, 2, 3, 5], [0, 2, 3, 5]),
        # from the second answer on the two rules differ
        ([USER, THINK, ANSWER, USER, THINK, ANSWER], [0, 2, 3, 5], [0, 2, 3, 4, 5]),
        ([USER, THINK, ANSWER, USER, THINK, CALL], [0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_history_rules(messages: list[Message], answered: list[int], harmony: list[int]) -> None:
    assert drop_analysis(messages, "answered") == [messages[i] for i in answered]
    assert drop_analysis(messages, "openai-harmony") == [messages[i] for i in harmony]
    assert drop_analysis(messages, "keep") == messages
    with pytest.raises(HarmonyError, match="history rule 'all'"):
        drop_analysis(messages, "all")  # type: ignore[arg-type]


LOOK = Message("assistant", "1", recipient="python", channel="analysis")
SEEN, SEEN_LATE = Message.tool("python", "2", "analysis"), Message.tool("python", "2")
ASIDE = Message.tool("functions.f", "1", "analysis")


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        ([USER, LOOK, SEEN, THINK], [0, 1, 2, 3]),
        ([USER, LOOK, SEEN, ANSWER], [0, 3]),
        # the result in another channel than the call: it goes with the call
        ([USER, LOOK, SEEN_LATE, ANSWER], [0, 3]),
        ([USER, CALL, ASIDE, ANSWER], [0, 1, 2, 3]),
        ([USER, LOOK, CALL, RESULT, SEEN_LATE, ANSWER], [0, 2, 3, 5]),
        # two calls of one tool, answered in their order
        ([USER, replace(CALL, channel="analysis"), CALL, ASIDE, RESULT, ANSWER], [0, 2, 4, 5]),
        ([USER, CALL, CALL, ASIDE, ASIDE, ANSWER], [0, 1, 2, 3, 4, 5]),
        # a result without a call goes by its own channel
        ([USER, ASIDE, RESULT, ANSWER], [0, 2, 3]),
        # channels as models misspell them
        ([USER, replace(THINK, channel="thought"), replace(ANSWER, channel="Final")], [0, 2]),
    ],
)  # fmt: skip
def test_a_result_is_kept_with_its_call(messages: list[Message], kept: list[int]) -> None:
    assert drop_analysis(messages, "answered") == [messages[i] for i in kept]


@given(conversations)
def test_answered_is_the_oracle_on_what_is_left(messages: list[Message]) -> None:
    """The rule only drops messages: openai-harmony renders the rest alike, told to drop nothing.

    What the tools make the system message say does not depend on what was dropped.
    """
    kept = drop_analysis(messages, "answered")
    assert all(m in kept for m in messages if m.channel != "analysis" and m.role != "tool")
    keep = oh.RenderConversationConfig(auto_drop_analysis=False)
    same(
        render_conversation(messages, o200k_harmony(), None, history="answered"),
        oracle().render_conversation(to_oracle(kept), keep),
    )


def test_a_final_return_becomes_end_in_history() -> None:
    end, ret = (o200k_harmony().special_id(name) for name in ("end", "return"))
    assert render_conversation([USER, ANSWER], o200k_harmony(), None)[-1] == end
    assert render_conversation_for_training([USER, ANSWER], o200k_harmony())[-1] == ret
    whole = render_conversation([USER, ANSWER], o200k_harmony(), None)
    assert render_conversation_for_training([USER, ANSWER], o200k_harmony()) == [*whole[:-1], ret]
    assert ret not in render_conversation_for_training([USER, ANSWER, USER], o200k_harmony())
    assert ret not in render_conversation_for_training([USER, THINK], o200k_harmony())
    assert render_conversation_for_training([], o200k_harmony()) == []
    kept = render_conversation([USER, THINK, ANSWER], o200k_harmony(), None, history="keep")
    trained = render_conversation_for_training(
        [USER, THINK, ANSWER], o200k_harmony(), history="keep"
    )
    assert trained == [*kept[:-1], ret]
    assert len(kept) > len(whole)


# --- JSON and bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e15, "1000000000000000.0"),
        (2.5e-5, "0.000025"),
        (1e-5, "0.00001"),
        (1e-4, "0.0001"),
        (0.0, "0.0"),
        ({3: "é"}, '{"3":"é"}'),
        (-(2**63), "-9223372036854775808"),
        (-(2**63) - 1, "-9.223372036854776e18"),
        (1e16, "1e16"),
        (-2.5e-5, "-0.000025"),
        (1e-6, "1e-6"),
        (2**64 - 1, "18446744073709551615"),
        (2**64, "1.8446744073709552e19"),
        ({"a": [1, "é\n", None, True]}, '{"a":[1,"é\\n",null,true]}'),
    ],
)
def test_json(value: Any, text: str) -> None:
    assert to_json(value) == text


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Message("robot", "hi"), "message role 'robot': expected one of system"),
        (lambda: Message("tool", "hi"), "tool message without a name"),
        (lambda: Message("user", 3), "user message: content"),
        (lambda: Message("user", [3]), "user message: content of type int, expected text"),
        (lambda: Message("user", SystemContent()), "SystemContent in a user message"),
        (
            lambda: DeveloperContent(None, [ToolNamespace("functions")] * 2),
            "tool namespace 'functions' given 2 times",
        ),
        (lambda: Message.system(DeveloperContent()), "DeveloperContent in a system message"),
        (lambda: SystemContent(reasoning_effort="max"), "effort 'max': expected one of low"),
        (lambda: Tool("f", "", [1]), "tool f: parameters must be a JSON schema object"),
        (lambda: Tool(""), "tool name ''"),
        (lambda: Tool("a b"), "tool name 'a b': expected only letters"),
        (lambda: Tool("add\n"), r"tool name 'add\\n': expected only letters"),
        (lambda: Tool("<|end|>"), "expected only letters"),
        (
            lambda: ToolNamespace("functions", None, [Tool("f"), Tool("g"), Tool("f")]),
            "tool 'f' given 2 times in the namespace 'functions'",
        ),
        (lambda: Tool("f", "", {"properties": ["a"]}), "tool f: properties .* must be an object"),
        (lambda: Tool("f", "", {"properties": None}), "tool f: properties .* must be an object"),
        (lambda: Tool("f", "", {"properties": {"a": "text"}}), "tool f: parameter 'a' must be"),
        (lambda: tool_from_dict({"description": "x"}), "expected an object with name"),
        (lambda: tools_from_data([3]), "tool 3: expected an object"),
        (lambda: tool_from_dict({"name": "f", "description": 1}), "description must be text"),
        (lambda: Message.from_dict({"content": "x"}), "expected an object with role"),
        (lambda: Message.from_dict({"role": "user", "text": "x"}), "unknown field 'text'"),
        (lambda: Message.from_dict({"role": "user", "content": {}}), "content must be text"),
        (lambda: Message.from_dict({"role": "user", "content": None}), "content must be text"),
        (
            lambda: Message.from_dict({"role": "system", "content": {"effort": "low"}}),
            "system message: .*effort",
        ),
    ],
)
def test_bad_messages(make: Any, match: str) -> None:
    with pytest.raises(HarmonyError, match=match):
        make()


def test_a_schema_nested_beyond_reason_is_one_clear_error() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        schema = {"type": "object", "properties": {"a": schema}}
    message = Message.developer(DeveloperContent.with_functions(None, [Tool("f", "", schema)]))
    with pytest.raises(HarmonyError, match=r"tool f: .* nested too deeply"):
        render_message(message, o200k_harmony())


def test_a_header_with_other_content() -> None:
    assert CALL.with_content("[]") == replace(CALL, content="[]")
    assert CALL.with_content(["a", "b"]).text == "ab"


def test_messages_from_plain_data() -> None:
    tool = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert tools_from_data([{"type": "function", "function": tool}]) == tools_from_data(tool)
    developer = {"instructions": "be brief", "tools": [{"name": "functions", "tools": [tool]}]}
    assert Message.from_dict({"role": "developer", "content": developer}) == Message.developer(
        DeveloperContent.with_functions("be brief", tools_from_data([tool]))
    )
    assert Message.from_dict(
        {"role": "system", "content": {"reasoning_effort": "low"}}
    ) == Message.system(SystemContent(reasoning_effort="low"))
    assert Message.from_dict(CALL.to_dict()) == CALL
    assert CALL.to_dict() == {
        "role": "assistant",
        "recipient": "functions.f",
        "channel": "commentary",
        "content_type": "<|constrain|>json",
        "content": "{}",
    }
