"""Tools in the forms of other people's APIs, and what cannot be understood."""

from __future__ import annotations

from typing import Any

import pytest

from gptoss_ref.chat import DeveloperContent, Message, Tool, o200k_harmony, render_message
from gptoss_ref.chat.tool_data import (
    namespace_from_dict,
    namespaces_from_data,
    tool_from_dict,
    tools_from_data,
)
from gptoss_ref.errors import HarmonyError
from tests.support.harmony_oracle import oracle, to_oracle

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
OTHER = {"type": "object", "properties": {}}
HEAD = {"name": "read", "description": "Reads."}
READ = Tool("read", "Reads.", SCHEMA)


def text_of(tool: Tool) -> str:
    content = DeveloperContent.with_functions(None, [tool])
    return o200k_harmony().decode(render_message(Message.developer(content), o200k_harmony()))


@pytest.mark.parametrize(
    "form",
    [
        {**HEAD, "parameters": SCHEMA},
        {**HEAD, "parameters": SCHEMA, "type": "function", "strict": True},
        {**HEAD, "inputSchema": SCHEMA},
        {**HEAD, "inputSchema": SCHEMA, "title": "R", "annotations": {"readOnlyHint": True}},
        {**HEAD, "input_schema": SCHEMA, "type": "custom", "cache_control": {}},
        {**HEAD, "input_schema": SCHEMA, "inputSchema": dict(SCHEMA)},
        {**HEAD, "parameters": None, "inputSchema": SCHEMA},
        {**HEAD, "parameters": SCHEMA, "unheard": 1},
        {"type": "function", "function": {**HEAD, "parameters": SCHEMA, "strict": False}},
        {"type": "function", "function": HEAD, "parameters": SCHEMA},
        {"type": "function", "function": HEAD, "inputSchema": SCHEMA},
        {"type": "function", "function": {**HEAD, "parameters": None}, "parameters": SCHEMA},
        {"function": {"name": "read", "parameters": SCHEMA}, "description": "Reads."},
        {"function": {"parameters": SCHEMA}, **HEAD},
        {"function": {**HEAD, "parameters": SCHEMA}, "name": "read"},
        {"toolSpec": {**HEAD, "inputSchema": {"json": SCHEMA}}},
    ],
)
def test_one_meaning(form: dict[str, Any]) -> None:
    assert tool_from_dict(form) == READ
    assert "path: string" in text_of(tool_from_dict(form))
    assert tools_from_data(form) == tools_from_data([form]) == (READ,)
    assert tools_from_data({"tools": [form], "nextCursor": "x"}) == (READ,)
    assert tools_from_data({"functions": [form]}) == (READ,)


