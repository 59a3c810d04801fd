"""Tools from plain data, in the forms that APIs and JSON files use.

    {"name", "description", "parameters"}                           Responses API of OpenAI
    {"type": "function", "function": {"name", "description", ...}}  Chat Completions API of OpenAI
    {"name", "description", "inputSchema"}                          Model Context Protocol
    {"name", "description", "input_schema"}                         Messages API of Anthropic
    {"toolSpec": {"name", "description", "inputSchema": {"json"}}}  Converse API of Amazon Bedrock

A field that stands beside "function" is read as if it stood inside. A field that has no place in a
prompt, such as "strict", is ignored. HarmonyError for two different values of one field, for a
misspelt field, and for an unknown field if there are no parameters: it may hold them.
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
# Fields of the APIs above (and of Hugging Face's templates: "return") that no prompt shows.
_IGNORED = {
    *("type", "strict", "title", "annotations", "_meta", "icons", "execution", "return", "id"),
    *("outputSchema", "output_schema", "cache_control", "defer_loading", "input_examples"),
    *("allowed_callers", "eager_input_streaming", "version"),
}
_short = reprlib.repr  # errors show data cut short: it may be large, nested deeply, or cyclic


def tool_from_dict(data: Mapping[str, Any]) -> Tool:
    """A Tool from plain data in one of the forms above.

    Raises:
        HarmonyError: no object with a name, or fields that cannot be understood; it names the key.
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
    """Tools from what a JSON file holds: a list of them, an object with that list, or one tool.

    The object is that of an API's request or of MCP's `tools/list`: `{"tools": [...]}`, or
    `functions` for `tools`.
    """
    if isinstance(data, Mapping) and not {"name", *_WRAPPERS} & set(data):
        lists = [data[key] for key in _LISTS if isinstance(data.get(key), list)]
        data = lists[0] if len(lists) == 1 else data
    return tuple(tool_from_dict(item) for item in (data if isinstance(data, list) else [data]))


def namespace_from_dict(data: Mapping[str, Any]) -> ToolNamespace:
    """A ToolNamespace from `{"name", "description", "tools": [...]}`; `functions` for `tools`.

    Raises:
        HarmonyError: no object with a name, an unknown field, or a tool that cannot be understood.
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
        HarmonyError: anything else, or a namespace that cannot be understood.
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
    """The fields of a tool, those inside its wrapper and those beside it."""
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
    """The schema of the parameters under whichever key it stands; None without one."""
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
    bedrock = isinstance(schema, Mapping) and set(schema) == {"json"} and given[0] != "parameters"
    return schema["json"] if bedrock else schema


def _check_keywords(name: str, key: str, schema: Mapping[str, Any]) -> None:
    """HarmonyError for what would be rendered as `any` because it is no JSON schema.

    That is an object of parameters without `properties`, a schema one level too deep, a misspelt
    keyword, and a type in capitals (Gemini's API).
    """
    what = f"tool {name}: {key}"
    kind = schema.get("type")
    if isinstance(kind, str) and kind.isupper() and kind.isascii():
        raise HarmonyError(f"{what}: type {kind!r}: expected {kind.lower()!r}")
    if {"properties", "$ref", "oneOf", "anyOf", "allOf"} & set(schema):
        return
    for word in schema:
        if word == "json" and len(schema) == 1 and key != "parameters":
            return  # Bedrock's
        if word in ("minProperties", "maxProperties", "patternProperties"):
            continue
        near = difflib.get_close_matches(str(word).lower(), ["properties"], 1, cutoff=0.75)
        if word in ("schema", "json") or near:
            raise HarmonyError(f"{what}: {word!r} is no JSON schema keyword: expected 'properties'")
    inner = list(schema.values())
    if inner and all(isinstance(value, Mapping) and "type" in value for value in inner):
        raise HarmonyError(f"{what}: expected {next(iter(schema))!r} inside of 'properties'")


def _unknown(what: str, fields: Mapping[str, Any], known: tuple[str, ...]) -> list[Any]:
    """The fields that have no meaning here. HarmonyError if one is nearly a known field."""
    unknown = [key for key in fields if key not in known and key not in _IGNORED]
    for key in unknown:
        plain = {other.lower().replace("_", ""): other for other in known}
        near = difflib.get_close_matches(str(key).lower().replace("_", ""), plain, 1, cutoff=0.85)
        if near:
            raise HarmonyError(f"{what}: unknown field {key!r}: expected {plain[near[0]]!r}")
    return unknown


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except RecursionError:
        return False
