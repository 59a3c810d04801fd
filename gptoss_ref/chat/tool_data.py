"""Tools from plain data, in the formats of APIs and JSON files.

    {"name", "description", "parameters"}                           Responses API of OpenAI
    {"type": "function", "function": {"name", "description", ...}}  Chat Completions API of OpenAI
    {"name", "description", "inputSchema"}                          Model Context Protocol
    {"name", "description", "input_schema"}                         Messages API of Anthropic
    {"toolSpec": {"name", "description", "inputSchema": {"json"}}}  Converse API of Amazon Bedrock

A field beside "function" is read as if it were inside. A known field that does not appear in
prompts, such as "strict", is ignored. HarmonyError for two different values of one field, for a
misspelt field, and for an unknown field if there are no parameters, because it may hold them.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from typing import Any

from gptoss_ref.chat.tools import Tool, ToolNamespace
from gptoss_ref.errors import HarmonyError

_WRAPPERS = ("function", "toolSpec")
_SCHEMAS = ("parameters", "inputSchema", "input_schema")
_TOOL_FIELDS = ("name", "description", *_SCHEMAS)
_LISTS = ("tools", "functions")
# Fields of the APIs above (and of Hugging Face's templates: "return") that prompts leave out.
_IGNORED = {
    *("type", "strict", "title", "annotations", "_meta", "icons", "execution", "return", "id"),
    *("outputSchema", "output_schema", "cache_control", "defer_loading", "input_examples"),
    *("allowed_callers", "eager_input_streaming", "version"),
}
_short = reprlib.repr  # for errors: data may be large, deeply nested, or cyclic


def tool_from_dict(data: Mapping[str, Any]) -> Tool:
    """A Tool from plain data in one of the formats above.

    Raises:
        HarmonyError: not an object with a name, or an invalid field, which the message names.
    """
    if not isinstance(data, Mapping):
        raise HarmonyError(f"tool {_short(data)}: expected an object with name, parameters")
    fields = _unwrapped(data)
    name, description = fields.get("name"), fields.get("description")
    if not isinstance(name, str):
        raise HarmonyError(
            f"tool {_short(data)}: expected an object with name, description, parameters"
        )
    if not isinstance(description, str | None):
        raise HarmonyError(f"tool {name}: description must be text")
    schema = _schema(name, fields)
    unknown = _unknown(f"tool {name}", fields, _TOOL_FIELDS)
    if schema is None and unknown:
        raise HarmonyError(
            f"tool {name}: unknown field {unknown[0]!r} and no parameters: expected their JSON "
            "schema in 'parameters', 'inputSchema' or 'input_schema'"
        )
    if schema is None and fields.get("type") not in (None, "function", "custom"):
        raise HarmonyError(
            f"tool {name}: type {_short(fields['type'])} without parameters: expected 'function'"
        )
    return Tool(name, description or "", schema)


def tools_from_data(data: Any) -> tuple[Tool, ...]:
    """Tools from the contents of a JSON file: a list, an object with a list, or a single tool.

    The object is `{"tools": [...]}`, as in API requests and MCP's `tools/list`, or the same with
    the key `functions`.
    """
    if isinstance(data, Mapping) and not {"name", *_WRAPPERS} & set(data):
        lists = [data[key] for key in _LISTS if isinstance(data.get(key), list)]
        data = lists[0] if len(lists) == 1 else data
    return tuple(tool_from_dict(item) for item in (data if isinstance(data, list) else [data]))


def namespace_from_dict(data: Mapping[str, Any]) -> ToolNamespace:
    """A ToolNamespace from `{"name", "description", "tools": [...]}` (or `functions`).

    Raises:
        HarmonyError: not an object with a name, an unknown field, or an invalid tool.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise HarmonyError(f"tool namespace {_short(data)}: expected an object with name and tools")
    what = f"tool namespace {data['name']}"
    unknown = _unknown(what, data, ("name", "description", *_LISTS))
    given = [key for key in _LISTS if data.get(key) is not None]
    if len(given) == 2 and not _same(data["tools"], data["functions"]):
        raise HarmonyError(f"{what}: 'tools' and 'functions' differ, expected one of them")
    if unknown and not given:
        raise HarmonyError(f"{what}: unknown field {unknown[0]!r} and no tools: expected 'tools'")
    if not isinstance(data.get("description"), str | None):
        raise HarmonyError(f"{what}: description must be text")
    tools = data[given[0]] if given else []
    if not isinstance(tools, list | tuple):
        raise HarmonyError(f"{what}: {given[0]} is {_short(tools)}, expected a list of tools")
    return ToolNamespace(data["name"], data.get("description"), tools_from_data(list(tools)))