@pytest.mark.parametrize(
    "form",
    [HEAD, {"type": "function", "function": HEAD}, {**HEAD, "id": 3}, {**HEAD, "type": "custom"}],
)
def test_no_parameters_are_none(form: dict[str, Any]) -> None:
    assert tool_from_dict(form) == Tool("read", "Reads.")
    assert "type read = () => any;" in text_of(tool_from_dict(form))
    assert tool_from_dict({"name": "read", "description": None}) == Tool("read")


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({**HEAD, "parameter": SCHEMA}, "read: unknown field 'parameter': expected 'parameters'"),
        ({**HEAD, "Parameters": SCHEMA}, "unknown field 'Parameters': expected 'parameters'"),
        ({**HEAD, "input-schemas": SCHEMA}, "unknown field 'input-schemas': expected 'input"),
        ({"name": "read", "descripton": "d", "parameters": SCHEMA}, "'descripton': expected 'desc"),
        ({**HEAD, "params": SCHEMA}, "tool read: unknown field 'params' and no parameters"),
        ({**HEAD, "parameters": None, "args": SCHEMA}, "unknown field 'args'"),
        ({**HEAD, "properties": {"path": {}}}, "unknown field 'properties'"),
        ({**HEAD, "schema": SCHEMA}, "unknown field 'schema'"),
        ({**HEAD, "tools": [HEAD]}, "unknown field 'tools'"),
        ({"type": "bash_20250124", "name": "bash"}, "bash: type 'bash_20250124' without parameter"),
        (
            {**HEAD, "parameters": SCHEMA, "inputSchema": OTHER},
            "tool read: 'parameters' and 'inputS",
        ),
        (
            {"function": {**HEAD, "parameters": SCHEMA}, "parameters": OTHER},
            "'parameters' in 'f",
        ),
        ({"function": {**HEAD, "parameters": SCHEMA}, "name": "write"}, "'name' in 'function' and"),
        ({**HEAD, "parameters": "{}"}, "tool read: parameters must be a JSON schema object"),
        ({**HEAD, "parameters": {"path": {"type": "string"}}}, "'path' inside of 'properties'"),
        ({**HEAD, "parameters": {"json": SCHEMA}}, "unknown JSON schema keyword 'json'"),
        ({**HEAD, "inputSchema": {"schema": SCHEMA}}, "read: inputSchema: unknown JSON schema"),
        ({**HEAD, "parameters": {"minProperties": 1, "property": {}}}, "JSON schema keyword 'prop"),
        ({**HEAD, "parameters": {"type": "object", "property": {}}}, "unknown JSON schema keyw"),
        ({**HEAD, "parameters": {"type": "OBJECT", "properties": {}}}, "'OBJECT': expected 'obj"),
        ({"type": "function", "function": "read"}, "expected an object with name"),
        ({"functionDeclarations": [HEAD]}, "expected an object with name"),
        ({"name": ["read"]}, "expected an object with name"),
    ],
)
def test_no_meaning_or_two(form: dict[str, Any], match: str) -> None:
    with pytest.raises(HarmonyError, match=match):
        tools_from_data(form)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "minProperties": 1, "maxProperties": 2, "patternProperties": {}},
        {"type": "object", "additionalProperties": False},
        {"$defs": {"path": {"type": "string"}}},
        *({word: 1, "schema": 2} for word in ("$ref", "oneOf", "anyOf", "allOf")),
    ],
)
def test_schemas_that_need_no_properties(schema: dict[str, Any]) -> None:
    assert tool_from_dict({**HEAD, "parameters": schema}).parameters == schema


def test_namespaces() -> None:
    (space,) = namespaces_from_data([{"name": "files", "description": "F", "tools": [HEAD]}])
    assert (space.name, space.description, space.tools) == ("files", "F", (Tool("read", "Reads."),))
    form = {**HEAD, "inputSchema": SCHEMA}
    expected = namespace_from_dict({"name": "functions", "functions": [form]})
    assert expected.tools == (READ,)
    # openai-harmony's object, and functions where namespaces are expected
    assert namespaces_from_data({"functions": {"name": "functions", "tools": [form]}}) == (
        expected,
    )
    assert namespaces_from_data({"functions": {"tools": [form]}}) == (expected,)
    assert namespaces_from_data([form]) == (expected,)
    assert namespaces_from_data([{"name": "functions", "tools": [form], "functions": [form]}]) == (
        expected,
    )
    assert namespaces_from_data([{"name": "later"}])[0].tools == ()
    assert namespaces_from_data(None) == ()
    for content in ({"functions": [form]}, {"tools": [form]}, {"functions": {"tools": [form]}}):
        message = Message.from_dict({"role": "developer", "content": content})
        assert message.parts == (DeveloperContent(None, (expected,)),)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            [{"name": "functions", "tool": [HEAD]}],
            "functions: unknown field 'tool': expected 'tool",
        ),
        ([{"name": "functions", "members": []}], "unknown field 'members' and no tools"),
        ([{"name": "f", "tools": [HEAD], "functions": []}], "'tools' and 'functions' differ"),
        ([{"name": "f", "tools": "x"}], "tools is 'x', expected a list"),
        ([{"name": "f", "description": 3}], "description must be text"),
        ([3], "tool namespace 3: expected an object with name and tools"),
        ({"f": 3}, "tool namespace 'f': expected an object with that name"),
        ({"f": {"name": "g"}}, "tool namespace 'f': expected an object with that name"),
        (3, "tools 3: expected a list of tool namespaces"),
    ],
)
def test_bad_namespaces(data: Any, match: str) -> None:
    with pytest.raises(HarmonyError, match=match):
        namespaces_from_data(data)


