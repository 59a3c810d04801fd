"""The conversations that a template or a server has to render.

Together they show every bug of the catalogue, which the tests check.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from gptoss_ref.verify.rendering.conversation import Conversation, conversation_from_data


def _tool(name: str, description: str, parameters: Any) -> dict[str, Any]:
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def _call(name: str, arguments: str, number: int = 1) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_WEATHER = _tool(
    "get_weather",
    "Gets the weather in a place.",
    _object(
        {
            "place": {"type": "string", "description": "City & country, e.g. Zürich <CH>"},
            "days": {"type": "integer", "default": 3},
            "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
        },
        "place",
    ),
)
_ADD = _tool(
    "add",
    "Adds numbers.\nGives their sum.",
    _object(
        {
            "numbers": {"type": "array", "items": {"type": "number"}},
            "note": {"type": "string", "default": "none"},
            "log": {"type": "boolean", "description": "Whether to note it."},
        },
        "numbers",
        "log",
    ),
)
_PEOPLE = _tool(
    "list_people",
    "Lists people.",
    _object(
        {
            "people": {
                "type": "array",
                "items": _object({"name": {"type": "string"}, "age": {"type": "integer"}}, "name"),
            }
        },
        "people",
    ),
)
_NOW = _tool("now", "The time.", {"type": "object", "properties": {}})

_ASKS_FOR_WEATHER = [
    {"role": "user", "content": "Weather in Zürich?"},
    {
        "role": "assistant",
        "reasoning_content": "A tool knows.",
        "content": None,
        "tool_calls": [_call("get_weather", '{"place": "Zürich"}')],
    },
]
_RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "klar", "t": "21 °C"}'}

CONVERSATIONS: tuple[dict[str, Any], ...] = (
    {"title": "a question", "messages": [{"role": "user", "content": "What is 27 + 58?"}]},
    {
        "title": "instructions",
        "reasoning_effort": "high",
        "messages": [
            {"role": "system", "content": "Answer in French."},
            {"role": "user", "content": "Who are you?"},
        ],
    },
    {
        "title": "instructions of a developer",
        "reasoning_effort": "low",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Why is the sky blue?"},
        ],
    },
    {
        "title": "white space and special text",
        "messages": [
            {"role": "user", "content": "\n  def f():\n      return '<|end|>'  \n"},
        ],
    },
    {
        "title": "an answered question, with its thoughts",
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "reasoning_content": "Easy.", "content": "4"},
            {"role": "user", "content": "And 3 + 3?"},
        ],
    },
    {
        "title": "instructions in the middle",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi!"},
            {"role": "system", "content": "From now on answer in German."},
            {"role": "user", "content": "How are you?"},
        ],
    },
    {
        "title": "one tool",
        "tools": [_WEATHER],
        "messages": [
            {"role": "system", "content": "Use the tools."},
            {"role": "user", "content": "Weather in Zürich?"},
        ],
    },
    {
        "title": "several tools, no instructions",
        "tools": [_WEATHER, _ADD, _PEOPLE],
        "messages": [{"role": "user", "content": "Add 1, 2 and 3."}],
    },
    {
        "title": "a tool without parameters",
        "tools": [_NOW],
        "messages": [{"role": "user", "content": "What time is it?"}],
    },
    {
        "title": "a call and its result",
        "tools": [_WEATHER],
        "messages": [*_ASKS_FOR_WEATHER, _RESULT],
    },
    {
        "title": "a call, its result, an answer, and a further question",
        "tools": [_WEATHER],
        "messages": [
            *_ASKS_FOR_WEATHER,
            _RESULT,
            {"role": "assistant", "reasoning_content": "Clear, then.", "content": "Clear, 21 °C."},
            {"role": "user", "content": "Thanks! And in Rome?"},
        ],
    },
    {
        "title": "an answer, then a call and its result",
        "tools": [_WEATHER],
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "reasoning_content": "Easy.", "content": "4"},
            *_ASKS_FOR_WEATHER,
            _RESULT,
        ],
    },
    {
        "title": "words beside a call",
        "tools": [_WEATHER],
        "messages": [
            {"role": "user", "content": "Weather in Rome?"},
            {
                "role": "assistant",
                "content": "Let me look it up.",
                "tool_calls": [_call("get_weather", '{"place":"Köln","days":1}')],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ],
    },
    {
        "title": "words beside a call, answered",
        "tools": [_WEATHER],
        "messages": [
            {"role": "user", "content": "Weather in Rome?"},
            {
                "role": "assistant",
                "content": "Let me look it up.",
                "tool_calls": [_call("get_weather", '{"place": "Rome"}')],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            {"role": "assistant", "content": "It rains."},
            {"role": "user", "content": "Pity."},
        ],
    },
    {
        "title": "two calls at once",
        "tools": [_WEATHER],
        "messages": [
            {"role": "user", "content": "Weather in Rome and Oslo?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    _call("get_weather", '{"place": "Rome"}', 1),
                    _call("get_weather", '{"place": "Oslo"}', 2),
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            {"role": "tool", "tool_call_id": "call_2", "content": "snow"},
        ],
    },
    {
        "title": "a result without a text",
        "tools": [_NOW],
        "messages": [
            {"role": "user", "content": "Wait a second."},
            {"role": "assistant", "content": None, "tool_calls": [_call("now", "{}")]},
            {"role": "tool", "tool_call_id": "call_1", "content": ""},
        ],
    },
    {
        "title": "built-in tools",
        "builtin_tools": ["browser", "python"],
        "messages": [{"role": "user", "content": "Plot the weather."}],
    },
    {
        "title": "another identity",
        "model_identity": "You are Ada, a friendly machine.",
        "messages": [{"role": "user", "content": "Who are you?"}],
    },
)
"""Conversations in the format of chat APIs; some use built-in tools or the identity."""


@cache
def check_conversations() -> tuple[Conversation, ...]:
    """:data:`CONVERSATIONS`, read."""
    return tuple(conversation_from_data(data) for data in CONVERSATIONS)