def namespaces_from_data(data: Any) -> tuple[ToolNamespace, ...]:
    """The namespaces of a system or developer message.

    `data` is a list of namespaces, or openai-harmony's object from name to namespace. Functions in
    the list go to the namespace `functions`.

    Raises:
        HarmonyError: anything else, or an invalid namespace.
    """
    if isinstance(data, Mapping):
        for name, space in data.items():
            if not isinstance(space, Mapping) or space.get("name", name) != name:
                raise HarmonyError(f"tool namespace {name!r}: expected an object with that name")
        data = [{"name": name, **space} for name, space in data.items()]
    if not isinstance(data, list | tuple | None):
        raise HarmonyError(f"tools {_short(data)}: expected a list of tool namespaces")
    functions = [item for item in data or () if _is_function(item)]
    spaces = [namespace_from_dict(item) for item in data or () if not _is_function(item)]
    if functions:
        spaces.append(ToolNamespace("functions", None, tools_from_data(functions)))
    return tuple(spaces)


def _is_function(item: Any) -> bool:
    return (
        isinstance(item, Mapping)
        and bool({*_WRAPPERS, *_SCHEMAS} & set(item))
        and not set(_LISTS) & set(item)
    )


def _unwrapped(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a tool, both inside its wrapper and beside it."""
    fields = dict(data)
    for wrapper in _WRAPPERS:
        if not isinstance(fields.get(wrapper), Mapping):
            continue
        for key, value in fields.pop(wrapper).items():
            beside = fields.get(key)
            two = beside is not None and value is not None and key not in _IGNORED
            if two and not _same(beside, value):
                raise HarmonyError(
                    f"tool {_short(data)}: {key!r} in {wrapper!r} and beside it differ, "
                    "expected one of them"
                )
            fields[key] = beside if value is None else value
    return fields


def _schema(name: str, fields: Mapping[str, Any]) -> Any:
    """The schema of the parameters, under any of its keys; None if there is none."""
    given = [key for key in _SCHEMAS if fields.get(key) is not None]
    if not given:
        return None
    for key in given[1:]:
        if not _same(fields[given[0]], fields[key]):
            raise HarmonyError(
                f"tool {name}: {given[0]!r} and {key!r} differ, expected one of them"
            )
    schema = fields[given[0]]
    if isinstance(schema, Mapping):
        _check_keywords(name, given[0], schema)
    bedrock = isinstance(schema, Mapping) and set(schema) == {"json"}
    return schema["json"] if bedrock else schema


def _check_keywords(name: str, key: str, schema: Mapping[str, Any]) -> None:
    """HarmonyError for mistakes in a JSON schema that would be rendered as `any`.

    They are: parameters without `properties`, a schema one level too deep, a misspelt keyword, and
    a type in capitals (Gemini's API).
    """
    what = f"tool {name}: {key}"
    kind = schema.get("type")
    if isinstance(kind, str) and kind.isupper() and kind.isascii():
        raise HarmonyError(f"{what}: type {kind!r}: expected {kind.lower()!r}")
    if {"properties", "$ref", "oneOf", "anyOf", "allOf"} & set(schema):
        return
    for word in schema:
        if word == "json" and len(schema) == 1 and key != "parameters":
            return  # Bedrock's format
        if word in ("minProperties", "maxProperties"):
            continue
        near = difflib.get_close_matches(str(word).lower(), ["properties"], cutoff=0.75)
        if word in ("schema", "json") or near:
            raise HarmonyError(
                f"{what}: unknown JSON schema keyword {word!r}: expected 'properties'"
            )
    inner = list(schema.values())
    if inner and all(isinstance(value, Mapping) and "type" in value for value in inner):
        raise HarmonyError(f"{what}: expected {next(iter(schema))!r} inside of 'properties'")


def _unknown(what: str, fields: Mapping[str, Any], known: tuple[str, ...]) -> list[Any]:
    """The unknown fields. HarmonyError if one is a misspelt known field."""
    unknown = [key for key in fields if key not in known and key not in _IGNORED]
    plain = {other.lower(): other for other in known}
    for key in unknown:
        near = difflib.get_close_matches(str(key).lower(), plain, cutoff=0.85)
        if near:
            raise HarmonyError(f"{what}: unknown field {key!r}: expected {plain[near[0]]!r}")
    return unknown


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except RecursionError:
        return False