def in_itself() -> Any:
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    schema["properties"]["again"] = {"type": "array", "items": schema}
    return schema


def test_two_schemas_that_contain_themselves_differ() -> None:
    with pytest.raises(HarmonyError, match="'parameters' and 'inputSchema' differ"):
        tool_from_dict({**HEAD, "parameters": in_itself(), "inputSchema": in_itself()})


def deep(levels: int) -> Any:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def wide(levels: int) -> Any:
    """2 to the power of `levels` leaves in a few objects."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        (in_itself(), "contains itself"),
        ({"type": "string", "default": (loop := []), "x": loop.append(loop)}, "contains itself"),
        (deep(5000), "nested too deeply, expected at most 128 levels"),
        ({"oneOf": [deep(127)]}, "nested too deeply"),
        (wide(40), "too large, expected at most 100000 values"),
        ({"type": "object", "properties": {"a": {"default": {1, 2}}}}, "set is not JSON"),
        ({"type": "object", "properties": {"a": {"default": float("nan")}}}, "nan has no JSON"),
    ],
)
def test_schemas_without_an_end_or_a_form(schema: Any, match: str) -> None:
    for form in ({**HEAD, "parameters": schema}, {**HEAD, "inputSchema": schema}):
        with pytest.raises(HarmonyError, match=f"tool read: the schema of its param.*{match}"):
            text_of(tool_from_dict(form))
    with pytest.raises(HarmonyError, match="expected an object with name"):
        tool_from_dict({"parameters": schema})  # the error shows it cut short
    assert text_of(Tool("read", "", deep(127)))


def test_as_many_values_as_may_be() -> None:
    """The schema itself, two lists or objects in it, and numbers."""
    most = {"enum": [0] * 99_997, "x": {}}
    assert text_of(Tool("f", "", most))
    with pytest.raises(HarmonyError, match="too large, expected at most 100000 values"):
        text_of(Tool("f", "", {**most, "enum": [0] * 99_998}))


def test_names_that_are_no_text() -> None:
    for name in (3, None, ""):
        with pytest.raises(HarmonyError, match=f"^tool name {name!r}: expected a non-empty text$"):
            Tool(name)  # type: ignore[arg-type]


def test_lines_of_a_description() -> None:
    """A carriage return alone ends no line; openai-harmony reads them so, too."""
    text = text_of(Tool("f", "a\rb\r\nc\n\nd\n"))
    assert "\n// a\rb\n// c\n// \n// d\ntype f = () => any;\n" in text
    content = DeveloperContent.with_functions(None, [Tool("f", "a\rb\r\nc\n\nd\n")])
    (message,) = to_oracle([Message.developer(content)]).messages
    assert oracle().decode(oracle().render(message)) == text


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"role": "user", "content": "x", "channel": 3}, "user message: channel 3: expected text"),
        ({"role": "user", "content": "x", "name": ["a"]}, "user message: name"),
        ({"role": "robot", "content": "x"}, "message role 'robot': expected one of system"),
        ({"role": "user", "content": [deep(5000)]}, "content must be text"),
        ({"role": "user", "content": in_itself()}, "user message: content must be text"),
        ({"content": deep(5000)}, "expected an object with role"),
        ({"role": "user", 3: "x"}, "unknown field '3'"),
        ({"role": "system", "content": {"model_identity": 3}}, "model_identity 3: expected text"),
        ({"role": "system", "content": {"channels": "final"}}, "channels 'final': expected a list"),
        ({"role": "system", "content": {"tools": deep(5000)}}, "tool namespace"),
        ({"role": "developer", "content": {"instructions": []}}, "instructions .*: expected text"),
    ],
)
def test_messages_that_cannot_be(data: Any, match: str) -> None:
    with pytest.raises(HarmonyError, match=match):
        Message.from_dict(data)
